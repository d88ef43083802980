"""Which bytes are a header, what it says, and where what is none is refused."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echod.core.proxy import LONGEST, LONGEST_V1, LONGEST_V2, Header, HeaderError, parse
from tests.core.headers import HEADERS, SIGNATURE, V4, V6, binary, sealed, tls, vector

if TYPE_CHECKING:
    from ipaddress import IPv6Address

PAYLOADS = [
    b"\n",
    b"hello",
    b"\x16\x03\x01\x02\x00\x01",
    vector(2, b"54321"),
    b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n",
    SIGNATURE,
]

FAULTS = {
    "the connection does not begin with a PROXY header": [
        b"h",
        b"\0",
        b"\x16",  # of a TLS ClientHello
        b"S",  # SSH-2.0
        b"PO",  # POST
        b"p",
        b"Pr",
        b"PROXYT",
        b"PROXY\t",
        b"PROXY\r",
        b"\n",
        b"\r\r",
        b"\r\nG",
        b"\r\n\r\n\r",
        SIGNATURE[:-1] + b"\r",
    ],
    "the protocol is neither TCP4, TCP6 nor UNKNOWN": [
        b"PROXY t",
        b"PROXY  ",
        b"PROXY TCP5",
        b"PROXY TCP ",
        b"PROXY TCP44",
        b"PROXY \r",
        b"PROXY UD",
        b"PROXY UNKNOW\r",
        b"PROXY UNKNOWNS",
        b"PROXY UNKNOWN\t",
    ],
    "the line holds a CR or LF that is not part of CR LF": [
        b"PROXY \n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r ",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\r",
        b"PROXY UNKNOWN\n",
        b"PROXY UNKNOWN\rP",
        b"PROXY UNKNOWN any\n",
        b"PROXY UNKNOWN any\r\0",
    ],
    "the line is longer than 107 bytes": [
        b"PROXY UNKNOWN ".ljust(106),
        b"PROXY UNKNOWN ".ljust(106, b"\xff"),
        b"PROXY TCP6 " + b"0000:0000:0000:0000:0000:0000:255.255.255.255 " * 2 + b"655",
    ],
    "the line does not hold two addresses and two ports, each after exactly one space": [
        b"PROXY TCP4\r",
        b"PROXY TCP6 ::1\r",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3\r",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4 ",
    ],
    "an address is not one of the protocol named, in its canonical format": [
        b"PROXY TCP4  ",
        b"PROXY TCP4 \t",
        b"PROXY TCP4 01",
        b"PROXY TCP4 0x",
        b"PROXY TCP4 1.00",
        b"PROXY TCP4 256",
        b"PROXY TCP4 300",
        b"PROXY TCP4 1.1.1.260",
        b"PROXY TCP4 1.1.1 ",
        b"PROXY TCP4 1.1.1.1.",
        b"PROXY TCP4 1..",
        b"PROXY TCP4 .",
        b"PROXY TCP4 -",
        b"PROXY TCP4 :",
        b"PROXY TCP4 l",
        b"PROXY TCP4 1.1.1.1  ",
        b"PROXY TCP4 1.1.1.1 2.2.2.2/",
        b"PROXY TCP4 1.1.1.1\0",
        b"PROXY TCP4 \xd9",  # the first byte of another alphabet's digits
        b"PROXY TCP4 1.1.1.1 :",
        b"PROXY TCP6 1.",
        b"PROXY TCP6 g",
        b"PROXY TCP6 [",
        b"PROXY TCP6 :1",
        b"PROXY TCP6 :::",
        b"PROXY TCP6 1::2::",
        b"PROXY TCP6 12345",
        b"PROXY TCP6 1:2:3:4:5:6:7 ",
        b"PROXY TCP6 1:2:3:4:5:6:7::8",
        b"PROXY TCP6 1:2:3:4:5:6:7:8:",
        b"PROXY TCP6 ::ffff:192.0.2.256",
        b"PROXY TCP6 ::ffff:192.0.2.01",
        b"PROXY TCP6 1:2:3:4:5:6:7\r",
        b"PROXY TCP6 fe80::1%",
        b"PROXY TCP4 1.1.1.1%",
    ],
    "a port is not a decimal number from 0 to 65535 without leading zeros": [
        b"PROXY TCP4 1.1.1.1 2.2.2.2  ",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 00",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 07",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 65536",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 655350",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 70000",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 -",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 +",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1_",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 h",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3  ",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 \r",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\t",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 \xb2",
    ],
    "the version is not 2, as the signature says": [SIGNATURE + bytes([byte]) for byte in (0x00, 0x11, 0x31, 0xF1)],
    "the command is neither LOCAL nor PROXY": [SIGNATURE + bytes([byte]) for byte in (0x22, 0x2F)],
    "the address family or the transport is unknown": [
        SIGNATURE + bytes([0x21, byte]) for byte in (0x03, 0x13, 0x1F, 0x40, 0x41, 0xF1)
    ],
    "the header says that it is longer than 2048 bytes": [
        SIGNATURE + b"\x21\x11\x08",
        SIGNATURE + b"\x21\x11\xff",
        SIGNATURE + b"\x20\x00\x07\xf1",
    ],
    "the header says that it is shorter than its addresses": [
        SIGNATURE + b"\x21\x12\x00\x00",
        SIGNATURE + b"\x21\x11\x00\x0b",
        SIGNATURE + b"\x21\x21\x00\x23",
        SIGNATURE + b"\x21\x31\x00\xd7",
    ],
    "a type-length-value vector is longer than what holds it": [
        binary(V4 + b"\x04"),
        binary(V4 + b"\x04\x00"),
        binary(V4 + b"\x04\x00\x01"),
        binary(V4 + b"\x04\xff\xff" + bytes(9)),
        binary(V4 + vector(2, b"ab")[:-1]),
        binary(V4 + vector(2, b"a") + b"\0"),
        binary(V6 + b"\x04", 0x21),
        binary(V4 + tls(1, 0, b"\x21")),
        binary(V4 + tls(1, 0, b"\x21\x00\x08TLSv1.3") + vector(2, b"a")),
        binary(V4 + tls(0, 0, b"\x21\x00\x01")),
    ],
    "the checksum is wrong": [
        binary(V4 + vector(3, bytes(4))),
        binary(V4 + vector(3, b"")),
        binary(V4 + vector(3, sealed(V4)[-4:] + b"\0")),
        binary(V4 + vector(3, sealed(V4)[-4:][::-1])),
        sealed(V4)[:-1] + bytes([sealed(V4)[-1] ^ 1]),
        sealed(V4).replace(V4, V4[4:8] + V4[:4] + V4[8:]),
    ],
    "the vector about TLS is too short": [binary(V4 + vector(0x20, bytes(4))), binary(V4 + vector(0x20, b""))],
    "a value has more than 128 bytes": [binary(V4 + vector(5, bytes(129)))],
    "a value has more than 255 bytes": [
        *(binary(V4 + vector(kind, b"a" * 256)) for kind in (0x01, 0x02, 0x30)),
        *(binary(V4 + tls(1, 0, vector(kind, b"a" * 256))) for kind in (0x21, 0x22, 0x23)),
    ],
}

each_header = pytest.mark.parametrize(("data", "header"), HEADERS.items(), ids=lambda value: repr(value)[:60])
each_fault = pytest.mark.parametrize(
    ("cause", "data"),
    [(cause, data) for cause, sort in FAULTS.items() for data in sort],
    ids=lambda value: repr(value)[:60],
)


@each_header
def test_headers(data: bytes, header: Header) -> None:
    """A header says what its bytes say, whatever holds them."""
    assert header == parse(data)
    assert header == parse(bytearray(data))
    assert header == parse(memoryview(b"." + data + b".")[1:-1])


@each_header
def test_a_header_may_come_in_pieces(data: bytes, header: Header) -> None:
    """Byte by byte, which is also at every split, the answer is the same, and it comes with the last byte."""
    assert [None] * len(data) == [parse(data[:count]) for count in range(len(data))]


@each_header
@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
def test_payload_is_never_consumed(data: bytes, header: Header, payload: bytes) -> None:
    """What follows changes nothing: not a second header, not a vector behind the announced end, not TLS, not much."""
    assert header == parse(data + payload)
    assert header == parse(data + payload * 1000)


def test_local_means_that_nothing_replaces_the_addresses() -> None:
    """Whoever has a client has a server and a transport; the others keep the connection's own."""
    for header in HEADERS.values():
        assert header.local is (header.client is None) is (header.server is None)
        assert header.local or header.transport in {"tcp", "udp"}


