"""A worker as the supervisor sees it: a process, and the other end of a channel.

Rules
    What a worker says is only noted here; `crew` acts on it. It is not trusted: whoever says nonsense is killed.
    A worker that cannot be told something is killed: its successor will know.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from echod.net.reactor import Handler
from echod.process import channel as messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from echod.observe.scoreboard import Row
    from echod.process.channel import Channel


class Hand(Handler):
    """One worker, seen from the supervisor: its process and the other end of its channel."""

    __slots__ = (
        "asked_to_leave",
        "behind",
        "born",
        "channel",
        "generation",
        "heard",
        "pid",
        "released",
        "row",
        "silent",
    )

    def __init__(self, channel: Channel, row: Row, pid: int, now: float) -> None:
        super().__init__(channel.fileno())
        self.channel = channel
        self.row = row
        self.pid = pid
        self.behind = False
        """Whether something did not reach the worker for want of descriptors or memory, and is to be sent again."""
        self.born = self.heard = now
        self.generation = 0
        self.asked_to_leave = False
        self.released = False
        self.silent = False

    def on_readable(self, now: float) -> None:
        """Note what the worker says; its end is noted when the process is reaped."""
        while True:
            try:
                received = self.channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self.interest = 0
                return
            self.heard = now
            for fd in received.descriptors:  # none is ever asked for
                os.close(fd)
            match received.message:
                case messages.Answer(generation):
                    self.generation = int(generation)
                case messages.Missed():
                    self.behind = True
                case messages.Released():
                    self.released = True

    def on_exceptional(self, now: float) -> None:
        """Read: the end of the channel says the same."""
        self.on_readable(now)

    def on_crash(self, error: Exception, now: float) -> None:
        """End a worker that cannot be understood: whoever speaks to the network must not end the supervisor."""
        self.interest = 0
        self.kill()

    def tell(self, message: messages.Message, descriptors: Sequence[int] = ()) -> None:
        """Send `message`, or leave the worker `behind` for a reason that passes, or kill it."""
        try:
            self.channel.send(message, descriptors)
        except OSError as error:
            if descriptors and error.errno in messages.PASSING:
                self.behind = True
            else:
                self.kill()

    def kill(self) -> None:
        """End the process at once; it is not reaped yet, so the pid is its own."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Hang up."""
        self.channel.close()
