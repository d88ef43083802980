"""A worker as the supervisor sees it: a process, and the other end of a channel.

Rule: what a worker says is only noted here; `crew` acts on it. A worker that cannot be told something is killed: its
successor will know.
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

    __slots__ = ("asked_to_leave", "born", "channel", "generation", "heard", "pid", "released", "row", "silent")

    def __init__(self, channel: Channel, row: Row, pid: int, now: float) -> None:
        super().__init__(channel.fileno())
        self.channel = channel
        self.row = row
        self.pid = pid
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
            match received.message:
                case messages.Answer(generation):
                    self.generation = generation
                case messages.Released():
                    self.released = True

    def on_exceptional(self, now: float) -> None:
        """Read: the end of the channel says the same."""
        self.on_readable(now)

    def tell(self, message: messages.Message, descriptors: Sequence[int] = ()) -> None:
        """Send `message`, or kill the worker that cannot be reached."""
        try:
            self.channel.send(message, descriptors)
        except OSError:
            self.kill()

    def kill(self) -> None:
        """End the process at once; it is not reaped yet, so the pid is its own."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Hang up."""
        self.channel.close()
