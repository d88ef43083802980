"""The commands to a running daemon, against a lock and a state file made by hand; signals go nowhere."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from echod import __version__
from echod.config import reading
from echod.errors import ConfigError, NotRunningError, StartError
from echod.process import control, lock, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PID = 4_000_000_000
"""No process has this one, should a signal ever be sent in earnest."""


class Fake:
    """Something that holds the lock, and answers a signal as the test says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = lock.Lock(directory)
        os.pwrite(self.lock.fd, f"{PID}\n".encode(), 0)
        self.sent: list[tuple[int, int]] = []
        self.answer: Callable[[], None] = lambda: None

    def kill(self, pid: int, number: int) -> None:
        """Note the signal, and answer."""
        self.sent.append((pid, number))
        self.answer()

    def report(self, **report: object) -> None:
        """Write a state file with this outcome of a reload."""
        state.write(
            self.directory, {"reload": {"started": time.monotonic_ns(), "finished": time.monotonic_ns()} | report}
        )


@pytest.fixture
def fake(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Run a fake daemon in the directory of the configuration."""
    directory = config_file.parent / "run"
    directory.mkdir()
    made = Fake(directory)
    monkeypatch.setattr(os, "kill", made.kill)
    yield made
    made.lock.release()


def test_each_command_sends_its_signal(fake: Fake, config_file: Path) -> None:
    """HUP reloads and TERM stops, without waiting unless asked to; status sends nothing, and knows the uptime."""
    state.write(fake.directory, {"version": __version__, "state": "ready", "started": time.monotonic_ns() - 5 * 10**9})
    control.reload(config_file, wait=False)
    control.stop(config_file, wait=False)

    found = control.status(config_file)

    assert ("ready", True) == (found["state"], 5 <= found["uptime"] < 60)
    assert [(PID, signal.SIGHUP), (PID, signal.SIGTERM)] == fake.sent


@pytest.mark.parametrize("found", [{"state": "ready"}, {"state": "ready", "version": "0.0.1"}])
def test_the_state_of_another_version_is_not_guessed(fake: Fake, config_file: Path, found: dict[str, str]) -> None:
    """After an upgrade and before the restart, that is what is said; stop and reload work all the same."""
    state.write(fake.directory, found)

    with pytest.raises(StartError, match=r"^the daemon is echod .* and this is .*: restart it$"):
        control.status(config_file)
    control.stop(config_file, wait=False)


def test_a_broken_file_does_not_prevent_a_stop(fake: Fake, config_file: Path) -> None:
    """Of the file only the runtime directory matters, whatever else is wrong with it."""
    config_file.write_text(config_file.read_text() + '[limits]\nmax_conections = "many"\n')
    control.stop(config_file, wait=False)

    assert [(PID, signal.SIGTERM)] == fake.sent


@pytest.mark.usefixtures("fake")
def test_without_a_usable_file_the_default_places_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that says nothing about the directory, or is not TOML, leads to the default places."""
    monkeypatch.setattr(reading, "DEFAULT_PATH", tmp_path / "none")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    broken = tmp_path / "broken"
    broken.write_text("[[[")

    assert [(tmp_path / "run", PID)] * 2 == [control._find(None), control._find(broken)]
    monkeypatch.setattr(reading, "DEFAULT_PATH", tmp_path)
    assert (tmp_path / "run", PID) == control._find(None)


@pytest.mark.usefixtures("fake")
def test_a_named_file_that_is_not_there_finds_nobody(tmp_path: Path) -> None:
    """Whoever names a file means its daemon, and not the one that happens to run in a default place."""
    with pytest.raises(ConfigError, match="does not exist"):
        control.stop(tmp_path / "none", wait=False)


def test_who_does_not_run_cannot_be_told(config_file: Path) -> None:
    """Without a lock every command says so."""
    for act in (lambda: control.stop(config_file, wait=True), lambda: control.status(config_file)):
        with pytest.raises(NotRunningError, match="not running"):
            act()


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (ProcessLookupError(), NotRunningError, "not running any more"),
        (PermissionError(), StartError, f"pid {PID}: it belongs to another user"),
    ],
)
def test_a_signal_that_cannot_be_sent_is_said(
    fake: Fake, config_file: Path, error: OSError, kind: type[Exception], reason: str
) -> None:
    """A daemon that has just gone, and one of somebody else, are told apart."""

    def fail() -> None:
        raise error

    fake.answer = fail
    with pytest.raises(kind, match=reason):
        control.reload(config_file, wait=True)


def test_reload_waits_for_the_report_of_its_own_signal(fake: Fake, config_file: Path) -> None:
    """A report that started before the signal, and one that is not finished, are not taken for the answer."""
    fake.report(ok=False, error=["old"], exit_code=78)
    reports: Iterator[dict[str, Any]] = iter([{"finished": None}, {"ok": True, "error": None, "exit_code": 0}])
    real = lock.holder

    def answer_later(directory: Path) -> int | None:
        if fake.sent and (report := next(reports, None)):
            fake.report(**report)
        return real(directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "holder", answer_later)
        control.reload(config_file, wait=True)

    assert next(reports, None) is None


@pytest.mark.parametrize(("code", "kind"), [(78, ConfigError), (1, StartError)])
def test_a_refused_reload_has_the_code_of_its_reason(
    fake: Fake, config_file: Path, code: int, kind: type[ConfigError | StartError]
) -> None:
    """What the configuration is to blame for ends with 78, all else with 1; every line is handed on."""
    fake.answer = lambda: fake.report(ok=False, error=["one", "two"], exit_code=code)
    with pytest.raises(kind) as refused:
        control.reload(config_file, wait=True)

    assert ("one", "two") == refused.value.lines


def test_reload_gives_up(fake: Fake, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that does not answer, and one that goes meanwhile, end the wait."""
    state.write(fake.directory, {"reload": None})
    monkeypatch.setattr(control, "RELOAD_PATIENCE", 0.05)
    with pytest.raises(StartError, match="no answer to the reload within"):
        control.reload(config_file, wait=True)
    fake.answer = lambda: monkeypatch.setattr(lock, "holder", lambda _directory: None)

    with pytest.raises(StartError, match="the daemon has stopped during the reload"):
        control.reload(config_file, wait=True)


def test_stop_waits_until_the_process_has_ended(fake: Fake, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon lets go of its lock shortly before it is gone; one that nobody has waited for is gone."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        os.pwrite(fake.lock.fd, f"{process.pid}\n".encode().ljust(32), 0)
        fake.answer = fake.lock.release
        monkeypatch.setattr(time, "sleep", lambda _: process.stdin.close() if process.stdin else None)
        control.stop(config_file, wait=True)

        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    fake.lock = lock.Lock(fake.directory)

    assert ended is not None


def test_stop_waits_until_the_lock_is_free(fake: Fake, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `wait` the command returns when nobody, or somebody else, holds the lock."""
    holders = iter([PID, PID, PID, 1])
    monkeypatch.setattr(lock, "holder", lambda _directory: next(holders))
    control.stop(config_file, wait=True)

    assert next(holders, None) is None
    assert [(PID, signal.SIGTERM)] == fake.sent


def test_a_daemon_that_ends_during_a_reload_is_not_a_broken_file(
    fake: Fake, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state file goes before its lock: in between, `reload --wait` still says that the daemon has stopped."""
    fake.answer = lambda: state.remove(fake.directory)
    holders = iter([PID, PID, PID, None])
    monkeypatch.setattr(lock, "holder", lambda _directory: next(holders))

    with pytest.raises(StartError, match="the daemon has stopped during the reload"):
        control.reload(config_file, wait=True)