@each_fault
def test_faults(cause: str, data: bytes) -> None:
    """What is no header is refused at the very byte that makes it none, with a cause, whatever follows."""
    for count in range(len(data)):
        assert parse(data[:count]) is None
    for rest in (b"", b" ", b"\r\n", bytes(5000)):
        with pytest.raises(HeaderError, match=f"^{re.escape(cause)}$"):
            parse(data + rest)


def test_lengths_that_promise_more() -> None:
    """A length of 65,535 is refused with the first bytes, not waited for."""
    with pytest.raises(HeaderError, match="longer than 2048"):
        parse(SIGNATURE + b"\x21\x11\xff\xff" + bytes(10))


def test_bounds_are_those_of_the_longest() -> None:
    """Both bounds are reached by a header, and an answer comes within them."""
    longest = {version: max(h.length for h in HEADERS.values() if h.version == version) for version in (1, 2)}

    assert {1: LONGEST_V1, 2: LONGEST_V2} == longest
    assert max(longest.values()) == LONGEST


# -- beginnings of addresses ------------------------------------------------------------------------------------------


def beginnings(words: set[str]) -> set[str]:
    """Return everything that one of the words begins with."""
    return {word[:count] for word in words for count in range(len(word) + 1)}


def groups(first: int, last: int) -> set[str]:
    """Return what `first` to `last` groups of an IPv6 address can look like, the last two of them perhaps dotted."""
    counts = range(first, last + 1)
    return {":".join("1" * n) for n in counts} | {":".join(["1"] * (n - 2) + ["1.1.1.1"]) for n in counts if n > 1}


