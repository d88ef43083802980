"""A worker as the supervisor sees it: a process, and the other end of a channel.

Rules
    What a worker answers is only noted here; `crew` acts on it.
    A worker is not trusted. One that breaks the rules is killed, and `violation` says why: it answers each command at
    most once, and only what it was told. So what it sends is bounded by what it was sent.
    A worker that cannot be told something is killed: its successor will know.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from echod.net.reactor import Handler
from echod.observe import sink
from echod.process import channel as messages
from echod.process import signals
from echod.process.channel import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from echod.observe.scoreboard import Row
    from echod.process.channel import SupervisorChannel, WorkerChannel

MAX_ANSWERS_PER_TURN = 16
"""Answers of one worker that a turn of the loop reads; the others wait for the next turn."""


class Hand(Handler):
    """One worker, seen from the supervisor: its process and the other end of its channel."""

    __slots__ = (
        "_owed",
        "asked_to_leave",
        "behind",
        "born",
        "channel",
        "confirmed_at",
        "generation",
        "generation_sent",
        "heard",
        "log_serial",
        "log_serial_sent",
        "pid",
        "released",
        "row",
        "silent",
        "violation",
    )

    def __init__(self, channel: SupervisorChannel, row: Row, pid: int, now: float, log_serial: int = 0) -> None:
        """Take over `channel` of the process `pid`, which was forked with the log of `log_serial`."""
        super().__init__(channel.fileno())
        self.channel = channel
        self.row = row
        self.pid = pid
        self.behind = False
        """Whether something did not reach the worker for want of descriptors or memory, and is to be sent again."""
        self.born = self.heard = self.confirmed_at = now
        self.generation = self.generation_sent = 0
        self.log_serial = self.log_serial_sent = log_serial
        self.asked_to_leave = False
        self.released = False
        self.silent = False
        self.violation: str | None = None
        """Which rule the worker has broken."""
        self._owed = 0

    @property
    def log_reopened(self) -> bool:
        """Whether the worker logs to the newest descriptor that it was to get."""
        return self.log_serial == self.log_serial_sent and not self.behind

    @property
    def confirmed(self) -> bool:
        """Whether the worker has confirmed all that it was told."""
        return self.generation == self.generation_sent and self.log_reopened

    def on_readable(self, now: float) -> None:
        """Note the worker's answers; its end is noted when the process is reaped."""
        for _ in range(MAX_ANSWERS_PER_TURN):
            try:
                answer = self.channel.receive()
                if answer is None:
                    self.interest = 0
                    return
                self._note(answer)
            except BlockingIOError:
                return
            except ProtocolError as error:
                self.accuse(str(error))
                return
            self.heard = now

    def on_exceptional(self, now: float) -> None:
        """Read: the end of the channel says the same."""
        self.on_readable(now)

    def on_crash(self, error: Exception, now: float) -> None:
        """Kill a worker that cannot be listened to."""
        self.accuse("could not be listened to")

    def tell(self, message: messages.Command, descriptors: Sequence[int] = ()) -> None:
        """Send `message`, or leave the worker `behind` for a reason that passes, or kill it."""
        try:
            self._send(message, descriptors)
        except OSError as error:
            if descriptors and error.errno in messages.PASSING:
                self.behind = True
            else:
                self.kill()

    def reopen_log(self, serial: int, descriptor: int) -> None:
        """Make the worker log to the file of `descriptor`, over a descriptor that shares no flags with it."""
        try:
            copy = sink.open_again(descriptor)
        except OSError:  # no descriptor is left
            self.behind = True
            return
        self.tell(messages.ReopenLog(serial), [copy])
        with suppress(OSError):  # of an earlier write (close(2))
            os.close(copy)

    def ping(self) -> None:
        """Send a heartbeat; a channel that is full is the silence of a worker that does not read."""
        with suppress(OSError):
            self._send(messages.Heartbeat())

    def accuse(self, violation: str) -> None:
        """Note which rule the worker has broken, listen to it no more, and kill it."""
        self.violation = violation
        self.interest = 0
        self.kill()

    def kill(self) -> None:
        """End the process at once; it is not reaped yet, so the pid is its own."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    def _send(self, message: messages.Command, descriptors: Sequence[int] = ()) -> None:
        self.channel.send(message, descriptors)
        self._owed += 1
        match message:
            case messages.Configure(generation):
                self.generation_sent = generation
            case messages.ReopenLog(serial):
                self.log_serial_sent = serial

    def _note(self, answer: messages.Answer) -> None:
        if not self._owed:
            raise ProtocolError("sent an answer to no command")
        self._owed -= 1
        match answer:
            case messages.Configured(generation):
                if not self.generation <= generation <= self.generation_sent:
                    raise ProtocolError("confirmed a configuration that it was not sent")
                self.generation = generation
            case messages.LogReopened(serial):
                if not self.log_serial <= serial <= self.log_serial_sent:
                    raise ProtocolError("confirmed a log that it was not sent")
                self.log_serial = serial
            case messages.DescriptorsLost():
                self.behind = True
            case messages.ListenersClosed():
                self.released = True


def fork(live: Callable[[WorkerChannel, Row], NoReturn], row: Row, now: float, log_serial: int) -> Hand:
    """Fork a worker that calls `live` and never returns; raise OSError without enough processes or descriptors."""
    ours, theirs = messages.pair()
    try:
        with signals.held():
            pid = os.fork()
            if not pid:
                live(theirs, row)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Hand(ours, row, pid, now, log_serial)
