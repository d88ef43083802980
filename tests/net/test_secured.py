"""A connection that speaks TLS: the same echo, with a handshake before it and a close_notify at each end."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from echod.config import listeners as models
from echod.core.access import Networks
from echod.core.lifecycle import State
from echod.core.tls import STALL
from echod.events import CloseReason, ConnectionClosed, ConnectionOpened, ConnectionReceived, ConnectionSent
from echod.net.poller import READABLE
from tests.core.peers import (
    CA_PEM,
    CLIENT,
    DATA,
    HANDSHAKE,
    NAME,
    Client,
    Forger,
    client_context,
    server_context,
)

if TYPE_CHECKING:
    from pathlib import Path

    from echod.core.connection import Connection
    from tests.net.conftest import Rig

LINE = b"PROXY TCP4 192.0.2.1 203.0.113.9 56324 443\r\n"
MIB = 1024 * 1024


class Peer:
    """A client that has connected to a listener which speaks TLS."""

    def __init__(
        self, rig: Rig, context: ssl.SSLContext | None = None, client: Client | None = None, **keys: Any
    ) -> None:
        self.rig = rig
        self.client = client or Client()
        rig.setting.contexts = {"echo": context or server_context()}
        door = rig.door()
        tls = {"enabled": True, "certificate": "/c.pem", "timeout": "5s"}
        rig.listen(door).configure(models.Listener.model_validate({"tls": tls} | keys))
        self.socket: socket.socket = rig.knock(door)
        self.got = b""
        self.fin = False
        rig.until(rig.streams)
        [self.stream] = rig.streams()

    @property
    def connection(self) -> Connection:
        """What echod decides by."""
        return self.stream.connection

    def turn(self) -> None:
        """Turn, hear what has come, and go on with the handshake."""
        self.rig.turn()
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while not self.fin:
                wire = self.socket.recv(65536)
                self.fin = not wire
                self.client.hear(wire)
        if not self.client.established:
            self.socket.sendall(self.client.speak())
        if self.client.established:
            self.got += self.client.listen()

    def until(self, condition: Any) -> None:
        """Turn until the condition holds."""

        def holds() -> bool:
            self.turn()
            return bool(condition())

        self.rig.until(holds)

    def shake_hands(self) -> None:
        """Complete the handshake."""
        self.until(lambda: self.client.established and self.connection.state is State.OPEN)

    def say(self, plain: bytes) -> None:
        """Send plain bytes, all of them, while echod works."""
        self.push(self.client.say(plain))

    def push(self, wire: bytes) -> None:
        """Send wire, all of it, while echod works."""
        while wire:
            with contextlib.suppress(BlockingIOError):
                wire = wire[self.socket.send(wire) :]
            self.turn()

    def closed(self) -> ConnectionClosed:
        """Wait for the closing record."""
        self.until(lambda: isinstance(self.rig.recorded[-1], ConnectionClosed))
        last = self.rig.recorded[-1]
        assert isinstance(last, ConnectionClosed)
        return last


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_what_is_said_comes_back(rig: Rig, version: str) -> None:
    """The handshake, an echo, close_notify from both sides, FIN; and the record says what was agreed on."""
    peer = Peer(rig, client=Client(client_context(version=version)))
    peer.shake_hands()
    peer.say(b"hello")
    peer.until(lambda: peer.got == b"hello")
    peer.push(peer.client.close())
    peer.until(lambda: peer.client.ended)
    closed = peer.closed()

    assert isinstance(rig.recorded[0], ConnectionOpened)
    assert (CloseReason.PEER_CLOSED, 5, 5, None) == (closed.reason, closed.received, closed.echoed, closed.error)
    assert (NAME, version) == (closed.tls_server_name, closed.tls_version)
    assert closed.tls_cipher
    assert closed.tls_client_subject is None


def last(rig: Rig) -> ConnectionClosed:
    """Wait for the closing record, whatever the peer does."""
    rig.until(lambda: rig.recorded and isinstance(rig.recorded[-1], ConnectionClosed))
    closed = rig.recorded[-1]
    assert isinstance(closed, ConnectionClosed)
    return closed


def test_everything_comes_back_before_the_end(rig: Rig) -> None:
    """A peer that says close_notify right behind 4 MiB and reads afterwards gets all of it, and then ours."""
    rig.limit(buffer=65536)
    peer = Peer(rig)
    peer.shake_hands()
    content = bytes(range(256)) * (4 * MIB // 256)
    for start in range(0, len(content), 65536):
        peer.say(content[start : start + 65536])
    peer.push(peer.client.close())
    peer.until(lambda: peer.client.ended)

    assert content == peer.got
    assert (CloseReason.PEER_CLOSED, 4 * MIB) == ((closed := peer.closed()).reason, closed.echoed)


def test_who_does_not_read_is_not_read_either(rig: Rig) -> None:
    """What echod holds for a peer that never reads is bounded, plain and encrypted; the kernel holds the rest."""
    rig.limit(buffer=65536)
    peer = Peer(rig)
    peer.shake_hands()
    left = b""

    def full() -> bool:
        nonlocal left
        left = left or peer.client.say(bytes(65536))
        try:
            left = left[peer.socket.send(left) :]
        except BlockingIOError:
            return not peer.connection.wants_read
        return False

    rig.until(full)
    stream: Any = peer.stream

    assert not peer.connection.wants_read
    assert len(peer.connection.outgoing) <= 65536
    assert len(stream._tls.outgoing) <= 2 * 65536
    assert stream._encrypted <= len(peer.connection.outgoing)


def test_an_end_on_which_the_peer_hangs_up(rig: Rig) -> None:
    """close_notify and a reset in one breath: that is a reset, and nothing of echod's doing."""
    peer = Peer(rig)
    peer.shake_hands()
    peer.socket.sendall(peer.client.close())
    rig.cut(peer.socket)
    closed = last(rig)

    assert [] == rig.crashes
    assert closed.reason in {CloseReason.PEER_RESET, CloseReason.PEER_CLOSED}


