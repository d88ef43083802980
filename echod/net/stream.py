"""A connection and its socket: does what the connection wishes, tells it what came of it.

Rule: everything is decided in `core.connection`; here are only system calls and the order they are made in.

The hot path is `on_readable` of a connection at rest: one `recv_into` the worker's buffer, one `send` out of it, no
copy, nothing allocated that outlives the call, no change of interest, no log call.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from echod.core.connection import RECEIVE
from echod.core.lifecycle import CLOSED, State
from echod.events import (
    CloseReason,
    ConnectionClosed,
    ConnectionExceptional,
    ConnectionOpened,
    ConnectionReceived,
    ConnectionSent,
)
from echod.net import sockets, tcp
from echod.net.poller import READABLE, WRITABLE
from echod.net.reactor import Handler
from echod.net.setting import SMALL

if TYPE_CHECKING:
    from echod.core.connection import Connection
    from echod.net.caller import Caller
    from echod.net.setting import Setting


class Stream(Handler):
    """One accepted socket."""

    __slots__ = ("_error", "_room", "_setting", "_told", "caller", "connection", "socket")

    def __init__(self, sock: socket.socket, caller: Caller, setting: Setting, connection: Connection) -> None:
        super().__init__(sock.fileno())
        self.socket = sock
        self.caller = caller
        self.connection = connection
        self.deadline = self.connection.deadline
        self._error: str | None = None
        self._told = (0, 0)
        self._setting = setting
        self._room = min(connection.room, RECEIVE)
        self._say_opened()

    def on_readable(self, now: float) -> bool | None:
        """Receive what there is and offer it back at once: on the short way, as long as nothing else is to be done."""
        connection, setting = self.connection, self._setting
        if setting.verbose or not connection.passing:
            self._receive(now)
            return False
        try:
            count = self.socket.recv_into(setting.buffer, self._room)
        except OSError as error:
            self._not_received(error, now)
            return False
        if not count:
            connection.receive_eof(now)
            self._update()
            return False
        data = setting.views[count] if count <= SMALL else setting.buffer[:count]
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            connection.receive(data, now)
            self._lose(CloseReason.WRITE_FAILED, error, now)
            return False
        if sent == count:
            connection.passed += count
            connection.moved = now
            return True
        connection.receive(data, now)
        connection.sent(sent, now)
        self._advance(now)
        return False

    def _receive(self, now: float) -> None:
        connection, setting = self.connection, self._setting
        try:
            count = self.socket.recv_into(setting.buffer, min(connection.room, RECEIVE))
        except OSError as error:
            self._not_received(error, now)
            return
        if not count:
            connection.receive_eof(now)
            self._update()
            return
        self._echo(setting.buffer[:count], now)
        if self.interest != READABLE or not connection.at_rest:
            self._advance(now)

    def _echo(self, data: memoryview, now: float) -> None:
        if self._setting.verbose:
            self._setting.emit(ConnectionReceived(**self.caller.mark(), count=len(data)))
        self.connection.receive(data, now)
        if self.connection.outgoing:
            self._send(now)

    def on_writable(self, now: float) -> None:
        """Send more of what is held."""
        self._send(now)
        self._advance(now)

    def on_exceptional(self, now: float) -> None:
        """Take the pending error, or read on past the urgent mark."""
        error = sockets.pending_error(self.socket)
        if self._setting.verbose:
            self._setting.emit(
                ConnectionExceptional(**self.caller.mark(), error=sockets.error_name(error) if error else None)
            )
        if error:
            self._lose(CloseReason.READ_FAILED, error, now)
        elif self.connection.wants_read:
            self.on_readable(now)  # SO_OOBINLINE: urgent data stands in the stream like the rest
        else:
            # Urgent data is not watched for now, so this is a hang-up: the peer is gone in both directions.
            self.fail(CloseReason.PEER_RESET, now)

    def on_deadline(self, now: float) -> None:
        """Let the connection act on the time that has passed."""
        connection = self.connection
        busy = connection.state is State.DRAINING and sockets.in_flight(self.socket)
        connection.expire(now, in_flight=busy)
        self._advance(now)

    def on_crash(self, error: Exception, now: float) -> None:
        """Cut the connection that a defect of echod has spoilt, or that the kernel cannot watch."""
        self._error = sockets.error_name(error) if isinstance(error, OSError) else type(error).__name__
        self.fail(CloseReason.INTERNAL_ERROR, now)

    def drain(self, now: float) -> None:
        """Close once the peer is quiet; the caller touches this handler."""
        self.connection.drain(now)
        self._advance(now)

    def finish(self, reason: CloseReason, now: float) -> None:
        """Send what is held, then FIN; the caller touches this handler."""
        self.connection.finish(reason, now)
        self._advance(now)

    def fail(self, reason: CloseReason, now: float) -> None:
        """Cut the connection; the caller touches this handler."""
        self.connection.fail(reason, now)
        self._update()

    def close(self) -> None:
        """Close the socket and report the connection's whole life in one record."""
        connection = self.connection
        try:
            self._say_closed()  # this first: of a closed socket the kernel tells nothing
        finally:
            if connection.wants_reset:
                sockets.reset(self.socket)
            else:
                self.socket.close()
            self._setting.gate.leave(self.caller.key)
            self.account()
            self._setting.tally.closed(connection)

    def account(self) -> None:
        """Have the bytes counted that have moved since the last time: at the end, and now and then before."""
        told, self._told = self._told, (self.connection.received, self.connection.echoed)
        if told != self._told:
            self._setting.tally.moved(self._told[0] - told[0], self._told[1] - told[1])

    def _say_opened(self) -> None:
        self._setting.emit(ConnectionOpened.of(self.caller.facts()))

    def _say_closed(self) -> None:
        connection, facts = self.connection, self.caller.facts()
        facts["reason"] = connection.reason
        facts["duration"] = round(connection.lifetime, 6)
        facts["received"] = connection.received
        facts["echoed"] = connection.echoed
        facts["discarded"] = connection.discarded or None
        facts["error"] = self._error
        if facts["transport"] == "tcp":
            facts |= tcp.path(self.socket)
        self._add_details(facts)
        self._setting.emit(ConnectionClosed.of(facts))

    def _add_details(self, facts: dict[str, Any]) -> None:
        """Add what the closing record says beyond what all have."""

    def _not_received(self, error: OSError, now: float) -> None:
        if not isinstance(error, BlockingIOError):
            self._lose(CloseReason.READ_FAILED, error, now)

    def _send(self, now: float) -> None:
        connection = self.connection
        try:
            count = self.socket.send(connection.outgoing)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._lose(CloseReason.WRITE_FAILED, error, now)
            return
        connection.sent(count, now)
        if count and self._setting.verbose:
            self._setting.emit(ConnectionSent(**self.caller.mark(), count=count))

    def _advance(self, now: float) -> None:
        connection = self.connection
        if connection.wants_fin:
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._lose(CloseReason.WRITE_FAILED, error, now)
                return
            connection.fin_sent(now)
        self._update()

    def _lose(self, reason: CloseReason, error: OSError, now: float) -> None:
        self._error = sockets.error_name(error)
        self.fail(CloseReason.PEER_RESET if error.errno in sockets.RESET else reason, now)

    def _update(self) -> None:
        connection = self.connection
        if connection.state is CLOSED:
            self.retire()
            return
        self.interest = connection.wants_read * READABLE | connection.wants_write * WRITABLE
        self.deadline = connection.deadline


class QuietStream(Stream):
    """A connection that is reported only once there is a reason to; by itself, that a byte has come."""

    __slots__ = ("_said",)

    _said: bool

    def on_readable(self, now: float) -> bool | None:
        """Do as any other, and say that it is here once a byte has come."""
        passed = super().on_readable(now)
        self._speak_up()
        return passed

    def _speak_up(self) -> None:
        if self.connection.received and not self._said:
            self._introduce()

    def _introduce(self) -> None:
        self._said = True
        super()._say_opened()

    def _say_opened(self) -> None:
        self._said = False

    def _say_closed(self) -> None:
        if self._said:
            super()._say_closed()
