"""Signals, as something that the loop can wait for.

Rules
    A handler only raises a flag. PEP 475 restarts an interrupted wait, so what wakes the loop is a byte that the
    interpreter writes to a socket pair (signal.set_wakeup_fd). The pair holds some 278 bytes and a storm drops the
    rest: the bytes only wake, the flags are what counts.
    Nothing is logged, allocated or decided in a handler.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from echod.net.reactor import Handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""The signals that end a start at once."""

DEFERRED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that come too early during a start, and are held back until the supervisor acts on them."""

ACTED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
"""The signals that the supervisor acts on, the most urgent first."""

_KEPT_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)  # the interpreter ignores these two itself, for EPIPE and EFBIG


class Signals(Handler):
    """Raises a flag for each signal and calls `act` with those that are up, from the loop."""

    __slots__ = ("_act", "_flags", "_here", "_there")

    def __init__(self, act: Callable[[signal.Signals, float], None]) -> None:
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self._there.setblocking(False)
        super().__init__(self._here.fileno())
        self._act = act
        self._flags: dict[int, bool] = dict.fromkeys(ACTED_ON, False)
        signal.set_wakeup_fd(self._there.fileno(), warn_on_full_buffer=False)
        for number in ACTED_ON:
            signal.signal(number, self._raise_flag)

    def on_readable(self, now: float) -> None:
        """Lower each flag that is up, then act on it: a signal that comes meanwhile counts anew."""
        with suppress(BlockingIOError):
            while self._here.recv(4096):
                pass
        for number in ACTED_ON:
            is_up, self._flags[number] = self._flags[number], False
            if is_up:
                self._act(number, now)

    def close(self) -> None:
        """Give the signals back to the system."""
        signal.set_wakeup_fd(-1)
        for number in ACTED_ON:
            signal.signal(number, signal.SIG_DFL)
        self._here.close()
        self._there.close()

    def _raise_flag(self, number: int, _frame: FrameType | None) -> None:
        self._flags[number] = True


class Interrupted(BaseException):
    """One of ENDING has come while the daemon starts. No Exception: nothing but the start itself handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def end_at_once() -> None:
    """Let each signal of ENDING end this process from now on, also where it is the first of a pid namespace."""
    for number in ENDING:
        signal.signal(number, lambda received, _frame: end_by(received))


class Interruption:
    """Lets the first signal of ENDING raise `Interrupted` from now on, so that what a start has made is cleaned up.

    Python swallows an exception that is raised while it runs a hook (os.register_at_fork) or a finalizer; `check`
    raises it again.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        for number in ENDING:
            signal.signal(number, self._interrupt)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._received is not None:
            raise Interrupted(self._received)

    def _interrupt(self, number: int, _frame: FrameType | None) -> NoReturn:
        self._received = number
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise Interrupted(number)


def end_by(number: int) -> NoReturn:
    """End this process by the signal `number`; PID 1, which its default action does not end, by exit code 128+N."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def reset() -> Sequence[int]:
    """Undo what a hostile parent may have blocked or ignored (daemon(7), steps 2 and 3); return what was ignored."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ignored = [
        number
        for number in signal.valid_signals()
        if signal.getsignal(number) is signal.SIG_IGN and number not in _KEPT_IGNORED
    ]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    return ignored


def name(number: int) -> str:
    """Return what a signal is called; most of the real-time signals have a number only (signal(7))."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def become_worker() -> None:
    """Leave all commands to the supervisor: systemd and terminals signal the whole group."""
    signal.set_wakeup_fd(-1)
    for number in ACTED_ON:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def reset_in_child() -> None:
    """Let what ends a process end this one, and ignore what only asks the supervisor to do something."""
    signal.set_wakeup_fd(-1)
    for number in ACTED_ON:
        signal.signal(number, signal.SIG_DFL if number in ENDING else signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def ignore() -> None:
    """Leave no signal an effect: what is left of the process ends with the exit code that it has earned.

    The interpreter gives handled signals back to the system some time before it ends, and the next one would kill.
    """
    for number in ACTED_ON:
        signal.signal(number, signal.SIG_IGN)


def defer() -> None:
    """Hold DEFERRED back, and let all others through."""
    signal.pthread_sigmask(signal.SIG_SETMASK, DEFERRED)


@contextmanager
def held() -> Iterator[None]:
    """Hold all signals back around a fork, so that the child never runs its parent's handlers."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hold() -> None:
    """Hold all signals back, until `let_go`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())


def let_go() -> None:
    """Let signals through again."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def terminal_opens() -> bool:
    """Tell whether this process has a controlling terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