def test_a_bare_fin_is_told_from_an_end(rig: Rig) -> None:
    """Without close_notify nobody knows whether there was more: what was said comes back, and the record tells."""
    peer = Peer(rig)
    peer.shake_hands()
    peer.say(b"hello")
    peer.socket.shutdown(1)
    closed = peer.closed()
    peer.until(lambda: peer.client.ended)

    assert b"hello" == peer.got
    assert (CloseReason.TLS_TRUNCATED, 5, 5) == (closed.reason, closed.received, closed.echoed)


def test_who_says_nothing_may_look_whether_the_door_opens(rig: Rig) -> None:
    """A connection without a byte is a health check, and no handshake that failed."""
    peer = Peer(rig)
    peer.socket.close()

    assert CloseReason.PEER_CLOSED is last(rig).reason


@pytest.mark.parametrize(("wire", "answered"), [(b"GET / HTTP/1.0\r\n\r\n", b""), (b"\x16\3\1\0\5hello", b"\x15")])
def test_what_is_no_handshake_has_failed(rig: Rig, wire: bytes, answered: bytes) -> None:
    """The peer is told, by an alert and FIN, and the record says what OpenSSL says; whoever speaks HTTP gets FIN."""
    peer = Peer(rig)
    peer.socket.sendall(wire)
    answer = rig.fetch_all(peer.socket)
    peer.socket.close()
    closed = last(rig)

    assert answered == answer[:1]
    assert CloseReason.HANDSHAKE_FAILED is closed.reason
    assert closed.error


def test_a_hello_that_ends_in_the_middle_has_failed(rig: Rig) -> None:
    """Whoever leaves during the handshake is not taken for a health check."""
    peer = Peer(rig)
    peer.socket.sendall(peer.client.speak()[:20])
    rig.turn()
    peer.socket.close()
    closed = last(rig)

    assert (CloseReason.HANDSHAKE_FAILED, "end of file") == (closed.reason, closed.error)


