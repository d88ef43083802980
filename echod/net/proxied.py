"""A connection that a proxy passes on: the header of the PROXY protocol first, then the client's bytes.

Rule: what the header says is used only if it is whole and good; who may send one was decided before a byte was read
(`listener`). The lists and limits of addresses are held against the client, and not against the proxy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from echod.core import proxy
from echod.core.access import address_key
from echod.core.lifecycle import State
from echod.events import CloseReason, RefuseReason
from echod.net.stream import QuietStream

if TYPE_CHECKING:
    import socket

    from echod.core.access import Access
    from echod.core.connection import Connection
    from echod.net.caller import Caller
    from echod.net.setting import Setting


_WRONG = frozenset(
    {
        CloseReason.BAD_PROXY_HEADER,
        CloseReason.CLIENT_REFUSED,
        CloseReason.HANDSHAKE_FAILED,
        CloseReason.HANDSHAKE_TIMEOUT,
    }
)
"""Ends that no health check has, and that are reported also of a quiet client."""


@dataclass(frozen=True)
class Terms:
    """What a listener asks of those who come in, beyond a byte."""

    access: Access
    """Who may come in, where a proxy says who it is."""
    proxy_timeout: float
    """Seconds for the header of the PROXY protocol; 0 for no header."""
    tls_timeout: float
    """Seconds for the handshake of TLS; 0 for none."""
    alpn: frozenset[bytes] = frozenset()
    """The protocols of which a client must offer one, if it offers any (ALPN)."""

    @property
    def timeout(self) -> float:
        """Seconds for what comes first; 0 for nothing before the payload."""
        return self.proxy_timeout or self.tls_timeout


class ProxiedStream(QuietStream):
    """One accepted socket with a proxy at the other end."""

    __slots__ = ("_head", "_header", "_terms")

    def __init__(
        self, sock: socket.socket, caller: Caller, setting: Setting, connection: Connection, terms: Terms
    ) -> None:
        self._head: bytearray | None = bytearray() if terms.proxy_timeout else None
        self._header: proxy.Header | None = None
        self._terms = terms
        super().__init__(sock, caller, setting, connection)
        if self._head is None and not self._quiet:
            self._introduce()

    def on_readable(self, now: float) -> bool | None:
        """Read the header, and from then on what any connection brings."""
        if self._head is None or self.connection.state is not State.ESTABLISHING:
            return super().on_readable(now)
        self._read_header(self._head, now)
        return False

    def _read_header(self, head: bytearray, now: float) -> None:
        try:
            data = self.socket.recv(proxy.LONGEST - len(head))
        except OSError as error:
            self._not_received(error, now)
            return
        if not data and head:
            self._reject("the header is cut short", now)
            return
        if not data:  # a health check of the proxy's
            self.connection.receive_eof(now)
            self._update()
            return
        head += data
        try:
            header = proxy.parse(head)
        except proxy.HeaderError as error:
            self._reject(str(error), now)
            return
        if header:
            self._establish(header, bytes(head[header.length :]), now)

    def _establish(self, header: proxy.Header, payload: bytes, now: float) -> None:
        self._head = None
        self._header = header
        if header.client:
            host, port = header.client
            self.caller = replace(self.caller, host=host, port=port, via=(self.caller.name, self.caller.port))
            objection = self._objection(host)
            if objection:
                self._error = objection
                self.fail(CloseReason.CLIENT_REFUSED, now)
                return
        if not self._quiet:
            self._introduce()
        self._begin(payload, now)

    def _begin(self, payload: bytes, now: float) -> None:
        """Go on with the first bytes after the header."""
        self.connection.established(now)
        if payload:
            self._echo(memoryview(payload), now)
            self._speak_up()
        self._advance(now)

    def _objection(self, host: str) -> RefuseReason | None:
        if self._terms.access and not self._terms.access.admits(host):
            return RefuseReason.DENIED
        gate = self._setting.gate
        if gate.per_address:
            key = address_key(host)
            if not gate.enter(key):
                return RefuseReason.OVER_ADDRESS_LIMIT
            self.caller.key = key
        return None

    def _reject(self, cause: str, now: float) -> None:
        self._error = cause
        self.fail(CloseReason.BAD_PROXY_HEADER, now)

    @property
    def _quiet(self) -> bool:
        return self.caller.ip in self._setting.quiet

    def _say_closed(self) -> None:
        if not self._said and (not self._quiet or self.connection.reason in _WRONG):  # nobody has told whose it was
            self._introduce()
        super()._say_closed()

    def _add_details(self, facts: dict[str, Any]) -> None:
        header = self._header
        if header:
            tls = header.tls or proxy.Tls()
            facts["proxy_version"] = header.version
            facts["proxy_authority"] = header.authority
            facts["proxy_alpn"] = header.alpn
            facts["proxy_unique_id"] = header.unique_id
            facts["proxy_tls_version"] = tls.version
            facts["proxy_tls_cipher"] = tls.cipher
            facts["proxy_tls_name"] = tls.common_name
            facts["proxy_tls_verified"] = tls.verified
