"""A connection that speaks TLS, after the header of the PROXY protocol where its listener wants one.

Rule: what is decoded and encoded is decided in `core.tls`; here that is joined to a socket and a connection. Only what
the kernel has taken counts as echoed: bytes that are encrypted stay in `connection.outgoing` until then, so that the
limits of a plain connection hold here too.

    socket ──wire──► Tls ──plain──► Connection ──outgoing──► Tls ──wire──► socket
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from echod.core.connection import RECEIVE
from echod.core.lifecycle import ECHOING, State
from echod.core.tls import WIRE, Tls
from echod.events import CloseReason, ConnectionReceived, ConnectionSent
from echod.net.poller import READABLE, WRITABLE
from echod.net.proxied import ProxiedStream

if TYPE_CHECKING:
    import socket
    import ssl

    from echod.core.connection import Connection
    from echod.net.caller import Caller
    from echod.net.proxied import Terms
    from echod.net.setting import Setting


class SecuredStream(ProxiedStream):
    """One accepted socket that speaks TLS."""

    __slots__ = ("_encrypted", "_heard", "_tls")

    def __init__(  # noqa: PLR0913, PLR0917  # a connection is where everything meets
        self,
        sock: socket.socket,
        caller: Caller,
        setting: Setting,
        connection: Connection,
        terms: Terms,
        context: ssl.SSLContext,
    ) -> None:
        self._tls = Tls(context, terms.alpn)
        self._encrypted = 0
        self._heard = False
        super().__init__(sock, caller, setting, connection, terms)

    def on_readable(self, now: float) -> None:
        """Take what there is of the wire, and move on whatever comes of it."""
        if self._head is not None or self.connection.state is State.LINGERING:
            super().on_readable(now)
            return
        try:
            wire = self.socket.recv(WIRE)
        except OSError as error:
            self._not_received(error, now)
            return
        self._take(wire, now)

    def on_writable(self, now: float) -> None:
        """Send more of the wire, and decode what waited for that."""
        self._advance(now)

    def _begin(self, payload: bytes, now: float) -> None:
        self.connection.prolong(self._terms.tls_timeout, now)
        if payload:
            self._take(payload, now)
        else:
            self._update()

    def _take(self, wire: bytes, now: float) -> None:
        if wire:
            self._heard = True
            self._tls.receive(wire)
        else:
            self._tls.receive_eof()
            self._leave_early(now)
        self._advance(now)

    def _leave_early(self, now: float) -> None:
        """Act on a peer that has gone before the handshake was complete."""
        if self.connection.state is State.ESTABLISHING and self._heard:
            self._error = "end of file"
            self.connection.finish(CloseReason.HANDSHAKE_FAILED, now)
        elif self.connection.state is State.ESTABLISHING:  # a health check
            self.connection.receive_eof(now)

    def _advance(self, now: float) -> None:
        self._decode(now)
        self._encode(now)
        while self._can_go_on:
            self._decode(now)
            self._encode(now)
        if self._tls.failure:  # found by decoding, or by encoding: OpenSSL does what it likes first
            self._give_up(self._tls.failure, now)
        if self._tls.outgoing:
            self._update()
        else:
            super()._advance(now)

    @property
    def _can_go_on(self) -> bool:
        """Whether what waits inside of TLS can be decoded now; neither socket nor kernel would ever say so."""
        connection, tls = self.connection, self._tls
        return tls.pending and not tls.outgoing and connection.state in ECHOING and connection.wants_read

    def _decode(self, now: float) -> None:
        connection, tls = self.connection, self._tls
        if tls.established and connection.state is State.ESTABLISHING:
            connection.established(now)
        while connection.state in ECHOING and connection.wants_read:
            plain = tls.read(min(connection.room, RECEIVE))
            if not plain:
                break
            if self._setting.verbose:
                self._setting.emit(ConnectionReceived(**self.caller.mark(), count=len(plain)))
            connection.receive(memoryview(plain), now)
            self._encode(now)
            self._speak_up()
        if tls.peer_closed and connection.state in ECHOING:
            self._end_of_input(now)
        elif tls.truncated and connection.state in ECHOING:
            connection.finish(CloseReason.TLS_TRUNCATED, now)

    def _give_up(self, cause: str, now: float) -> None:
        """End a connection whose peer makes no sense, and which is told so in an alert.

        Nothing can be encrypted any more: whoever is still owed something is cut.
        """
        connection = self.connection
        if connection.state is State.ESTABLISHING:
            self._error = cause
            connection.finish(CloseReason.HANDSHAKE_FAILED, now)
        elif connection.state in ECHOING or connection.outgoing:
            self._error = cause
            connection.fail(CloseReason.READ_FAILED, now)

    def _end_of_input(self, now: float) -> None:
        if self.connection.at_rest:  # then the connection would be over before ours is sent
            self._tls.close()
            self._flush(now)
        if not self.done and not (self.connection.at_rest and self._tls.outgoing):
            self.connection.receive_eof(now)

    def _encode(self, now: float) -> None:
        """Encrypt and send what is outgoing, until the kernel takes no more."""
        connection, tls = self.connection, self._tls
        while True:
            held = self._encrypted
            self._encrypt()
            if connection.sends_no_more and self._encrypted == len(connection.outgoing):
                tls.close()
            self._flush(now)
            if self.done:
                return
            # Wire is never shorter than what it carries: of what is encrypted, at least so much has gone.
            gone = max(0, self._encrypted - len(tls.outgoing))
            self._encrypted -= gone
            connection.sent(gone, now)
            if gone and self._setting.verbose:
                self._setting.emit(ConnectionSent(**self.caller.mark(), count=gone))
            if tls.outgoing or held + gone == 0 or not connection.outgoing:
                return

    def _encrypt(self) -> None:
        if self._encrypted < len(self.connection.outgoing):
            with memoryview(self.connection.outgoing) as held, held[self._encrypted :] as rest:
                self._encrypted += self._tls.write(rest)

    def _flush(self, now: float) -> None:
        tls = self._tls
        try:
            while tls.outgoing and not self.done:
                tls.sent(self.socket.send(tls.outgoing))
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(CloseReason.WRITE_FAILED, error, now)

    def _update(self) -> None:
        super()._update()
        connection, tls = self.connection, self._tls
        if self._head is None and connection.state is not State.LINGERING:
            # A KeyUpdate of which only a part has come keeps the outgoing back, and is itself input.
            stuck = bool(connection.outgoing) and not tls.outgoing
            readable = tls.wants_read and (connection.wants_read or stuck)
            self.interest = readable * READABLE | bool(tls.outgoing) * WRITABLE

    def _add_details(self, facts: dict[str, Any]) -> None:
        super()._add_details(facts)
        tls = self._tls.facts
        facts["tls_server_name"] = tls.server_name
        facts["tls_version"] = tls.version
        facts["tls_cipher"] = tls.cipher
        facts["tls_alpn"] = tls.alpn
        facts["tls_resumed"] = tls.resumed or None
        facts["tls_client_subject"] = tls.client_subject
        facts["tls_client_sha256"] = tls.client_sha256