def test_a_handshake_has_a_deadline(rig: Rig) -> None:
    """Whoever stops in the middle is cut; bytes that come one by one do not move the deadline."""
    peer = Peer(rig)
    hello = peer.client.speak()
    for byte in hello[:4]:
        peer.socket.send(bytes([byte]))
        rig.later(1.0)
        rig.turn()
    assert peer.connection.state is State.ESTABLISHING
    rig.later(1.1)

    assert CloseReason.HANDSHAKE_TIMEOUT is last(rig).reason


def test_what_is_damaged_on_the_way_ends_it(rig: Rig) -> None:
    """A record that was changed is never echoed: an alert, then a reset."""
    peer = Peer(rig)
    peer.shake_hands()
    wire = bytearray(peer.client.say(b"hello"))
    wire[-1] ^= 1
    peer.socket.sendall(wire)
    closed = last(rig)

    assert (CloseReason.READ_FAILED, 0) == (closed.reason, closed.echoed)
    assert "bad record mac" in str(closed.error)


def test_a_client_certificate_is_in_the_record(rig: Rig) -> None:
    """Who has shown one is named; who has none is refused, in the handshake."""
    context = server_context(client_ca=CA_PEM)
    peer = Peer(rig, context, Client(client_context(CLIENT)))
    peer.shake_hands()
    peer.push(peer.client.close())
    closed = peer.closed()

    assert "Acme" in str(closed.tls_client_subject)
    assert 64 == len(str(closed.tls_client_sha256))


def test_who_has_no_certificate_is_refused(rig: Rig) -> None:
    """The listener wants one."""
    peer = Peer(rig, server_context(client_ca=CA_PEM))
    with contextlib.suppress(ssl.SSLError):  # TLS 1.3 lets the client believe at first that it is in
        peer.until(lambda: isinstance(rig.recorded[-1], ConnectionClosed))
    rig.until(lambda: peer.connection.reason)

    assert CloseReason.HANDSHAKE_FAILED is peer.connection.reason


@pytest.mark.parametrize("cut", [0, 10, len(LINE)])
def test_the_proxy_speaks_first(rig: Rig, cut: int) -> None:
    """The header of the PROXY protocol, then TLS, whether they come together or not; each has its own deadline."""
    proxy = {"enabled": True, "trusted": ["127.0.0.0/8"], "timeout": "5s"}
    peer = Peer(rig, proxy_protocol=proxy)
    data = LINE + peer.client.speak()
    peer.socket.sendall(data[:cut])
    rig.later(4.0)
    rig.turn()
    peer.socket.sendall(data[cut:])
    rig.turn()
    rig.later(4.0)
    peer.shake_hands()
    peer.say(b"hello")
    peer.until(lambda: peer.got == b"hello")
    peer.push(peer.client.close())
    closed = peer.closed()

    assert ("192.0.2.1", 1, 5) == (closed.client_address, closed.proxy_version, closed.echoed)
    assert (NAME, CloseReason.PEER_CLOSED) == (closed.tls_server_name, closed.reason)


def test_the_daemon_ends_it_in_good_order(rig: Rig) -> None:
    """An idle connection gets close_notify and FIN; what its peer still sends is discarded."""
    rig.limit(idle_timeout=10.0)
    peer = Peer(rig)
    peer.shake_hands()
    rig.later(11.0)
    peer.until(lambda: peer.client.ended and peer.fin)
    peer.socket.close()

    assert CloseReason.IDLE_TIMEOUT is last(rig).reason


def test_a_drain_lets_a_talker_talk(rig: Rig) -> None:
    """While the daemon stops, what is said comes back until it is quiet."""
    peer = Peer(rig)
    peer.shake_hands()
    peer.stream.drain(rig.clock.now)
    rig.reactor.touch(peer.stream)
    peer.say(b"hello")
    peer.until(lambda: peer.got == b"hello")
    rig.later(1.0)
    rig.later(1.0)
    peer.until(lambda: peer.client.ended)

    assert CloseReason.DRAINED is peer.connection.reason


