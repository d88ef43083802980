"""Headers of the PROXY protocol, each with what it says; made with nothing of the parser that is tested."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from echod.core.proxy import Header, Tls

if TYPE_CHECKING:
    from collections.abc import Mapping

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4 = bytes.fromhex("c0000201 cb007109 dc04 01bb")  # 192.0.2.1 and 203.0.113.9, ports 56324 and 443
V6 = bytes.fromhex("20010db8 00000000 00000000 00000001 20010db8 00010000 00000000 00000007 ffff 0007")
MAPPED = bytes.fromhex("00000000 00000000 0000ffff c0000201 00000000 00000000 00000000 00000001 dc04 01bb")
UNIX = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")

CLIENT4, SERVER4 = ("192.0.2.1", 56324), ("203.0.113.9", 443)
CLIENT6, SERVER6 = ("2001:db8::1", 65535), ("2001:db8:1::7", 7)


def checksum(data: bytes) -> int:
    """Return the CRC-32C of `data` bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


def binary(block: bytes, family: int = 0x11, command: int = 0x21) -> bytes:
    """Return a header of version 2."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


def vector(kind: int, value: bytes) -> bytes:
    """Return a type, a length and a value."""
    return struct.pack("!BH", kind, len(value)) + value


def sealed(block: bytes, after: bytes = b"", family: int = 0x11) -> bytes:
    """Return a header of version 2 with its checksum between two parts of it."""
    blank = binary(block + vector(3, bytes(4)) + after, family)
    return binary(block + vector(3, checksum(blank).to_bytes(4, "big")) + after, family)


def tls(client: int, verify: int, *vectors: bytes) -> bytes:
    """Return what tells of the client's TLS."""
    return vector(0x20, struct.pack("!BL", client, verify) + b"".join(vectors))


def by_tls(**said: str | bool | None) -> Header:
    """Return what `binary(V4 + tls(…))` says, but for the length."""
    return Header(2, 0, "tcp", CLIENT4, SERVER4, tls=Tls(**said))  # type: ignore[arg-type]


LINES: Mapping[bytes, Header] = {
    b"PROXY TCP4 192.0.2.1 203.0.113.9 56324 443\r\n": Header(1, 0, "tcp", CLIENT4, SERVER4),
    b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n": Header(
        1,
        0,
        "tcp",
        ("0.0.0.0", 0),
        ("255.255.255.255", 65535),  # an address that is read
    ),
    b"PROXY TCP6 2001:db8::1 2001:db8:1::7 65535 7\r\n": Header(1, 0, "tcp", CLIENT6, SERVER6),
    b"PROXY TCP6 2001:0DB8:0:0:0:0:0:1 2001:db8:1:0000::0007 65535 7\r\n": Header(1, 0, "tcp", CLIENT6, SERVER6),
    b"PROXY TCP6 ::ffff:192.0.2.1 ::FFFF:cb00:7109 56324 443\r\n": Header(1, 0, "tcp", CLIENT4, SERVER4),
    b"PROXY TCP6 :: 1:2:3:4:5:6:1.2.3.4 0 1\r\n": Header(1, 0, "tcp", ("::", 0), ("1:2:3:4:5:6:102:304", 1)),
    b"PROXY TCP6 %b %b 65535 65535\r\n" % ((b":".join([b"ffff"] * 8),) * 2): Header(
        1, 0, "tcp", (":".join(["ffff"] * 8), 65535), (":".join(["ffff"] * 8), 65535)
    ),
    b"PROXY UNKNOWN\r\n": Header(1, 0),
    b"PROXY UNKNOWN \r\n": Header(1, 0),
    b"PROXY UNKNOWN 192.0.2.1 203.0.113.9 56324 443\r\n": Header(1, 0),
    b"PROXY UNKNOWN \0\xff  TCP4 1 PROXY\t\r\n": Header(1, 0),
    b"PROXY UNKNOWN %b\r\n" % (b"\xff" * 91): Header(1, 0),  # 107 bytes
}

