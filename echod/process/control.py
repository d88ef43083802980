"""What `reload`, `stop` and `status` do to a daemon that runs: a signal, and a look at its state file.

Rule: only the runtime directory of the configuration matters here, so that a broken file never prevents a stop. Whether
a daemon runs is asked of the lock, never of a pid.

Fails: NotRunningError; StartError when it may not be signalled, does not answer in time, or is gone; ConfigError when a
file that was named cannot be read, or a reload was refused because of the configuration.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from echod import __version__
from echod.config import reading
from echod.errors import ConfigError, NotRunningError, StartError
from echod.process import lock, state

RELOAD_PATIENCE = 60.0
"""Seconds that `reload --wait` waits; a worker that hangs is replaced within 11."""

_INTERVAL = 0.02


def reload(path: Path | None, *, wait: bool) -> None:
    """Make the daemon reload; with `wait` return only once the new configuration serves."""
    directory, pid = _find(path)
    sent = time.monotonic_ns()
    _signal(pid, signal.SIGHUP)
    if not wait:
        return
    report = _await_report(directory, pid, sent)
    if not report["ok"]:
        kind = ConfigError if report["exit_code"] == ConfigError.exit_code else StartError
        raise kind(*report["error"])


def stop(path: Path | None, *, wait: bool) -> None:
    """Make the daemon drain and leave; with `wait` return only once it is gone."""
    directory, pid = _find(path)
    _signal(pid, signal.SIGTERM)
    # It lets go of the lock some milliseconds before the interpreter has ended.
    while wait and (lock.holder(directory) == pid or _lives(pid)):
        time.sleep(_INTERVAL)


def status(path: Path | None) -> dict[str, Any]:
    """Return the daemon's state, no older than `state.FRESH`, and how many seconds it has lived."""
    directory, _ = _find(path)
    found = state.read(directory)
    if found.get("version") != __version__:
        raise StartError(f"the daemon is echod {found.get('version', '?')} and this is {__version__}: restart it")
    return found | {"uptime": round(time.monotonic() - found["started"] / 1e9, 3)}


def _find(path: Path | None) -> tuple[Path, int]:
    if path:
        return lock.find(reading.runtime_directory(path))
    default = reading.default_file()
    directory = None
    with suppress(ConfigError):  # nobody has named it, so that it cannot be read prevents nothing
        directory = reading.runtime_directory(default) if default else None
    return lock.find(directory)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise NotRunningError("not running any more") from None
    except PermissionError:
        raise StartError(f"pid {pid}: it belongs to another user; try as that user or as root") from None


def _lives(pid: int) -> bool:
    """Tell whether a process has not ended; whether its parent has waited for it does not matter (proc_pid_stat(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return text.rpartition(b")")[2].split()[0] not in {b"Z", b"X"}


def _await_report(directory: Path, pid: int, sent: int) -> dict[str, Any]:
    deadline = time.monotonic() + RELOAD_PATIENCE
    while time.monotonic() < deadline:
        if lock.holder(directory) != pid:
            raise StartError("the daemon has stopped during the reload")
        report: dict[str, Any] | None = None
        with suppress(StartError):  # a daemon that leaves removes its state before it lets go of the lock
            report = state.read(directory)["reload"]
        if report and report["started"] > sent and report["finished"]:
            return report
        time.sleep(_INTERVAL)
    raise StartError(f"no answer to the reload within {RELOAD_PATIENCE:.0f} s; the log may say why")