def test_details_are_plain_bytes(rig: Rig) -> None:
    """What a verbose log counts is what the peer has said, not what came over the wire."""
    rig.setting.verbose = True
    peer = Peer(rig)
    peer.shake_hands()
    peer.say(b"hello")
    peer.until(lambda: peer.got == b"hello")

    counts = [event.count for event in rig.recorded if isinstance(event, ConnectionReceived | ConnectionSent)]
    assert [5, 5] == counts


def test_a_quiet_client_is_reported_when_it_talks(rig: Rig) -> None:
    """A handshake alone is no byte: health checks of quiet networks stay out of the log."""
    rig.setting.quiet = Networks(["127.0.0.0/8"])
    peer = Peer(rig)
    peer.shake_hands()
    assert [] == rig.recorded
    peer.say(b"hello")
    peer.until(lambda: peer.got == b"hello")

    assert isinstance(rig.recorded[0], ConnectionOpened)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_what_is_delayed_comes_before_close_notify(rig: Rig, version: str) -> None:
    """A client that has said its last word waits for bytes that are held back on purpose; then it hears ours."""
    peer = Peer(rig, client=Client(client_context(version=version)), faults={"delay": "5s"})
    peer.shake_hands()
    peer.say(b"hello")
    peer.push(peer.client.close())
    peer.until(lambda: peer.connection.state is State.HALF_CLOSED)
    rig.later(4.9)
    peer.turn()

    assert (b"", False) == (peer.got, peer.client.ended)

    rig.later(0.2)
    peer.until(lambda: peer.client.ended)
    closed = peer.closed()

    assert b"hello" == peer.got
    assert (CloseReason.PEER_CLOSED, 5, 5, True) == (closed.reason, closed.received, closed.echoed, closed.fault)


@pytest.mark.parametrize("finished", [False, True])
def test_a_close_on_purpose_is_a_good_end(rig: Rig, finished: bool) -> None:
    """The client gets exactly as many bytes, however many records they were in, and close_notify."""
    peer = Peer(rig, faults={"delay": "5s", "close_after": "7B"})
    peer.shake_hands()
    peer.say(b"hello")
    peer.say(b"hello")
    if finished:
        peer.push(peer.client.close())
        peer.until(lambda: peer.connection.state is State.HALF_CLOSED)
    peer.until(lambda: peer.connection.received == 10)
    rig.later(5.1)
    peer.until(lambda: peer.client.ended)
    if not finished:
        peer.push(peer.client.close())
        peer.socket.close()
    closed = [event for event in rig.recorded if isinstance(event, ConnectionClosed)]
    rig.until(lambda: closed or isinstance(rig.recorded[-1], ConnectionClosed))

    assert b"hellohe" == peer.got
    assert CloseReason.FAULT_CLOSE is rig.recorded[-1].reason  # type: ignore[attr-defined]


def test_a_reset_on_purpose_comes_after_its_bytes(rig: Rig) -> None:
    """They are all on the wire before the connection is cut, and no close_notify is."""
    peer = Peer(rig, faults={"reset_after": "3B"})
    peer.shake_hands()
    peer.say(b"hello")
    peer.until(lambda: peer.got)
    closed = peer.closed()

    assert (b"hel", False) == (peer.got, peer.client.ended)
    assert (CloseReason.FAULT_RESET, 3) == (closed.reason, closed.echoed)


# -- what waits inside of TLS -----------------------------------------------------------------------------------------


