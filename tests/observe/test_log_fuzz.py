"""Whatever a peer says of itself is one line that parses, without a byte that a terminal or a parser would act on."""

from __future__ import annotations

import random
import re
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from echod.core import proxy
from echod.events import ConnectionClosed, Event, ListenerOpened
from echod.net import unix
from tests.core.headers import UNIX, binary, tls, vector
from tests.observe.test_log import Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Size

SEED = 862
BATCH = 500  # records that a pipe and its queue hold
NASTY = [
    *(bytes([number]) for number in range(256)),
    *(chr(number).encode() for number in (0x80, 0x85, 0x9B, 0xAD, 0x200B, 0x200F, 0x2028, 0x2029, 0x202E, 0x2066)),
    *(
        b"\r\n",
        b"\n{",
        b'"}\n{"level":"error"',
        b"\\",
        b'"',
        b"\\u000a",
        b"\x1b[2J",
        b"\x1b]0;",
        b"\xc2",
        b"\xed\xa0\x80",
    ),
    *(b"\xef\xbb\xbf", b"\xf3\xa0\x80\x81", b"\xf0\x9f\x98\x80", b"\xff\xfe", b"%s%n", b"${jndi:ldap://x}", b"a" * 60),
]
CONTROL = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]")


def text(dice: random.Random, longest: int) -> bytes:
    """Return up to so many bytes of what is hard to show."""
    return b"".join(dice.choices(NASTY, k=dice.randrange(1, 40)))[:longest]


def behind_a_proxy(dice: random.Random) -> Event | None:
    """Return the record of a connection whose proxy says such things of it, unless that is no header."""
    header = binary(
        UNIX
        + vector(1, text(dice, 255))
        + vector(2, text(dice, 255))
        + vector(5, text(dice, 128))
        + vector(0x30, text(dice, 255))
        + tls(7, 0, vector(0x21, text(dice, 255)), vector(0x22, text(dice, 255)), vector(0x23, text(dice, 255))),
        family=0x31,
    )
    with suppress(proxy.HeaderError):
        found = proxy.parse(header)
        assert found
        assert found.tls
        return ConnectionClosed(
            proxy_version=2,
            proxy_authority=found.authority,
            proxy_alpn=found.alpn,
            proxy_unique_id=found.unique_id,
            proxy_tls_version=found.tls.version,
            proxy_tls_cipher=found.tls.cipher,
            proxy_tls_name=found.tls.common_name,
        )
    return None


def from_a_path(dice: random.Random) -> Event:
    """Return the record of a connection from a Unix socket of such a name, as Python and as the kernel have it."""
    name = text(dice, 107)
    address: Any = b"\0" + name if dice.random() < 0.5 else name.decode("utf-8", "surrogateescape")
    return ConnectionClosed(client_address=unix.text(address), transport="unix")


def in_words(dice: random.Random) -> Event:
    """Return a record with such things in a name that a client asks for, and in a listener's."""
    said = text(dice, 255).decode("utf-8", dice.choice(["surrogateescape", "backslashreplace", "replace"]))
    if dice.random() < 0.5:
        return ConnectionClosed(tls_server_name=said, tls_alpn=said[:32], error=said)
    return ListenerOpened(listener=said, address=said)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what is entered when the test is over."""
    with ExitStack() as entered:
        yield entered


@pytest.mark.parametrize("form", ["json", "ecs", "console"])
def test_hostile_texts(stack: ExitStack, size: Size, form: str) -> None:
    """Every record of a hostile peer is one line of its own; of JSON it parses, and says no less than the peer said.

    Catches a control character that passes raw, a text that begins a second line, and one that JSON cannot hold.
    """
    dice = random.Random(SEED)
    print(f"seed {SEED}")  # noqa: T201
    kinds: list[Callable[[random.Random], Event | None]] = [behind_a_proxy, from_a_path, in_words]
    paper = Paper(stack, format=form)
    left = size(3_000, 100_000)
    while left > 0:
        events = [event for event in (dice.choice(kinds)(dice) for _ in range(BATCH)) if event]
        left -= len(events)
        for event in events:
            paper.log.emit(event)
        lines = paper.lines()

        assert len(events) == len(lines)
        for event, line in zip(events, lines, strict=True):
            assert not CONTROL.search(line.decode())
            if form != "console":
                assert_same(event, orjson.loads(line))
        assert 0 == paper.log.sink.lost


def assert_same(event: Event, record: dict[str, Any]) -> None:
    """Hold that a record has the texts of its event, as they are where they can be text at all."""
    for attribute, key in event.keys.items():
        value = getattr(event, attribute)
        if isinstance(value, str) and value.isprintable():
            assert value == record[key]
        assert (value is None) == (key not in record) or key in {"service.version", "process.pid"}
