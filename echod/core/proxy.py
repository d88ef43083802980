"""Reads the header of the PROXY protocol, in which a proxy tells whose connection it passes on.

Rule: a header is one to the letter or it is an error, and a line is refused at the first byte that rules it out.
Nothing is guessed: a listener either demands headers or knows nothing of them (§2), and who may send them is decided
before a byte is read.

Theory of operation
    Keep what arrives and call `parse` whenever there is more, until it answers with a header or raises. Everything
    after the header's `length` bytes is payload. The answer comes within `LONGEST` bytes; `HEADER_TIMEOUT` is yours
    to enforce, and input that ends before the answer was no header.

Known limits
    A line is refused for its length once it is too long, not as soon as what is missing would make it so.
    A header of version 2 is judged beyond its first 16 bytes only when it is complete, as §2.2 demands of addresses.
    The block of a LOCAL or UNSPEC header is discarded whole, a checksum in it included: nothing of it is used.

Sections (§) are those of doc/proxy-protocol.txt in the source of HAProxy, which is the specification.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import TYPE_CHECKING, Literal, TypeAlias

from echod.config.address import HIGHEST_PORT
from echod.core.crc32c import crc32c

if TYPE_CHECKING:
    from collections.abc import Callable

Transport: TypeAlias = Literal["tcp", "udp", "unix"]
Endpoint: TypeAlias = tuple[str, int]  # IP address and port; an IPv4 address mapped into IPv6 is shown as IPv4
IP: TypeAlias = type[IPv4Address] | type[IPv6Address]

HEADER_TIMEOUT = 5.0
"""Seconds for the whole header; §2 asks for at least 3, to cover a retransmission, nginx gives 30."""

WORD = b"PROXY "
"""What version 1 begins with (§2.1)."""

LONGEST_V1 = 107
"""Bytes of the longest line of version 1, CR LF included (§2.1)."""

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""What version 2 begins with (§2.2)."""

LONGEST_V2 = 2048
"""Bytes of the longest header of version 2. Its length field could say 65,551, but headers are "designed to fit in the
smallest TCP segment" of 536 bytes (§2); the rest is room for a client certificate. nginx takes 4096, HAProxy no value
above 1024."""

LONGEST = max(LONGEST_V1, LONGEST_V2)
"""Bytes within which `parse` has an answer."""

LONGEST_TEXT = 255
"""Bytes of the longest text: a host name (RFC 1035 §2.3.4), as in HAProxy, or a name of ALPN (RFC 7301 §3.1)."""

LONGEST_ID = 128
"""Bytes of the longest UNIQUE_ID (§2.2.5)."""

_CRLF = b"\r\n"
_CR_OR_LF = re.compile(rb"[\r\n]")
_IP: dict[bytes, IP] = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}
_UNKNOWN = b"UNKNOWN"
_ADDRESSES, _FIELDS = 2, 4  # the other two are ports
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_ENDINGS = (b"", b"0", b":", b"::", b".0", b"0.0", b".0.0", b"0.0.0", b".0.0.0", b"0.0.0.0")
"""Whatever can become an address or a port becomes one with one of these after it."""

_FIXED = len(SIGNATURE) + 4  # one byte of version and command, one of family and transport, two of length
_VERSION, _LOCAL, _PROXY = 2, 0, 1
_HIGHEST_FAMILY, _HIGHEST_TRANSPORT = 3, 2  # either may be 0, UNSPEC, and then there is no layout
_LAYOUTS: dict[int, tuple[Transport, IP | None, Struct]] = {
    0x11: ("tcp", IPv4Address, Struct("!4s4sHH")),
    0x12: ("udp", IPv4Address, Struct("!4s4sHH")),
    0x21: ("tcp", IPv6Address, Struct("!16s16sHH")),
    0x22: ("udp", IPv6Address, Struct("!16s16sHH")),
    0x31: ("unix", None, Struct("!108s108s")),
    0x32: ("unix", None, Struct("!108s108s")),
}

_TLV = Struct("!BH")
_ALPN, _AUTHORITY, _CRC32C, _UNIQUE_ID, _SSL, _NETNS = 0x01, 0x02, 0x03, 0x05, 0x20, 0x30
_SSL_VERSION, _SSL_CN, _SSL_CIPHER = 0x21, 0x22, 0x23  # others, NOOP (0x04) among them, are skipped (§2.2)
_NOWHERE = slice(0, 0)
_TLS = Struct("!BL")
_BY_TLS, _CERTIFICATE = 0x01, 0x02 | 0x04  # certificate: on this connection, or earlier in its session (§2.2.6)