FOUR = {".".join(parts) for parts in itertools.product(["2", "6", "22", "26", "62", "66", "222", "226"], repeat=4)}
SIX = groups(8, 8) | {
    f"{':'.join('1' * left)}::{tail}" for left in range(8) for tail in groups(0, 7 - left) if tail.count(":") < 7
}


@pytest.mark.parametrize(
    ("protocol", "addresses", "alphabet"), [("TCP4", FOUR, "26."), ("TCP6", SIX, "1:.")], ids=["TCP4", "TCP6"]
)
def test_an_address_is_refused_at_its_first_wrong_character(protocol: str, addresses: set[str], alphabet: str) -> None:
    """Of all words of a small alphabet, those are waited for that an address begins with, and no others."""
    good = beginnings(addresses)
    wrong = {word + more for word in good for more in alphabet} - good
    wrong = {word for word in wrong if protocol == "TCP4" or "11" not in word}  # whose groups were not listed

    for word in good:
        assert parse(f"PROXY {protocol} {word}".encode()) is None
    for word in wrong:
        with pytest.raises(HeaderError):
            parse(f"PROXY {protocol} {word}".encode())
    for word in addresses:
        assert parse(f"PROXY {protocol} {word} ".encode()) is None
    for word in good - addresses:
        with pytest.raises(HeaderError):
            parse(f"PROXY {protocol} {word} ".encode())


@settings(deadline=None)  # hundreds of calls, on a machine that may be busy
@given(st.ip_addresses(v=6), st.booleans(), st.booleans())
def test_every_spelling_is_read(address: IPv6Address, exploded: bool, upper: bool) -> None:
    """An address may be written in full or short, in either case, in pieces, and is shown in its one short spelling."""
    word = address.exploded if exploded else address.compressed
    line = f"PROXY TCP6 {word.upper() if upper else word} :: 1 2\r\n".encode()
    header = parse(line)

    assert header
    assert (str(address.ipv4_mapped or address), 1) == header.client
    assert [None] * len(line) == [parse(line[:count]) for count in range(len(line))]
