"""Looks up the names of a start or a reload in a process of its own, because a name service may take long to answer.

Rules
    One child looks up all names together, and has TIMEOUT for all of them. No lookup outlives its purpose: the child is
    killed when its answer is not wanted any more, and an alarm(2) ends it when the supervisor is gone.
    The child keeps no descriptor but its pipe. It writes a newline for each name that it has looked up, so that the
    parent knows which one is slow, and then its answer as JSON, which the parent bounds and validates.
    Nothing is forked when nothing has to be looked up. Workers never call a name service.

Fails: EchodError from `names` says which listener or key, and why.

Known limit: a child that hangs in the kernel (a name service on a dead NFS mount) cannot be killed. It is left behind.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import orjson
from pydantic import TypeAdapter, ValidationError

from echod.errors import ConfigError, EchodError, StartError
from echod.net import binding
from echod.net.poller import POLLERS
from echod.net.reactor import Handler, Reactor
from echod.process import descriptors, privileges, signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.config.listeners import Listener

SIGNAL_INTERVAL = 0.1
"""Seconds between looks for a signal while a start waits."""

TIMEOUT = 10
"""Seconds that all names of a start or a reload may take."""

KILL_DELAY = 1.0
"""Seconds after TIMEOUT until the parent ends a child that its alarm has not ended."""

MAX_ANSWER = 2 * 1024 * 1024
"""Bytes; a user may be in 65,536 groups."""

_READ_SIZE = 64 * 1024


@dataclass(frozen=True)
class Names:
    """What the names of a configuration stand for."""

    targets: dict[str, binding.BindTarget]
    """Where each listener is bound, by the listener's name."""
    run_as: privileges.RunAs | None
    """The user that workers become; None when that was not asked or they stay what they are."""


@dataclass(frozen=True)
class Failure:
    """Why a name could not be looked up; an EchodError on its way to the parent."""

    lines: tuple[str, ...]
    exit_code: int
    errno: int


@dataclass(frozen=True)
class Question:
    """The names that a start or a reload has to know."""

    listeners: tuple[Listener, ...]
    """The listeners that are bound; inherited sockets need no names."""
    account: tuple[str, str] | None = None
    """`daemon.user` and `daemon.group`; None on a reload, which cannot change them."""

    @property
    def needs_name_service(self) -> bool:
        """Whether the answer may take long."""
        # As root, an empty user stands for an account too.
        account = self.account is not None and (os.geteuid() == 0 or any(self.account))
        return account or any(map(binding.needs_name_service, self.listeners))

    @property
    def subjects(self) -> list[str]:
        """Return for each name that is looked up, in this order, how an error begins that is about it."""
        subjects = [
            f'listener "{listener.name}": '
            + (f"{listener.parsed}: name server" if listener.parsed else "owner: name service")
            for listener in self.listeners
        ]
        return subjects if self.account is None else [*subjects, "daemon.user: name service"]

    def answer(self, progress: Callable[[], object] = lambda: None) -> Names:
        """Look everything up and call `progress` after each name; block as long as that takes."""
        targets = {}
        for listener in self.listeners:
            targets[listener.name] = binding.resolve(listener)
            progress()
        run_as = None
        if self.account is not None:
            run_as = privileges.resolve(*self.account)
            progress()
        return Names(targets, run_as)


_ANSWER: TypeAdapter[Names | Failure] = TypeAdapter(Names | Failure)