BLOCKS: Mapping[bytes, Header] = {
    binary(V4): Header(2, 0, "tcp", CLIENT4, SERVER4),
    binary(V4, 0x12): Header(2, 0, "udp", CLIENT4, SERVER4),
    binary(V6, 0x21): Header(2, 0, "tcp", CLIENT6, SERVER6),
    binary(V6, 0x22): Header(2, 0, "udp", CLIENT6, SERVER6),
    binary(MAPPED, 0x21): Header(2, 0, "tcp", CLIENT4, ("::1", 443)),
    binary(UNIX, 0x31): Header(2, 0, "unix"),
    binary(UNIX + vector(2, b"a"), 0x32): Header(2, 0, "unix", authority="a"),
    # LOCAL: the block is skipped, whatever it holds and whatever the family is.
    binary(b"", 0x00, 0x20): Header(2, 0),
    binary(V4, 0x11, 0x20): Header(2, 0),
    binary(b"\1\2\3", 0x11, 0x20): Header(2, 0),
    binary(b"\xff" * 2032, 0xFF, 0x20): Header(2, 0),  # 2048 bytes
    # UNSPEC, in either half.
    binary(b"", 0x00): Header(2, 0),
    binary(V4, 0x00): Header(2, 0),
    binary(b"\xff" * 9, 0x10): Header(2, 0),
    binary(b"", 0x02): Header(2, 0),
    binary(b"", 0x30): Header(2, 0),
}

VECTORS: Mapping[bytes, Header] = {
    vector(1, b"h2") + vector(2, b"echo.example"): Header(
        2, 0, "tcp", CLIENT4, SERVER4, alpn="h2", authority="echo.example"
    ),
    vector(5, bytes(range(128))): Header(2, 0, "tcp", CLIENT4, SERVER4, unique_id=bytes(range(128)).hex()),
    vector(0x30, b"blue"): Header(2, 0, "tcp", CLIENT4, SERVER4, netns="blue"),
    # Skipped: NOOP, what is not known, what is nested where it has no meaning.
    vector(4, b"\xff" * 9) + vector(4, b"") + vector(0xEA, b"\1vpce") + vector(0x22, b"x"): Header(
        2, 0, "tcp", CLIENT4, SERVER4
    ),
    # Nothing is nothing, and the first counts.
    vector(1, b"") + vector(5, b"") + vector(2, b"first") + vector(2, b"second"): Header(
        2, 0, "tcp", CLIENT4, SERVER4, authority="first"
    ),
    # Text of the peer, of whatever characters and bytes.
    vector(2, "ä\n\x1b[2J".encode() + b"\xff\xed\xa0\x80"): Header(
        2, 0, "tcp", CLIENT4, SERVER4, authority="ä\n\x1b[2J\\xff\\xed\\xa0\\x80"
    ),
    vector(2, b"a" * 255): Header(2, 0, "tcp", CLIENT4, SERVER4, authority="a" * 255),
    vector(4, bytes(2017)): Header(2, 0, "tcp", CLIENT4, SERVER4),  # 2048 bytes
    # TLS: without a certificate, with a good one, with another one, of an earlier connection, and none at all.
    tls(1, 0, vector(0x21, b"TLSv1.3"), vector(0x23, b"TLS_AES_128_GCM_SHA256")): by_tls(
        version="TLSv1.3", cipher="TLS_AES_128_GCM_SHA256"
    ),
    tls(3, 0, vector(0x28, b"\x30" * 1500), vector(0x22, "Zoë".encode())): by_tls(common_name="Zoë", verified=True),
    tls(7, 10, vector(0x22, b"\xff")): by_tls(common_name="\\xff", verified=False),
    tls(5, 0): by_tls(verified=True),
    tls(1, 1): by_tls(),
    tls(6, 0, vector(0x21, b"TLSv1.2")): Header(2, 0, "tcp", CLIENT4, SERVER4),
}

SEALED: Mapping[bytes, Header] = {
    sealed(V4): Header(2, 0, "tcp", CLIENT4, SERVER4),
    sealed(V6, vector(2, b"b"), 0x22): Header(2, 0, "udp", CLIENT6, SERVER6, authority="b"),
    sealed(V4 + vector(2, b"a"), vector(4, bytes(1000))): Header(2, 0, "tcp", CLIENT4, SERVER4, authority="a"),
}

HEADERS: Mapping[bytes, Header] = {
    data: replace(header, length=len(data))
    for data, header in {
        **LINES,
        **BLOCKS,
        **{binary(V4 + vectors): header for vectors, header in VECTORS.items()},
        **SEALED,
    }.items()
}
"""Every kind of header, each the whole of its bytes."""
