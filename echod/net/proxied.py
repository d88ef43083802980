"""A connection that a proxy passes on: the header of the PROXY protocol first, then the client's bytes.

Rule: what the header says is used only if it is whole and good; who may send one was decided before a byte was read
(`listener`). The lists and limits of addresses are held against the client, and not against the proxy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from echod.core import proxy
from echod.core.access import address_key
from echod.core.lifecycle import State
from echod.events import CloseReason, RefuseReason
from echod.net.stream import Setting, Stream

if TYPE_CHECKING:
    import socket

    from echod.core.access import Access
    from echod.net.caller import Caller


class ProxiedStream(Stream):
    """One accepted socket with a proxy at the other end."""

    __slots__ = ("_access", "_head", "_header", "_said")

    def __init__(  # noqa: PLR0913, PLR0917  # a connection is where everything meets
        self, sock: socket.socket, caller: Caller, setting: Setting, now: float, timeout: float, access: Access
    ) -> None:
        self._said = False
        self._head: bytearray | None = bytearray()
        self._header: proxy.Header | None = None
        self._access = access
        super().__init__(sock, caller, setting, now, timeout)

    def on_readable(self, now: float) -> None:
        """Read the header, and from then on what any connection brings."""
        if self._head is not None and self.connection.state is State.ESTABLISHING:
            self._read_header(self._head, now)
        else:
            super().on_readable(now)
        if self.connection.received and not self._said:
            self._introduce()

    def _read_header(self, head: bytearray, now: float) -> None:
        try:
            data = self.socket.recv(proxy.LONGEST - len(head))
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(CloseReason.READ_FAILED, error, now)
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
            self.caller = replace(self.caller, host=host, port=port, via=(self.caller.host, self.caller.port))
            objection = self._objection(host)
            if objection:
                self._error = objection
                self.fail(CloseReason.CLIENT_REFUSED, now)
                return
        if self.caller.host not in self._setting.quiet:
            self._introduce()
        self.connection.established(now)
        if payload:
            self.connection.receive(memoryview(payload), now)
            self._send(now)
        self._advance(now)

    def _objection(self, host: str) -> RefuseReason | None:
        if self._access and not self._access.admits(host):
            return RefuseReason.DENIED
        gate = self._setting.gate
        if gate.per_address:
            key = address_key(host)
            if not gate.enter(key):
                return RefuseReason.OVER_ADDRESS_LIMIT
            self.caller = replace(self.caller, key=key)
        return None

    def _reject(self, cause: str, now: float) -> None:
        self._error = cause
        self.fail(CloseReason.BAD_PROXY_HEADER, now)

    def _introduce(self) -> None:
        self._said = True
        super()._say_opened()

    def _say_opened(self) -> None:
        """Wait until it is known whose connection this is."""

    def _say_closed(self) -> None:
        quiet = self.caller.host in self._setting.quiet and not self.connection.received
        if not self._said and not quiet:
            self._introduce()
        if self._said:
            super()._say_closed()

    def _details(self) -> dict[str, Any]:
        header = self._header
        if not header:
            return {}
        tls = header.tls or proxy.Tls()
        return {
            "proxy_version": header.version,
            "proxy_authority": header.authority,
            "proxy_alpn": header.alpn,
            "proxy_unique_id": header.unique_id,
            "proxy_tls_version": tls.version,
            "proxy_tls_cipher": tls.cipher,
            "proxy_tls_name": tls.common_name,
            "proxy_tls_verified": tls.verified,
        }
