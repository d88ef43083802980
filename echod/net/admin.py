"""The listener of `[admin]`: the doors and streams of echo, with another service behind them.

Rules
    Echo is not touched: these connections count for no limit and no number, and the log has them at level debug.
    Whoever asks has PATIENCE seconds in all. MOST may ask at once, and one more sends the oldest away: whoever holds
    connections open keeps nobody out, since an honest answer takes milliseconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from echod.config.models import Limits
from echod.core.connection import Connection
from echod.core.exchange import Exchange
from echod.core.lifecycle import State
from echod.events import AdminAnswered, CloseReason
from echod.net.listener import Listener
from echod.net.stream import Stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from echod.config import listeners as models
    from echod.core.exchange import Page
    from echod.events import DropReason, RefuseReason
    from echod.net.caller import Caller
    from echod.net.reactor import Reactor
    from echod.net.setting import Setting

PATIENCE = 5.0
"""Seconds from a connect to the last byte of the answer."""

MOST = 16
"""Connections at once in one worker; they fit into the descriptors that are kept free for what is no connection."""

READ = 4096
"""Bytes of a request that are read at once."""

PAGE = 16 * 1024 * 1024
"""More than any answer has; the page of 128 workers takes some hundred thousand bytes."""

LIMITS = Limits().model_copy(
    update={"idle_timeout": PATIENCE, "half_close_timeout": PATIENCE, "max_lifetime": PATIENCE, "buffer": PAGE}
)


class Porch:
    """A gate and a tally for connections that are none of echo's: all may come, and nobody counts them."""

    limit = 0
    per_address = 0

    def open(self) -> bool:
        """Be ready at any time."""
        return True

    def admit(self, key: int) -> int:
        """Let one in, without a number of its own."""
        return 0

    def refuse(self, reason: RefuseReason) -> int:
        """Give no number either."""
        return 0

    def shut(self) -> None:
        """Stay open."""

    def crowded(self) -> bool:
        """Have room."""
        return False

    def enter(self, key: int) -> bool:
        """Know no addresses."""
        return True

    def leave(self, key: int) -> None:
        """Have counted nobody in."""

    def moved(self, received: int, echoed: int) -> None:
        """Count no bytes: none of them is echo."""

    def closed(self, connection: Connection) -> None:
        """Count no end."""

    def echoed(self, count: int) -> None:
        """Count no datagram."""

    def dropped(self, reason: DropReason) -> None:
        """Count no datagram."""


class AdminListener(Listener):
    """One worker's share of the admin socket."""

    __slots__ = ("_guests", "_pages")

    def __init__(
        self,
        config: models.Listener,
        sock: socket.socket,
        reactor: Reactor,
        setting: Setting,
        pages: Callable[[str, str], Page],
    ) -> None:
        """Serve `pages`, which makes the page for a path and the value of an Accept header."""
        porch = Porch()
        super().__init__(config, sock, reactor, replace(setting, gate=porch, tally=porch, verbose=False))
        self._pages = pages
        self._guests: list[AdminStream] = []

    def _stream(self, sock: socket.socket, caller: Caller, host: str, now: float) -> Stream:
        self._guests = [guest for guest in self._guests if not guest.done]
        if len(self._guests) >= MOST:
            oldest = self._guests.pop(0)
            oldest.on_readable(now)  # what it has asked by now is answered
            oldest.fail(CloseReason.STOPPED, now)
            self._reactor.touch(oldest)
        guest = AdminStream(sock, caller, self._setting, Connection(LIMITS, now), Exchange(self._pages))
        self._guests.append(guest)
        return guest

    def release(self, now: float) -> None:
        """Be done: who waits at the socket is the siblings', or nobody's."""
        self.retire()


class AdminStream(Stream):
    """One connection that asks once and is answered."""

    __slots__ = ("_end", "_exchange")

    def __init__(
        self, sock: socket.socket, caller: Caller, setting: Setting, connection: Connection, exchange: Exchange
    ) -> None:
        super().__init__(sock, caller, setting, connection)
        self._exchange = exchange
        self._end = connection.opened + PATIENCE

    def on_readable(self, now: float) -> None:
        """Read a request; once it is answered, read on as every connection does that is about to end."""
        if self.connection.state is not State.OPEN:
            super().on_readable(now)
            return
        try:
            data = self.socket.recv(READ)
        except OSError as error:
            self._not_received(error, now)
            return
        if not data:
            self.connection.receive_eof(now)
            self._update()
            return
        answer = self._exchange.receive(data)
        if answer:
            # The connection gives back what it is given: here that is not what the peer has sent.
            self.connection.receive(memoryview(answer), now)
            self._send(now)
            self.connection.finish(CloseReason.PEER_CLOSED, now)
            self._advance(now)

    def on_deadline(self, now: float) -> None:
        """Cut whoever has had all the time there is."""
        if now >= self._end:
            self.fail(CloseReason.MAX_LIFETIME, now)
        else:
            super().on_deadline(now)

    def _update(self) -> None:
        super()._update()
        self.deadline = min(self.deadline, self._end)

    def _say_opened(self) -> None:
        """Say nothing before the end: one record is enough."""

    def _say_closed(self) -> None:
        caller, exchange = self.caller, self._exchange
        self._setting.emit(
            AdminAnswered(
                client_address=caller.name,
                client_port=caller.port,
                method=exchange.method,
                path=exchange.path,
                status=exchange.status,
                error=self._error,
            )
        )
