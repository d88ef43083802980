"""The name in a ClientHello: found wherever a client puts it, shown safely, and never an exception."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.core.hello import LONGEST_HELLO, LONGEST_NAME, protocols, server_name
from tests.core.peers import NAME, VERSIONS, Client, client_context

HELLO = Client().speak()


def vector(size: int, content: bytes) -> bytes:
    """Return `content` after its length in `size` bytes."""
    return len(content).to_bytes(size, "big") + content


def extension(kind: int, content: bytes) -> bytes:
    """Return one extension."""
    return struct.pack("!H", kind) + vector(2, content)


def asking(name: bytes, kind: bytes = b"\0") -> bytes:
    """Return the extension that asks for `name`."""
    return extension(0, vector(2, kind + vector(2, name)))


def hello(extensions: bytes, message: bytes = b"\x01", limit: int = 16384) -> bytes:
    """Return the records of a ClientHello with `extensions`, none of them longer than `limit`."""
    body = bytes(2 + 32) + vector(1, bytes(32)) + vector(2, bytes(4)) + vector(1, b"\0") + vector(2, extensions)
    return records(message + vector(3, body), limit)


def records(content: bytes, limit: int) -> bytes:
    """Cut a message of the handshake into records."""
    pieces = [content[start : start + limit] for start in range(0, len(content), limit)]
    return b"".join(b"\x16\x03\x01" + vector(2, piece) for piece in pieces)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_name_of_a_real_hello(version: str) -> None:
    """OpenSSL's clients of each version are understood."""
    assert NAME == server_name(Client(client_context(version=version)).speak())


@pytest.mark.parametrize("name", [None, "192.0.2.7", "2001:db8::7"])
def test_no_name_is_none(name: str | None) -> None:
    """A client that names nobody has no name to tell; OpenSSL's clients do not ask for addresses (RFC 6066 §3)."""
    assert server_name(Client(name=name).speak()) is None


def test_an_incomplete_hello_tells_nothing() -> None:
    """As long as a byte is missing there is no name: half a name would be another one."""
    assert {None} == {server_name(HELLO[:length]) for length in range(len(HELLO))}
    assert NAME == server_name(HELLO + b"more")


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_records_may_cut_anywhere(limit: int) -> None:
    """A hello may be spread over any number of records."""
    assert NAME == server_name(hello(extension(16, b"x") + asking(NAME.encode()), limit=limit))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"192.0.2.7", "192.0.2.7"),
        (b"a\n\x1b[31mb\x7f", "a\\n\\x1b[31mb\\x7f"),
        (b"\xff\xc3\xa9", "\\xff\\xc3\\xa9"),
        (b"a\0b", "a\\x00b"),
        (b"n" * (LONGEST_NAME + 1), "n" * LONGEST_NAME + "…"),
        (b"", None),
    ],
)
def test_any_name_is_shown_safely(name: bytes, shown: str | None) -> None:
    """A name is printable and short, whatever the client makes of it."""
    assert shown == server_name(hello(asking(name)))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("offered", [["h2"], ["h2", "http/1.1", "x" * 255]])
def test_protocols_of_a_real_hello(version: str, offered: list[str]) -> None:
    """Each one that OpenSSL's clients offer."""
    context = client_context(version=version)
    context.set_alpn_protocols(offered)

    assert {name.encode() for name in offered} == protocols(Client(context).speak())


@pytest.mark.parametrize(
    "wire",
    [
        HELLO,
        hello(b""),
        hello(extension(16, b"")),
        hello(extension(16, b"\0\x05\x02h2")),
        hello(extension(16, vector(2, vector(1, b"h2"))))[:-1],
    ],
    ids=["no extension", "no extensions", "empty", "cut short", "incomplete"],
)
def test_no_list_of_protocols_is_none(wire: bytes) -> None:
    """What is missing, malformed or not there yet offers nothing."""
    assert frozenset() == protocols(wire)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: echo.example\r\n\r\n",
        hello(b""),
        hello(asking(b"echo.example", kind=b"\1")),
        hello(asking(b"echo.example"), message=b"\x02"),
        hello(extension(0, b"")),
        hello(extension(0, b"\0\x0f")),
        hello(extension(1, b"x") + b"\0"),
        hello(asking(b"n" * 65000))[:LONGEST_HELLO],
        records(b"\x01" + vector(3, bytes(34)), 16384),
        b"\x16\x03\x01\0\0" * 1000,
    ],
    ids=lambda wire: wire[:12],
)
def test_what_names_nobody(wire: bytes) -> None:
    """What is no hello, has no name, or has it in another form tells none."""
    assert server_name(wire) is None


@given(st.binary() | st.builds(lambda at, byte: HELLO[:at] + byte + HELLO[at + 1 :], st.integers(0, 600), st.binary()))
def test_no_bytes_raise(wire: bytes) -> None:
    """Any bytes tell a name or none."""
    name = server_name(wire)

    protocols(wire)

    assert name is None or (name.isprintable() and len(name) <= 4 * LONGEST_NAME + 1)
