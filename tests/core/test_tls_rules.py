"""What holds for TLS whatever its peer, its kernel and its connection do, in any order."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from echod.core.tls import BATCH, RECORD, SIP, WIRE, Tls
from tests.core.peers import (
    ALERT,
    DATA,
    HANDSHAKE,
    VERSIONS,
    Client,
    client_context,
    deliver,
    forged,
    introduce,
    old_forged,
    server_context,
)

SERVER = server_context()
CLIENTS = {version: client_context(version=version) for version in VERSIONS}
HELLOS = [Client(context).speak() for context in CLIENTS.values()]

MOST = 3 * RECORD
"""Bytes said at once: enough for some records, and for more wire than is received at once."""

sizes = st.one_of(st.integers(1, 40), st.integers(1, MOST), st.just(MOST))


class Line(RuleBasedStateMachine):
    """A client in good order, an echo that keeps to the contract, and a line between them that cuts as it likes."""

    tls: Tls

    @initialize(version=st.sampled_from(sorted(VERSIONS)), introduced=st.booleans())
    def open(self, version: str, introduced: bool) -> None:
        """Connect, with the handshake yet to come, or behind."""
        self.tls, self.client = Tls(SERVER), Client(CLIENTS[version])
        if introduced:
            introduce(self.tls, self.client)
        self.up = bytearray()  # on its way to echod
        self.said, self.heard, self.echoed = bytearray(), bytearray(), bytearray()
        self.written = 0
        self.finished = False

    # -- what may happen ----------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.client.established)
    @rule()
    def speak(self) -> None:
        """Have the client go on with the handshake."""
        self.up += self.client.speak()

    @precondition(lambda self: self.client.established and not self.finished)
    @rule(size=sizes, first=st.integers(0, 255))
    def say(self, size: int, first: int) -> None:
        """Have the client say something."""
        plain = bytes((first + number) % 256 for number in range(size))
        self.said += plain
        self.up += self.client.say(plain)

    @precondition(lambda self: self.client.established and not self.finished)
    @rule()
    def finish(self) -> None:
        """Have the client end its stream."""
        self.finished = True
        self.up += self.client.close()

    @precondition(lambda self: self.up and self.tls.wants_read)
    @rule(size=sizes)
    def receive(self, size: int) -> None:
        """Carry some of the client's wire to echod."""
        size = min(size, WIRE)
        self.tls.receive(memoryview(bytes(self.up[:size])))
        del self.up[:size]

    @rule(limit=sizes)
    def read(self, limit: int) -> None:
        """Have the connection read as far as it has room."""
        plain = self.tls.read(limit)
        self.heard += plain

        assert len(plain) <= limit

    @rule(size=sizes)
    def write(self, size: int) -> None:
        """Have the connection write some of what it holds."""
        self.written += self.tls.write(self.heard[self.written : self.written + size])

    @precondition(lambda self: self.tls.outgoing)
    @rule(size=sizes)
    def send(self, size: int) -> None:
        """Carry some of echod's wire to the client."""
        wire = bytes(self.tls.outgoing[:size])
        self.tls.sent(len(wire))
        self.client.hear(wire)
        if self.client.established:
            self.echoed += self.client.listen()

    @precondition(lambda self: self.tls.peer_closed and self.written == len(self.heard))
    @rule()
    def close(self) -> None:
        """End the stream once the client has ended its own, and got everything."""
        self.tls.close()

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def each_stream_is_a_prefix_of_the_one_before(self) -> None:
        """Hold that nothing is lost, invented or swapped on the way."""
        assert self.said.startswith(self.heard)
        assert self.heard[: self.written].startswith(self.echoed)

    @invariant()
    def memory_is_bounded(self) -> None:
        """Hold no more than was received at once, and a batch that goes out."""
        tls = self.tls

        assert len(tls._wire) + tls._incoming.pending + tls._tls.pending() <= WIRE + RECORD
        assert len(tls.outgoing) <= BATCH + 2 * RECORD
        assert tls._incoming.pending <= SIP
        assert 0 == tls._produced.pending

    @invariant()
    def nothing_fails(self) -> None:
        """Hold that a peer in good order meets no failure, and its end is no cut."""
        assert self.tls.failure is None
        assert not self.tls.truncated

    @invariant()
    def waiting_has_a_reason(self) -> None:
        """Want more wire unless some waits, or the stream has ended."""
        assert self.tls.wants_read is not (self.tls.pending or self.tls.peer_closed)

    def teardown(self) -> None:
        """Let everything arrive from wherever the machine has left it."""
        if not hasattr(self, "tls"):  # hypothesis gave up before the start
            return
        for _ in range(10_000):
            self.step()
            if self.tls.established and self.finished and self.client.ended:
                break

        assert self.said == self.heard == self.echoed
        assert self.client.ended

    def step(self) -> None:
        """Do what a loop does in a turn."""
        if not self.client.established:
            self.speak()
        elif not self.finished:
            self.finish()
        if self.up and self.tls.wants_read:
            self.receive(WIRE)
        self.read(MOST)
        self.write(MOST)
        if self.tls.peer_closed and self.written == len(self.heard):
            self.close()
        if self.tls.outgoing:
            self.send(len(self.tls.outgoing))


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# -- peers that do what they should not -------------------------------------------------------------------------------