class HeaderError(ValueError):
    """There is no header and there cannot be one; the text says why, without a word of the peer's."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What the proxy says of the client's TLS (§2.2.6)."""

    version: str | None = None
    cipher: str | None = None
    common_name: str | None = None
    """Of the client's certificate."""
    verified: bool | None = None
    """Whether the client's certificate was found good; None when it presented none."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the proxy says of a connection. Its texts may hold any character, but are bounded and valid Unicode."""

    version: Literal[1, 2]
    length: int
    """Bytes that the header takes up; payload follows."""
    transport: Transport | None = None
    client: Endpoint | None = None
    server: Endpoint | None = None
    alpn: str | None = None
    authority: str | None = None
    unique_id: str | None = None
    """In hexadecimal."""
    netns: str | None = None
    tls: Tls | None = None

    @property
    def local(self) -> bool:
        """Whether the connection's addresses stay: for LOCAL, UNKNOWN, UNSPEC, and unix, treated as UNSPEC (§2.2)."""
        return self.client is None


def parse(data: bytes | bytearray | memoryview) -> Header | None:
    """Return the header that `data` begins with, None while more is needed; raise HeaderError where none can be."""
    head = bytes(memoryview(data)[:LONGEST])
    if SIGNATURE.startswith(head[: len(SIGNATURE)]):
        return _parse_binary(head)
    if WORD.startswith(head[: len(WORD)]):
        return _parse_line(head)
    raise HeaderError("the connection does not begin with a PROXY header")


# -- version 1 --------------------------------------------------------------------------------------------------------


def _parse_line(head: bytes) -> Header | None:
    text = _CR_OR_LF.split(head, 1)[0][: LONGEST_V1 - len(_CRLF)]
    end = head[len(text) : len(text) + len(_CRLF)]
    ends = _parse_text(text, complete=end.startswith(b"\r"))  # this first: what is wrong earlier is the cause
    if end == _CRLF:
        return Header(1, len(text) + len(end), "tcp", *ends) if ends else Header(1, len(text) + len(end))
    if _CRLF.startswith(end):
        return None
    if _CR_OR_LF.match(end):  # also in what UNKNOWN ignores: a single one must not end a line (§2.1)
        raise HeaderError("the line holds a CR or LF that is not part of CR LF")
    raise HeaderError(f"the line is longer than {LONGEST_V1} bytes")


def _parse_text(text: bytes, *, complete: bool) -> tuple[Endpoint, Endpoint] | None:
    """Return client and server; None if there are none to return yet, or at all."""
    protocol, *fields = text[len(WORD) :].split(b" ")
    if protocol in _IP:
        return _parse_fields(fields, _IP[protocol], complete=complete)
    begun = not fields and not complete
    if protocol != _UNKNOWN and not (begun and any(known.startswith(protocol) for known in (*_IP, _UNKNOWN))):
        raise HeaderError("the protocol is neither TCP4, TCP6 nor UNKNOWN")
    return None


def _parse_fields(fields: list[bytes], ip: IP, *, complete: bool) -> tuple[Endpoint, Endpoint] | None:
    """Return client and server; None while the line is not complete, so that its last field may go on."""
    done = fields if complete else fields[:-1]
    addresses = [_read_address(word, ip) for word in done[:_ADDRESSES]]
    ports = [_read_port(word) for word in done[_ADDRESSES:_FIELDS]]
    if len(fields) > _FIELDS or (complete and len(fields) < _FIELDS):
        raise HeaderError("the line does not hold two addresses and two ports, each after exactly one space")
    if complete:
        return (addresses[0], ports[0]), (addresses[1], ports[1])
    for begun in fields[-1:]:
        _check_begun(begun, _read_port if len(done) >= _ADDRESSES else partial(_read_address, ip=ip))
    return None


def _check_begun(word: bytes, read: Callable[[bytes], object]) -> None:
    """Raise what `read` does, unless it could read `word` if more came after it."""
    for ending in _ENDINGS:
        with suppress(HeaderError):
            read(word + ending)
            return
    read(word)


def _read_address(word: bytes, ip: IP) -> str:
    with suppress(ValueError):
        address = ip(word.decode("ascii"))
        if b"%" not in word:  # a zone means something on one machine only (RFC 4007 §6)
            return _shown(address)
    raise HeaderError("an address is not one of the protocol named, in its canonical format")


def _read_port(word: bytes) -> int:
    if not _PORT.fullmatch(word) or int(word) > HIGHEST_PORT:
        raise HeaderError(f"a port is not a decimal number from 0 to {HIGHEST_PORT} without leading zeros")
    return int(word)


