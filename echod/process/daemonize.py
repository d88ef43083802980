"""Becoming a daemon the SysV way (daemon(7)), and telling the starter how it went.

Rules
    python-daemon forks twice and does the session, umask and directory. Around it stands what it leaves out: the
    environment is cleaned first, by one exec, since os.environ.clear() leaves /proc/PID/environ as it was; whatever can
    fail with a message to the terminal is done before; and the starter waits on a pipe until the next connect works, or
    for the reason why it never will.
    Not used of it: DaemonContext, which closes descriptors by counting up to the hard limit (75 s where that is a
    billion and close_range(2) is missing), and with it pid file, user and group, signals, guessing whether to detach.
    The exec happens at most once. What sets variables while the interpreter starts (a .pth file, pex, PyInstaller) sets
    them again afterwards, so a variable records that it was done. /proc/self/environ cannot tell: pex and PyInstaller
    execute the interpreter once more, with variables of their own.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import orjson

import echod
from echod.errors import EchodError, StartError, UsageError
from echod.process import descriptors, signals

if TYPE_CHECKING:
    from collections.abc import Collection

UMASK = 0o027

CLEANED = "ECHOD_CLEANED"
"""Variable that is set once the environment has been cleaned."""

_ALLOWED = frozenset(
    {"HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "RUNTIME_DIRECTORY", "SHELL", "TZ", "USER", "XDG_RUNTIME_DIR"}
)
_ALLOWED_PREFIXES = ("LC_", "COVERAGE_")  # the second: whoever measures a test run measures the daemon too


def check_environment() -> None:
    """Refuse to detach where a service manager waits for this very process (sd_notify(3)), or echod would be lost."""
    if os.environ.get("NOTIFY_SOCKET"):
        raise UsageError("--daemon makes no sense under a service manager that is notified; leave the option out")
    if str(Path(echod.__file__).parents[1]) in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        raise UsageError("--daemon starts over without PYTHONPATH, by which echod was found; install it first")


def clean_environment() -> None:
    """Execute this program once more without the variables that a daemon should not inherit, if there are any.

    After that, only `os.environ` is cleaned of what is there again.
    """
    cleaned = os.environ.pop(CLEANED, None)
    unwanted = [name for name in os.environ if name not in _ALLOWED and not name.startswith(_ALLOWED_PREFIXES)]
    for name in unwanted:
        del os.environ[name]
    if unwanted and not cleaned:
        environment = os.environ | {CLEANED: "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606  # this very program


class Starter:
    """The daemon's line to the process that started it, which waits at the other end."""

    def __init__(self, pipe: int) -> None:
        self.fd = pipe

    def ready(self) -> None:
        """Let the starter exit with code 0."""
        if self.fd >= 0:
            self._say(0, ())
            os.close(self.fd)
            self.fd = -1

    def failed(self, error: EchodError) -> None:
        """Let the starter print the reason and exit with its code, once this process has ended and left nothing."""
        if self.fd >= 0:
            self._say(error.exit_code, error.lines)
            self.fd = -1  # the kernel closes it, which is what the starter waits for

    def _say(self, code: int, lines: tuple[str, ...]) -> None:
        with suppress(OSError):  # the starter was interrupted: the daemon goes on
            os.write(self.fd, orjson.dumps([code, lines]))


def detach(preserve: Collection[int]) -> Starter:
    """Return in the daemon, which keeps the descriptors `preserve`; the process that called never returns."""
    from daemon import daemon  # noqa: PLC0415  # a quarter of the start-up time, for --daemon only

    null = os.open(os.devnull, os.O_RDWR)
    reader, writer = os.pipe()
    signals.hold()  # ^C must find the starter where it only waits: what it would tidy up is the daemon's from now on
    if os.fork():
        os.close(writer)
        _wait(reader)
    signals.defer()
    descriptors.close_all_but({0, 1, 2, null, writer, *preserve})
    starter = Starter(writer)
    try:
        daemon.prevent_core_dump()  # payload of others is in memory
        daemon.change_file_creation_mask(UMASK)
        daemon.change_working_directory("/")
        daemon.detach_process_context()
    except daemon.DaemonError as error:
        failure = StartError(f"cannot detach: {error}")
        starter.failed(failure)
        raise failure from None
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    return starter


def _wait(reader: int) -> NoReturn:
    code = 1
    try:
        signals.let_go()
        with open(reader, "rb") as pipe:
            said = pipe.read()
        code, lines = orjson.loads(said) if said else (1, ["the daemon died before it was ready"])
        for line in lines:
            print(f"echod: {line}", file=sys.stderr, flush=True)
    except signals.Interrupted as interrupted:
        signals.end_by(interrupted.number)
    finally:
        os._exit(code)  # whatever happens: lock and sockets are the daemon's by now, and not to be cleaned up here
