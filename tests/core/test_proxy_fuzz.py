"""Any bytes: a header, "more please" or one kind of error; and a header only where the bytes say what it says.

The oracle is the package proxy-protocol. It must be given exactly a header: a line with something after it is never
complete for it, and what follows a block it takes for vectors. It accepts more than the specification, so it is asked
only whether what is accepted here means the same.
"""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.tlv import ProxyProtocolSSLTLV, ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from echod.core.proxy import LONGEST, LONGEST_ID, LONGEST_TEXT, Header, HeaderError, Tls, parse
from tests.core.headers import HEADERS, SIGNATURE, V4, V6, binary, checksum, sealed, vector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxyprotocol import ProxyProtocol

    from echod.core.proxy import Transport

PACE = 20_000  # inputs in a second of fuzzing: counted, since the core's tests read no clock, and easily kept

ports = st.integers(0, 65535)
texts = st.text(min_size=1, max_size=60)
names = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=60)


def answer(data: bytes) -> Header | str | None:
    """Return the header, None for "more please", or the cause of a fault; any other exception escapes."""
    try:
        return parse(data)
    except HeaderError as error:
        return str(error)


# -- what the bytes say, read a second time ----------------------------------------------------------------------------


def packed(word: str, family: socket.AddressFamily) -> bytes:
    """Return the bytes of an address as the system reads it, IPv4 within IPv6 where that is the family."""
    mapped = family is socket.AF_INET6 and ":" not in word
    return bytes(10) + b"\xff\xff" + socket.inet_aton(word) if mapped else socket.inet_pton(family, word)


def encoded(header: Header, family: socket.AddressFamily) -> bytes:
    """Return the addresses of a header as a block of version 2 has them."""
    assert header.client
    assert header.server
    (client, client_port), (server, server_port) = header.client, header.server
    return packed(client, family) + packed(server, family) + struct.pack("!HH", client_port, server_port)