def _shown(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


# -- version 2 --------------------------------------------------------------------------------------------------------


def _parse_binary(head: bytes) -> Header | None:
    start = head[len(SIGNATURE) : _FIXED]
    length = _FIXED + int.from_bytes(start[2:].ljust(2, b"\0"), "big")  # while a byte is missing, the least it can be
    _check_start(start)
    if length > LONGEST_V2:
        raise HeaderError(f"the header says that it is longer than {LONGEST_V2} bytes")
    if len(head) < _FIXED:
        return None
    local, family = start[0] & 0xF == _LOCAL, start[1]
    if local or family not in _LAYOUTS:
        return Header(2, length) if len(head) >= length else None
    if length < _FIXED + _LAYOUTS[family][-1].size:
        raise HeaderError("the header says that it is shorter than its addresses")
    return _parse_block(head[:length], *_LAYOUTS[family]) if len(head) >= length else None


def _check_start(start: bytes) -> None:
    """Raise where the bytes after the signature, as far as they are there, cannot be right."""
    if start and start[0] >> 4 != _VERSION:
        raise HeaderError("the version is not 2, as the signature says")
    if start and start[0] & 0xF not in {_LOCAL, _PROXY}:
        raise HeaderError("the command is neither LOCAL nor PROXY")
    if not start[1:] or start[0] & 0xF == _LOCAL:  # whose family "is ignored" (§2.2)
        return
    if start[1] >> 4 > _HIGHEST_FAMILY or start[1] & 0xF > _HIGHEST_TRANSPORT:
        raise HeaderError("the address family or the transport is unknown")


def _parse_block(head: bytes, transport: Transport, ip: IP | None, layout: Struct) -> Header:
    """Read the addresses, and the vectors of type, length and value after them, in a complete header."""
    vectors = _find_vectors(head, _FIXED + layout.size, len(head))
    if _CRC32C in vectors:
        _check_sum(head, vectors[_CRC32C])
    ends: tuple[Endpoint | None, Endpoint | None] = None, None
    if ip:
        source, destination, *ports = layout.unpack_from(head, _FIXED)
        ends = (_shown(ip(source)), ports[0]), (_shown(ip(destination)), ports[1])
    alpn, authority, netns = (_text(head, vectors, kind) for kind in (_ALPN, _AUTHORITY, _NETNS))
    unique_id = _value(head, vectors, _UNIQUE_ID, LONGEST_ID)
    tls = _read_tls(head, vectors[_SSL]) if _SSL in vectors else None
    return Header(2, len(head), transport, *ends, alpn, authority, unique_id.hex() or None, netns, tls)


def _find_vectors(head: bytes, start: int, end: int) -> dict[int, slice]:
    """Return where in `head` the values are, by kind; of several of a kind the first counts, as in HAProxy."""
    found: dict[int, slice] = {}
    while start < end:
        value = start + _TLV.size
        kind, size = _TLV.unpack_from(head, start) if value <= end else (0, 0)
        start = value + size
        if start > end:
            raise HeaderError("a type-length-value vector is longer than what holds it")
        found.setdefault(kind, slice(value, start))
    return found


def _check_sum(head: bytes, where: slice) -> None:
    """Raise where the header does not have the checksum that it says it has (§2.2.3)."""
    zeroed = head[: where.start] + bytes(where.stop - where.start) + head[where.stop :]
    if head[where] != crc32c(zeroed).to_bytes(4, "big"):
        raise HeaderError("the checksum is wrong")


def _read_tls(head: bytes, where: slice) -> Tls | None:
    if where.stop - where.start < _TLS.size:
        raise HeaderError("the vector about TLS is too short")
    flags, failure = _TLS.unpack_from(head, where.start)
    vectors = _find_vectors(head, where.start + _TLS.size, where.stop)
    version, cipher, name = (_text(head, vectors, kind) for kind in (_SSL_VERSION, _SSL_CIPHER, _SSL_CN))
    return Tls(version, cipher, name, not failure if flags & _CERTIFICATE else None) if flags & _BY_TLS else None


def _text(head: bytes, vectors: dict[int, slice], kind: int) -> str | None:
    """Decode what is to be UTF-8 or its subset US-ASCII; bytes that are not are escaped, and no text is None."""
    return _value(head, vectors, kind, LONGEST_TEXT).decode("utf-8", "backslashreplace") or None


def _value(head: bytes, vectors: dict[int, slice], kind: int, longest: int) -> bytes:
    value = head[vectors.get(kind, _NOWHERE)]
    if len(value) > longest:
        raise HeaderError(f"a value has more than {longest} bytes")
    return value