calls = st.lists(st.sampled_from(["receive", "read", "write", "sent", "close", "eof", "facts"]), max_size=20)


def use(tls: Tls, wire: bytes, sequence: list[str], size: int) -> bytes:
    """Call whatever can be called, in any order, and return what was read."""
    plain = b""
    for call in [*sequence, *["receive", "read"] * 40]:
        if call == "receive":
            tls.receive(wire[:size])
            wire = wire[size:]
        elif call == "read":
            plain += tls.read(size)
        elif call == "write":
            assert tls.write(bytes(size)) <= size
        elif call == "sent":
            deliver(tls)
        elif call == "close":
            tls.close()
        elif call == "eof":
            tls.receive_eof()
        else:
            assert all(str(fact).isprintable() for fact in (tls.failure, *vars_of(tls)))
    return plain


def vars_of(tls: Tls) -> list[object]:
    """Return each of the facts."""
    return [getattr(tls.facts, name) for name in type(tls.facts).__slots__]


@settings(deadline=None)
@given(
    hello=st.sampled_from(HELLOS),
    change=st.tuples(st.integers(0, 600), st.integers(0, 8), st.binary(max_size=8)),
    sequence=calls,
    size=st.integers(1, 1000),
)
def test_no_hello_raises(hello: bytes, change: tuple[int, int, bytes], sequence: list[str], size: int) -> None:
    """A hello that is not quite one is waited for, answered or refused."""
    at, gone, put = change
    tls = Tls(SERVER)

    assert b"" == use(tls, hello[:at] + put + hello[at + gone :], sequence, size)
    assert not tls.established


@settings(deadline=None)
@given(wire=st.binary(max_size=200), sequence=calls, size=st.integers(1, 100))
def test_no_bytes_raise(wire: bytes, sequence: list[str], size: int) -> None:
    """The same holds for any bytes."""
    tls = Tls(SERVER)

    assert b"" == use(tls, wire, sequence, size)
    assert not tls.established


messages = st.builds(
    lambda kind, body, cut: (bytes([kind]) + len(body).to_bytes(3, "big") + body)[:cut],
    st.sampled_from([1, 24]) | st.integers(0, 30),  # ClientHello asks for a renegotiation, KeyUpdate for new keys
    st.sampled_from([b"", b"\0", b"\1"]) | st.binary(max_size=40),
    st.just(4) | st.integers(1, 50),
)
contents = st.one_of(
    st.tuples(st.just(DATA), st.binary(max_size=60)),
    st.tuples(st.just(HANDSHAKE), messages),
    st.tuples(st.just(ALERT), st.binary(max_size=3)),
    st.tuples(st.integers(0, 255), st.binary(max_size=60)),
)


def data_of(kind: int, content: bytes, *, old: bool) -> bytes:
    """Return the application data that a record holds.

    In TLS 1.3 the kind is the last byte of the record that is not 0; what follows it is padding (RFC 8446 §5.4).
    """
    whole = content + bytes([kind]) if old else (content + bytes([kind])).rstrip(b"\0")
    return whole[:-1] if whole.endswith(bytes([DATA])) else b""


@settings(deadline=None)
@given(
    old=st.booleans(),
    records=st.lists(contents, max_size=10),
    junk=st.binary(max_size=30),
    sequence=calls,
    size=st.integers(1, 1000),
)
def test_no_records_raise(
    old: bool, records: list[tuple[int, bytes]], junk: bytes, sequence: list[str], size: int
) -> None:
    """Who has the keys can say what no library would: nothing raises, and nothing but data is taken for data."""
    with TemporaryDirectory() as directory:
        tls, _, forger = (old_forged if old else forged)(Path(directory, "keys"))
    wire = b"".join(forger.record(kind, content) for kind, content in records)
    said = b"".join(data_of(kind, content, old=old) for kind, content in records)

    assert said.startswith(use(tls, wire + junk, sequence, size))