def check_line(line: bytes, header: Header) -> None:
    """Hold that a line says what its header says, or that it names no addresses."""
    assert len(line) <= 107
    assert line.endswith(b"\r\n")
    assert 1 == line.count(b"\r") == line.count(b"\n")
    if header.local:
        assert header == Header(1, len(line))
        assert line.startswith((b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r"))
        return
    begin, protocol, client, server, *numbers = line.decode("ascii").removesuffix("\r\n").split(" ")
    family = {"TCP4": socket.AF_INET, "TCP6": socket.AF_INET6}[protocol]
    claimed = socket.inet_pton(family, client) + socket.inet_pton(family, server)

    assert "PROXY" == begin
    assert encoded(header, family) == claimed + struct.pack("!HH", *map(int, numbers))
    assert numbers == [str(int(number)) for number in numbers]
    assert header.transport == "tcp"


def vectors_in(block: bytes) -> list[tuple[int, bytes]]:
    """Return the kinds and values that a block is made of, to the last byte."""
    found = []
    while block:
        kind, size = struct.unpack("!BH", block[:3])
        found.append((kind, block[3 : 3 + size]))
        block = block[3 + size :]
        assert size == len(found[-1][1])
    return found


def first_of(pairs: list[tuple[int, bytes]], kind: int) -> str | None:
    """Return the text of a kind, of several the first."""
    return next((value for other, value in pairs if other == kind), b"").decode(errors="backslashreplace") or None


def tls_in(value: bytes) -> Tls | None:
    """Return what a value says of TLS."""
    client, verify = struct.unpack("!BL", value[:5])
    pairs = vectors_in(value[5:])
    version, name, cipher = (first_of(pairs, kind) for kind in (0x21, 0x22, 0x23))
    return Tls(version, cipher, name, verify == 0 if client & 6 else None) if client & 1 else None


def check_sum(start: bytes, pairs: list[tuple[int, bytes]]) -> None:
    """Hold that a checksum, where there is one, is that of the header with four zeros in its place."""
    kinds = [kind for kind, _ in pairs]
    if 3 not in kinds:
        return
    place = kinds.index(3)
    blank = [*pairs[:place], (3, bytes(4)), *pairs[place + 1 :]]

    assert pairs[place][1] == checksum(start + b"".join(vector(*pair) for pair in blank)).to_bytes(4, "big")


def check_block(data: bytes, header: Header) -> None:
    """Hold that a header of version 2 says what is parsed, all of it, or that nothing of its block counts."""
    command, family, length = struct.unpack_from("!BBH", data, 12)
    size = {0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}.get(family, 0)

    assert data.startswith(SIGNATURE)
    assert len(data) == 16 + length <= 2048
    assert command in {0x20, 0x21}
    if command == 0x20 or not size:
        assert command == 0x20 or family in {0x00, 0x01, 0x02, 0x10, 0x20, 0x30}
        assert Header(2, len(data)) == header
        return
    pairs = vectors_in(data[16 + size :])
    secure = next((tls_in(value) for kind, value in pairs if kind == 0x20), None)
    alpn, authority, netns = (first_of(pairs, kind) for kind in (1, 2, 0x30))
    transport: Transport = "unix" if size == 216 else "tcp" if family & 15 == 1 else "udp"

    check_sum(data[: 16 + size], pairs)
    assert (2, len(data), transport) == (header.version, header.length, header.transport)
    assert (alpn, authority, netns, secure) == (header.alpn, header.authority, header.netns, header.tls)
    assert bytes.fromhex(header.unique_id or "") == next((value for kind, value in pairs if kind == 5), b"")
    if transport == "unix":
        assert header.client is header.server is None
    else:
        assert encoded(header, socket.AF_INET if size == 12 else socket.AF_INET6) == data[16 : 16 + size]


def check(data: bytes, header: Header) -> None:
    """Hold that a header says what the bytes that it takes up say, and that its texts are bounded."""
    own = data[: header.length]
    if header.version == 1:
        check_line(own, header)
    else:
        check_block(own, header)
    said = [header.alpn, header.authority, header.netns]
    said += [header.tls.version, header.tls.cipher, header.tls.common_name] if header.tls else []

    assert all(text is None or 0 < len(text.encode()) <= 4 * LONGEST_TEXT for text in said)
    assert len(header.unique_id or "") <= 2 * LONGEST_ID


# -- any bytes --------------------------------------------------------------------------------------------------------

lines = st.lists(
    st.sampled_from([b"TCP4", b"TCP6", b"UNKNOWN", b"1.2.3.4", b"::1", b"::ffff:1.2.3.4", b"0", b"65535", b"", b"x"]),
    max_size=8,
).map(lambda words: b" ".join([b"PROXY", *words]))
blocks = st.builds(
    binary,
    st.builds(bytes.__add__, st.sampled_from([b"", V4, V6]), st.binary(max_size=40)),
    st.sampled_from([0x00, 0x11, 0x12, 0x21, 0x22, 0x31]) | st.integers(0, 255),
    st.sampled_from([0x20, 0x21]) | st.integers(0, 255),
)
vectors = st.lists(st.builds(vector, st.sampled_from([1, 2, 3, 4, 5, 0x20, 0x30]), st.binary(max_size=12))).map(
    b"".join
)
anything = st.builds(
    bytes.__add__,
    st.sampled_from([b"", SIGNATURE, b"PROXY "]) | lines | blocks | st.builds(sealed, st.just(V4), vectors),
    st.just(b"\r\n") | st.binary(max_size=60),
)


@given(anything)
def test_any_bytes(data: bytes) -> None:
    """Nothing but the error for it escapes, and a header says what its bytes say."""
    found = answer(data)
    if isinstance(found, Header):
        check(data, found)


@settings(deadline=None)  # hundreds of calls, on a machine that may be busy
@given(anything)
@example(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n\r\n")
def test_pieces_change_nothing(data: bytes) -> None:
    """Fed byte by byte, the first answer that is not "more please" is that of the whole, and it stands."""
    answers = [answer(data[:count]) for count in range(len(data) + 1)]
    first = next((count for count, found in enumerate(answers) if found is not None), len(answers))

    assert {answer(data)} == set(answers[first:]) or first == len(answers)
    assert not isinstance(answers[-1], Header) or answers[-1].length == first


@given(anything)
def test_an_answer_comes_in_time(data: bytes) -> None:
    """After the longest header there is nothing to wait for."""
    assert answer(data.ljust(LONGEST, b"0")) is not None


# -- the oracle -------------------------------------------------------------------------------------------------------


def results(
    transport: st.SearchStrategy[socket.SocketKind | None], tlv: st.SearchStrategy[ProxyProtocolTLV]
) -> st.SearchStrategy[ProxyResultIPv4 | ProxyResultIPv6]:
    """Return what the oracle makes a header of."""
    four = st.tuples(st.ip_addresses(v=4), ports)
    six = st.tuples(st.ip_addresses(v=6) | st.ip_addresses(v=4).map(lambda ip: IPv6Address(f"::ffff:{ip}")), ports)
    return st.builds(ProxyResultIPv4, four, four, protocol=transport, tlv=tlv) | st.builds(
        ProxyResultIPv6, six, six, protocol=transport, tlv=tlv
    )


def shown(end: tuple[IPv4Address | IPv6Address, int]) -> tuple[str, int]:
    """Return an end as a header has it."""
    address, port = end
    return str((address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address), port


def ends(result: ProxyResultIPv4 | ProxyResultIPv6) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return client and server of what the oracle has read or is to write."""
    return shown(result.source), shown(result.dest)


@given(results(st.none(), st.just(ProxyProtocolTLV())))
def test_lines_of_the_oracle(result: ProxyResultIPv4 | ProxyResultIPv6) -> None:
    """A line that the oracle writes is read as what it was written from."""
    data = ProxyProtocolV1().pack(result)

    assert Header(1, len(data), "tcp", *ends(result)) == parse(data + b"payload")


@given(results(st.sampled_from([socket.SOCK_STREAM, socket.SOCK_DGRAM]), st.just(ProxyProtocolTLV())))
def test_blocks_of_the_oracle(result: ProxyResultIPv4 | ProxyResultIPv6) -> None:
    """A header of version 2 that the oracle writes is read as what it was written from."""
    data = ProxyProtocolV2().pack(result)
    transport: Transport = "tcp" if result.protocol is socket.SOCK_STREAM else "udp"

    assert Header(2, len(data), transport, *ends(result)) == parse(data + b"payload")


tls = st.builds(
    ProxyProtocolSSLTLV,
    has_ssl=st.just(True),
    has_cert_conn=st.booleans(),
    has_cert_sess=st.booleans(),
    verified=st.booleans(),
    version=names,
    cipher=names,
    cn=st.none() | texts,
)
tlvs = st.builds(
    ProxyProtocolTLV,
    alpn=st.none() | names.map(str.encode),
    authority=st.none() | texts,
    unique_id=st.none() | st.binary(min_size=1, max_size=128),
    netns=st.none() | names,
    ssl=st.none() | tls,
)


@settings(max_examples=40, deadline=None)
@given(results(st.just(socket.SOCK_STREAM), tlvs))
def test_vectors_of_the_oracle(result: ProxyResultIPv4 | ProxyResultIPv6) -> None:
    """What the oracle says besides the addresses is read too."""
    data = ProxyProtocolV2().pack(result)
    said, by = result.tlv, result.tlv.ssl
    presented = by.has_cert_conn or by.has_cert_sess

    assert parse(data) == Header(
        2,
        len(data),
        "tcp",
        *ends(result),
        alpn=None if said.alpn is None else said.alpn.decode(),
        authority=said.authority,
        unique_id=said.unique_id.hex() or None,
        netns=said.netns,
        tls=Tls(by.version, by.cipher, by.cn, by.verified if presented else None) if by.has_ssl else None,
    )


# -- a long run -------------------------------------------------------------------------------------------------------

SPICE = [
    b" ",
    b"\r",
    b"\n",
    b"\r\n",
    b"0",
    b"9",
    b".",
    b":",
    b"::",
    b"%",
    b"\0",
    b"\xff",
    b"UNKNOWN",
    b"TCP6",
    V4,
    SIGNATURE,
]


def change(data: bytearray, dice: random.Random) -> None:
    """Do to a header what a bad wire, a bad program or a bad person does."""
    place = dice.randrange(len(data) + 1)
    span = slice(place, place + dice.randint(1, 4))
    match dice.randrange(7):
        case 0:
            data[place : place + 1] = bytes([dice.randrange(256)])
        case 1:
            data[place:place] = dice.choice(SPICE)
        case 2:
            del data[span]
        case 3:
            data[span] = dice.choice(SPICE)
        case 4:
            data[place:place] = data[span]
        case 5:
            data[span] = bytes(reversed(data[span]))
        case 6 if place < len(data):
            data[place] ^= 1 << dice.randrange(8)


def inputs(count: int, dice: random.Random) -> Iterator[bytes]:
    """Make headers with some changes, spliced ones, random bytes, and random bytes after a good beginning."""
    pool = [data for data in HEADERS if len(data) < 600]
    for _ in range(count):
        kind = dice.randrange(8)
        if kind == 0:
            yield dice.choice([b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11"]) + dice.randbytes(
                dice.randrange(120)
            )
            continue
        data = bytearray(dice.choice(pool))
        if kind == 1:
            data[dice.randrange(len(data)) :] = dice.choice(pool)[dice.randrange(20) :]
        for _ in range(dice.choice([0, 1, 1, 1, 2, 4])):
            change(data, dice)
        if dice.randrange(4) == 0:
            data += dice.randbytes(4)
        yield bytes(data)


def test_nothing_is_spoofed(fuzz_seconds: int) -> None:
    """Of many bad headers none does anything but fail, unless its bytes, and the oracle, say what is parsed."""
    count = fuzz_seconds * PACE
    counts = Counter[str]()
    for number, data in enumerate(inputs(count, random.Random(count))):
        found = answer(data)
        counts[found if isinstance(found, str) else type(found).__name__] += 1
        if not isinstance(found, Header):
            continue
        try:
            check(data, found)
            check_oracle(data[: found.length], found)
        except Exception as error:
            raise AssertionError(f"input {number} of {count}: {data!r} was taken for {found}") from error

    print(*(f"{times:8} {name}" for name, times in counts.most_common()), sep="\n")  # noqa: T201
    assert counts["Header"] > count // 20  # else it is not headers that are tried
    assert counts["NoneType"]
    assert len(counts) > 12  # kinds of answers: nearly every fault is met


def check_oracle(data: bytes, header: Header) -> None:
    """Hold that the oracle reads the same addresses, where there are any."""
    if header.local:
        return
    oracle: ProxyProtocol = ProxyProtocolV1() if header.version == 1 else ProxyProtocolV2()
    result = oracle.unpack(data)

    assert isinstance(result, ProxyResultIPv4 | ProxyResultIPv6)
    assert (header.client, header.server) == ends(result)