class Resolver(Handler):
    """A child process that answers a question; `done` once it has, or will not any more."""

    __slots__ = ("_late", "_question", "_received", "_started", "_writer", "pid")

    def __init__(self, question: Question) -> None:
        """Prepare the pipe; the child is forked by `start`. Raise StartError when there may be no more descriptors."""
        try:
            reader, self._writer = os.pipe()
        except OSError as error:
            raise StartError(f"no pipe to look up names: {error.strerror}", errno=error.errno) from None
        super().__init__(reader)
        self._question = question
        self._received = bytearray()
        self._started = 0.0
        self._late = False
        self.pid = 0

    def start(self) -> None:
        """Fork the child; raise StartError when there may be no more processes."""
        self._started = time.monotonic()
        self.deadline = self._started + TIMEOUT + KILL_DELAY
        try:
            with signals.held():
                self.pid = os.fork()
                if not self.pid:
                    _run_child(self._question, self._writer)
        except OSError as error:
            self.close()
            raise StartError(f"no process to look up names: {error.strerror}", errno=error.errno) from None
        os.close(self._writer)
        self._writer = -1

    def names(self) -> Names:
        """Return the answer of a resolver that is done; raise EchodError when there is none or a name failed."""
        *finished, answer = bytes(self._received).split(b"\n")
        if not answer:
            subject = dict(enumerate(self._question.subjects)).get(len(finished), "names:")
            reason = f"did not answer within {TIMEOUT} s" if self._late else "lookup ended without an answer"
            raise StartError(f"{subject} {reason}")
        try:
            found = _ANSWER.validate_json(answer, strict=True)
        except ValidationError:
            raise StartError("names: the lookup process gave an invalid answer") from None
        if isinstance(found, Failure):
            kind = ConfigError if found.exit_code == ConfigError.exit_code else StartError
            raise kind(*found.lines, errno=found.errno)
        return found

    def on_readable(self, now: float) -> None:
        """Read the answer; the end of the pipe is the end of it."""
        data = os.read(self.fd, _READ_SIZE)
        self._received += data
        if not data or len(self._received) > MAX_ANSWER:
            self._late = now - self._started >= TIMEOUT
            self.retire()

    def on_exceptional(self, now: float) -> None:
        """Read: an error of the pipe shows there."""
        self.on_readable(now)

    def on_deadline(self, now: float) -> None:
        """Wait no longer for a child that no alarm can end."""
        if now >= self.deadline:
            self._late = True
            self.retire()

    def on_crash(self, error: Exception, now: float) -> None:
        """Give the answer up when the pipe cannot be watched or read."""
        self.retire()

    def close(self) -> None:
        """Close the pipe and kill the child if it still runs; the supervisor reaps all children on SIGCHLD."""
        if self.fd < 0:
            return
        for fd in {self.fd, self._writer} - {-1}:
            os.close(fd)
        self.fd = self._writer = -1
        if self.pid:
            with suppress(ChildProcessError):  # it is reaped already: the pid may be another process's by now
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    os.kill(self.pid, signal.SIGKILL)


def resolve(question: Question) -> Names:
    """Return the answer to `question`, for the start, which has no loop yet; raise EchodError as `Resolver.names`."""
    if not question.needs_name_service:
        return question.answer()
    resolver = Resolver(question)
    reactor = Reactor(POLLERS["poll"](), lambda _handler, _error: None)
    try:
        resolver.start()
        reactor.add(resolver)
        while not resolver.done:
            # Python runs a handler between two instructions only: a signal that comes just before the loop waits does
            # not end the wait (no wakeup descriptor is set yet).
            reactor.turn(SIGNAL_INTERVAL)
    finally:
        resolver.close()
    names = resolver.names()
    with suppress(ChildProcessError):
        os.waitpid(resolver.pid, 0)  # it ends once it has answered, and nothing handles SIGCHLD yet
    return names


def _run_child(question: Question, pipe: int) -> NoReturn:
    try:
        signal.alarm(TIMEOUT)
        signals.reset_in_child()
        descriptors.close_all_but({pipe})
        with suppress(OSError):  # a name service must not get one of the numbers that the C library prints to
            for _ in range(3):
                os.open(os.devnull, os.O_RDWR)
        with open(pipe, "wb") as file:
            file.write(orjson.dumps(_answer(question, pipe)))
    finally:
        os._exit(0)


def _answer(question: Question, pipe: int) -> Names | Failure:
    try:
        return question.answer(lambda: os.write(pipe, b"\n"))
    except EchodError as error:
        return Failure(error.lines, error.exit_code, error.errno)
    except Exception as error:  # noqa: BLE001  # no traceback ever reaches a user
        return Failure((f"names: lookup failed: {type(error).__name__}: {error}",), StartError.exit_code, 0)