def stuff(peer: Peer) -> tuple[bytes, bytes]:
    """Send, and read nothing, until echod holds what it may and has still something to decode.

    Return what was said, and the wire of it that is not sent yet.
    """
    stream: Any = peer.stream
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    said = wire = b""
    while stream.connection.wants_read or not stream._tls.pending:
        if not wire:
            chunk = bytes([len(said) // 10_000 % 251]) * 10_000
            said, wire = said + chunk, peer.client.say(chunk)
        with contextlib.suppress(BlockingIOError):
            wire = wire[peer.socket.send(wire) :]
        peer.rig.turn()
    return said, wire


def test_what_waits_inside_is_not_forgotten(rig: Rig) -> None:
    """Once the kernel takes at once all that is held, what was received before and not decoded comes back, too.

    The socket will not tell: the peer says no more, and nothing is left to be sent.
    """
    rig.limit(buffer=65536)
    peer = Peer(rig)
    peer.shake_hands()
    said, wire = stuff(peer)
    peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    peer.push(wire)
    peer.until(lambda: len(peer.got) == len(said))

    assert said == peer.got


def test_a_flood_of_updates_is_held_back_and_then_heard(rig: Rig, tmp_path: Path) -> None:
    """A peer that demands replies and reads none is not read either; once it reads, what it says comes back."""
    context = client_context(version="1.3")
    context.keylog_filename = str(tmp_path / "keys")
    peer = Peer(rig, client=Client(context))
    peer.shake_hands()
    stream: Any = peer.stream
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    forger = Forger(tmp_path / "keys")
    wire = b""
    while not (stream._tls.pending and len(stream._tls.outgoing) >= STALL):
        wire = wire or b"".join(forger.update(reply=True) for _ in range(500))
        with contextlib.suppress(BlockingIOError):
            wire = wire[peer.socket.send(wire) :]
        rig.turn()
    assert not stream.interest & READABLE
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    wire += forger.record(DATA, b"hello")
    while wire:
        with contextlib.suppress(BlockingIOError):
            wire = wire[peer.socket.send(wire) :]
        with contextlib.suppress(BlockingIOError):
            peer.socket.recv(MIB)
        rig.turn()
    rig.until(lambda: peer.connection.received)

    assert 5 == peer.connection.received


def test_the_handshake_has_a_deadline_of_its_own(rig: Rig) -> None:
    """It is not that of the header, which may be later, even if nothing comes with the header."""
    peer = Peer(rig, proxy_protocol={"enabled": True, "trusted": ["127.0.0.0/8"], "timeout": "60s"})
    peer.socket.sendall(LINE)
    rig.until(lambda: peer.stream.caller.host == "192.0.2.1")
    rig.later(5.1)

    assert CloseReason.HANDSHAKE_TIMEOUT is peer.connection.reason


def test_nonsense_ends_also_what_is_ending(rig: Rig, tmp_path: Path) -> None:
    """What is owed to a peer can never be sent once it has made no sense: it is cut, whatever the timeouts are."""
    rig.limit(buffer=MIB, max_lifetime=10.0, half_close_timeout=0.0, idle_timeout=0.0)
    context = client_context(version="1.3")
    context.keylog_filename = str(tmp_path / "keys")
    peer = Peer(rig, client=Client(context))
    peer.shake_hands()
    peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    forger = Forger(tmp_path / "keys")
    wire = b"".join(forger.record(DATA, bytes(16000)) for _ in range(64))
    wire += forger.record(HANDSHAKE, b"\x18\0\0\1")
    while wire:  # half a KeyUpdate at its end: until the rest comes, OpenSSL encrypts nothing
        with contextlib.suppress(BlockingIOError):
            wire = wire[peer.socket.send(wire) :]
        rig.turn()
    stream: Any = peer.stream
    rig.until(lambda: peer.connection.received == 64 * 16000 and not stream._tls.pending)
    peer.until(lambda: not stream._tls.outgoing)
    assert peer.connection.outgoing
    rig.later(11.0)
    assert State.FLUSHING is peer.connection.state
    peer.socket.sendall(forger.record(DATA, b"no KeyUpdate"))
    closed = last(rig)

    assert CloseReason.MAX_LIFETIME is closed.reason
    assert closed.error


def test_the_first_error_is_the_one_that_is_told(rig: Rig) -> None:
    """A peer that has reset the connection is in the record with that, and not with what came of it."""
    peer = Peer(rig)
    peer.shake_hands()
    peer.socket.sendall(peer.client.say(b"hello"))
    rig.cut(peer.socket)
    closed = last(rig)

    assert (CloseReason.PEER_RESET, "ECONNRESET") == (closed.reason, closed.error)
