"""TLS as a filter: wire in and out on the side of the socket, plain bytes in and out on the side of the connection.

Rules
    Whatever a peer sends, nothing raises: what is wrong becomes `failure`, and the alert about it stands in `outgoing`.
    The peer's close_notify ends what the peer says, no more: it still gets everything, then ours (RFC 8446 §6.1).
    A filter holds no more than one `receive` has brought, one record, and in `outgoing` what `STALL` says; during the
    handshake also the first `LONGEST_HELLO` bytes and the message that OpenSSL puts together: a ClientHello of 131,396
    bytes (CLIENT_HELLO_MAX_LENGTH) or 100 KiB of certificates (SSL_CTX_set_max_cert_list(3)), but no more.

Theory of operation
    To the owner of the socket a filter looks like a connection: while it `wants_read`, give what comes to `receive`;
    send what is `outgoing` and say in `sent` how much of it went. To the connection it looks like a socket: where that
    would block, `read` returns b"" and `write` takes nothing. But a socket that is not readable says nothing about
    `pending`: while that holds, call `read` whenever there is room, and also after `sent`.

    OpenSSL reads and writes two BIOs in memory (BIO_s_mem(3)). These never shrink, so that OpenSSL gets its wire in
    sips, and what it produces is collected at once. It is asked for one record at a time and keeps no other.

    End of file never reaches OpenSSL: CPython has it pass for a close_notify (SSL_OP_IGNORE_UNEXPECTED_EOF), and then
    nobody would know whether a stream is complete.

Known limits
    Protocols that a client offers beyond the first `LONGEST_HELLO` bytes of its handshake are not seen: where OpenSSL
    finds none of echod's among them, the handshake goes on without one.
    What `close` says before the handshake is complete is nothing: OpenSSL refuses (SSL_shutdown(3)).
    After `receive` of what a peer has made expensive (a KeyUpdate of 27 bytes costs some 20 microseconds), `read` can
    take long, so do not receive more than `WIRE` at once.
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar, cast

from echod.config.wording import printable
from echod.core.certificate import Name, distinguished
from echod.core.hello import LONGEST_HELLO, protocols, server_name

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

RECORD = 16 * 1024
"""Plain bytes in a record, at most (RFC 8446 §5.1)."""

SIP = 16 * 1024
"""Bytes of wire that OpenSSL gets at once; twice as many were a tenth faster, and room that stays taken."""

WIRE = 32 * 1024
"""Bytes of wire to receive at once, at most; see the known limits."""

BATCH = 64 * 1024
"""Bytes in `outgoing` from which on `write` takes nothing: enough for a call of send(2) to be worth it."""

STALL = 2 * BATCH
"""Bytes in `outgoing` from which on nothing is decoded, since a peer may demand replies that it never reads. `write`
does not get there alone: to a batch it adds a record. A KeyUpdate takes a record of its own and has a reply of the same
length (RFC 8446 §4.6.3). But 4,096 requests for a renegotiation fit into a record of TLS 1.2, and OpenSSL refuses each
of them in an alert of up to 85 bytes (AES-CBC and SHA-384), so that there can be 340 KiB more."""

LONGEST_TEXT = 255
"""Characters of a text that are shown, the same as of a host name."""

NO_APPLICATION_PROTOCOL = bytes.fromhex("15 0303 0002 02 78")
"""The record of the fatal alert that says so (RFC 7301 §3.2, RFC 8446 §5.1)."""

_ORIGIN = re.compile(r"^(ssl|tls)v[0-9]+ ")
"""With what OpenSSL's names of alerts begin: the version that defined them, not the one that is spoken."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the client and agreed with it; None for what is not. All texts are short and printable."""

    server_name: str | None
    """Whom the client wants to talk to (RFC 6066 §3), also where the handshake failed."""
    version: str | None
    cipher: str | None
    alpn: str | None
    resumed: bool
    client_subject: str | None
    """Of the client's certificate, as RFC 4514 writes it. There may be none in it, as in those of SPIFFE."""
    client_sha256: str | None
    """The fingerprint of the client's certificate."""


class Tls:
    """The server's side of one connection.

    `outgoing` is wire for the peer. `established` says that the handshake is complete, `peer_closed` that everything up
    to the peer's close_notify is read, and `failure` what has gone wrong, in a few words fit to print.
    """

    __slots__ = (
        "_alpn",
        "_closed",
        "_eof",
        "_hello",
        "_incoming",
        "_produced",
        "_server_name",
        "_tls",
        "_wire",
        "established",
        "failure",
        "outgoing",
        "peer_closed",
    )

    def __init__(self, context: ssl.SSLContext, alpn: frozenset[bytes] = frozenset()) -> None:
        """Begin a handshake as `context` says; `alpn` are the protocols that it was made with."""
        self.outgoing = bytearray()
        self.established = False
        self.peer_closed = False
        self.failure: str | None = None
        self._incoming = ssl.MemoryBIO()
        self._produced = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._produced, server_side=True)
        self._wire = bytearray()
        self._hello = bytearray()
        self._alpn = alpn
        self._server_name: str | None = None
        self._closed = False
        self._eof = False

    # -- towards the socket -------------------------------------------------------------------------------------------

    def receive(self, wire: bytes | bytearray | memoryview) -> None:
        """Take what came from the peer.

        You must next call `read` while there is something `pending` and room for it, and send what is `outgoing`.
        """
        if self._deaf:
            return
        self._wire += wire
        if not self._incoming.pending:  # OpenSSL would ask for it, by an exception: twice the time of a short message
            self._sip()
        if not self.established:
            self._hello += wire[: LONGEST_HELLO - len(self._hello)]
            self._establish()

    def receive_eof(self) -> None:
        """Note that nothing more will come."""
        self._eof = True

    def sent(self, count: int) -> None:
        """Note that the kernel has taken the first `count` bytes of `outgoing`."""
        del self.outgoing[:count]

    @property
    def wants_read(self) -> bool:
        """Whether more wire is of use: not while some waits already, be it for the peer to take its replies."""
        return not (self._deaf or self._eof or self.pending)

    # -- towards the connection ---------------------------------------------------------------------------------------

    def read(self, limit: int) -> bytes:
        """Return what the peer has said next, `limit` bytes at most; b"" for nothing now."""
        if limit < 1 or not (self.established or self._establish()):
            return b""
        plain = self._decode(partial(self._tls.read, min(limit, RECORD)))  # it takes memory for as many
        if plain == b"":  # close_notify, as CPython puts it: records without content are skipped
            self.peer_closed = True
            self._drop()
        return plain or b""

    def write(self, plain: bytes | bytearray | memoryview) -> int:
        """Encrypt the first bytes of `plain`, as many as there is room for, and return how many that were.

        You must next send what is `outgoing`, and come back with the rest of `plain` after that, or after the next
        `receive` where nothing is outgoing.
        """
        taken = 0
        with memoryview(plain) as view:
            while self._able and taken < len(view) and len(self.outgoing) < BATCH:
                count = self._call(partial(self._tls.write, view[taken : taken + RECORD]))
                if not count:  # the peer has begun a KeyUpdate: OpenSSL writes nothing before it has the rest of that
                    break
                taken += count
        return taken

    def close(self) -> None:
        """Say that there is no more to come from echod, and listen no longer; you must next send what is `outgoing`."""
        able = self._able
        self._closed = True
        self._drop()
        if able:
            with suppress(ssl.SSLError):  # it looks for the peer's close_notify too, which need not be there
                self._tls.unwrap()
            self._collect()

    @property
    def pending(self) -> bool:
        """Whether something was received that is not read yet."""
        return not self._deaf and bool(self._wire or self._incoming.pending or self._tls.pending())

    @property
    def truncated(self) -> bool:
        """Whether all is read and the stream has ended without close_notify, as when somebody has cut it short."""
        return self._eof and self.established and not (self._deaf or self.pending)

    @property
    def facts(self) -> Facts:
        """What is known by now."""
        version, cipher = self._tls.version(), self._tls.cipher()
        subject, fingerprint = self._client()
        return Facts(
            server_name=self._server_name or server_name(self._hello),
            version=version and version.removeprefix("TLSv"),
            cipher=cipher and cipher[0],
            alpn=self._tls.selected_alpn_protocol(),
            resumed=bool(self._tls.session_reused),
            client_subject=subject,
            client_sha256=fingerprint,
        )

    # -- within -------------------------------------------------------------------------------------------------------

    @property
    def _deaf(self) -> bool:
        return self._closed or self.peer_closed or self.failure is not None

    @property
    def _able(self) -> bool:
        return self.established and not self._closed and self.failure is None

    def _establish(self) -> bool:
        self.established = bool(self._decode(self._shake_hands))
        if self._alpn and self.outgoing and not self.failure:  # OpenSSL has read the ClientHello
            self._check_protocols()
        if self.established or self.failure:
            self._server_name = self._server_name or server_name(self._hello)
            self._hello.clear()
        return self.established

    def _check_protocols(self) -> None:
        """Refuse a client that offers protocols of which echod speaks none (RFC 7301 §3.2): `ssl` would go on."""
        offered = protocols(self._hello)
        if offered.isdisjoint(self._alpn) and offered:
            self.outgoing[:] = NO_APPLICATION_PROTOCOL
            self.failure = "no application protocol"
            self._drop()
        self._alpn = frozenset()

    def _shake_hands(self) -> bool:
        self._tls.do_handshake()
        return True

    def _decode(self, call: Callable[[], T]) -> T | None:
        """Have OpenSSL do what takes wire, for as long as there is some."""
        while not self._deaf and len(self.outgoing) < STALL:
            answer = self._call(call)
            if answer is not None or not self._sip():
                return answer
        return None

    def _call(self, call: Callable[[], T]) -> T | None:
        """Have OpenSSL do something; None for what it cannot do now, or never."""
        try:
            return call()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            self.failure = _cause(error)
            self._drop()
            return None
        finally:
            self._collect()

    def _sip(self) -> bool:
        """Give OpenSSL more wire; False if there is none."""
        sip = self._wire[:SIP]
        del self._wire[:SIP]
        return self._incoming.write(sip) > 0

    def _collect(self) -> None:
        self.outgoing += self._produced.read()

    def _drop(self) -> None:
        self._wire.clear()
        self._incoming.read()

    def _client(self) -> tuple[str | None, str | None]:
        """Return the subject and the fingerprint of the client's certificate."""
        subject = fingerprint = None
        with suppress(ssl.SSLError, ValueError):  # no handshake yet; or a text is not in the encoding that it claims
            der = self._tls.getpeercert(binary_form=True)
            fingerprint = der and sha256(der).hexdigest()
            certificate = self._tls.getpeercert()
            subject = certificate and printable(distinguished(cast("Name", certificate["subject"])), LONGEST_TEXT)
        return subject or None, fingerprint or None


def _cause(error: ssl.SSLError) -> str:
    words = _ORIGIN.sub("", (error.reason or "unknown error").lower().replace("_", " "))
    if isinstance(error, ssl.SSLCertVerificationError):
        words += f": {error.verify_message}"
    return printable(words, LONGEST_TEXT)
