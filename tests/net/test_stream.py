"""A connection and its socket, over the loopback, on every poller: whole records and whole contents."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from echod.core.connection import LINGER, QUIET
from echod.core.lifecycle import State
from echod.events import (
    CloseReason,
    ConnectionClosed,
    ConnectionExceptional,
    ConnectionOpened,
    ConnectionReceived,
    ConnectionSent,
)
from echod.net import sockets, tcp
from echod.net.poller import READABLE, WRITABLE
from echod.net.setting import SMALL

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.net.stream import Stream
    from tests.net.conftest import Rig

BUFFER = 16 * 1024


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel tell the same of each path, of an open socket only."""
    monkeypatch.setattr(tcp, "path", lambda sock: {"mss": 1460 if sock.fileno() >= 0 else None})


def closed(rig: Rig, stream: Stream, reason: CloseReason, **fields: Any) -> ConnectionClosed:
    """Return the record that is to be the last of `stream`."""
    common: dict[str, Any] = {"duration": 0.0, "received": 0, "echoed": 0, "mss": 1460}
    return ConnectionClosed(**rig.facts(stream), reason=reason, **(common | fields))


def was_reset(client: socket.socket) -> bool:
    """Tell whether the connection of `client`, all input read, has ended by RST."""
    try:
        return client.recv(1) != b""
    except ConnectionResetError:
        return True


def in_the_end(rig: Rig) -> list[object]:
    """Turn until the last handler is gone, and return the records."""
    rig.until(lambda: not rig.reactor.handlers)
    return list(rig.recorded)


# -- echo -------------------------------------------------------------------------------------------------------------


def test_echo_and_end(rig: Rig) -> None:
    """What is sent comes back; after the peer's FIN comes ours; two records tell it all."""
    client, stream = rig.pair()
    client.send(b"hello")
    back = rig.fetch(client, 5)
    client.shutdown(socket.SHUT_WR)
    rest = rig.fetch_all(client)

    assert (b"hello", b"") == (back, rest)
    assert [
        ConnectionOpened(**rig.facts(stream)),
        closed(rig, stream, CloseReason.PEER_CLOSED, received=5, echoed=5),
    ] == in_the_end(rig)
    assert (0, []) == (rig.gate.inside, rig.crashes)


@pytest.mark.parametrize("size", [SMALL, SMALL + 1])
def test_the_largest_small_message(rig: Rig, size: int) -> None:
    """A message comes back whole whether its view is ready or made for it."""
    client, stream = rig.pair()
    client.send(bytes(size - 1) + b"x")

    assert bytes(size - 1) + b"x" == rig.fetch(client, size)
    assert (size, []) == (stream.connection.passed, rig.crashes)


def test_not_a_byte(rig: Rig) -> None:
    """A peer that only comes and goes is one opened and one closed, with how long it was there."""
    client, stream = rig.pair()
    rig.clock.now += 1.25
    client.close()

    assert [
        ConnectionOpened(**rig.facts(stream)),
        closed(rig, stream, CloseReason.PEER_CLOSED, duration=1.25),
    ] == in_the_end(rig)


def test_facts_of_a_connection(rig: Rig) -> None:
    """The records say who talks to whom, and through which listener."""
    client, stream = rig.pair()
    host, port = client.getsockname()
    server_host, server_port = client.getpeername()

    assert [
        ConnectionOpened(
            id=stream.caller.id,
            listener="echo",
            client_address=host,
            client_port=port,
            server_address=server_host,
            server_port=server_port,
            transport="tcp",
            network="ipv4",
        )
    ] == rig.recorded


def test_verbose(rig: Rig) -> None:
    """When debug events are wanted, each receive and each send is one."""
    rig.setting.verbose = True
    client, stream = rig.pair()
    client.send(b"hello")
    rig.fetch(client, 5)
    client.close()

    assert [
        ConnectionOpened(**rig.facts(stream)),
        ConnectionReceived(id=stream.caller.id, count=5),
        ConnectionSent(id=stream.caller.id, count=5),
        closed(rig, stream, CloseReason.PEER_CLOSED, received=5, echoed=5),
    ] == in_the_end(rig)


def test_the_hot_path_asks_nothing_of_the_poller(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An echo that the kernel takes at once changes no interest, arms no deadline, holds nothing, logs nothing."""
    client, stream = rig.pair()
    entries = len(rig.reactor._deadlines)
    deadline = stream.deadline
    for name in ("watch", "forget"):
        monkeypatch.setattr(rig.poller, name, lambda *args: pytest.fail("the poller was asked"))
    for _ in range(10):
        rig.clock.now += 1
        client.send(b"hello")
        rig.fetch(client, 5)

    assert (entries, deadline, READABLE) == (len(rig.reactor._deadlines), stream.deadline, stream.interest)
    assert (1, b"") == (len(rig.recorded), stream.connection.outgoing)

    monkeypatch.undo()


def test_no_more_is_read_than_may_be_held(rig: Rig) -> None:
    """One read takes no more than the limit, though more has come."""
    rig.limit(buffer=10)
    rig.setting.verbose = True
    client, _ = rig.pair()
    client.send(bytes(25))
    rig.fetch(client, 25)

    assert [10, 10, 5] == [event.count for event in rig.recorded if isinstance(event, ConnectionReceived)]


def test_a_reload_leaves_open_connections_as_they_are(rig: Rig) -> None:
    """Limits and buffer of a reload hold for who comes later; who is here keeps both."""
    rig.limit(buffer=10)
    client, old = rig.pair()
    rig.limit(buffer=20)
    other, new = rig.pair()
    for sock in (client, other):
        sock.send(bytes(range(50)))

    assert (10, 20) == (old.connection.room, new.connection.room)
    assert [bytes(range(50))] * 2 == [rig.fetch(sock, 50) for sock in (client, other)]


# -- what does not go out at once -------------------------------------------------------------------------------------


def test_backpressure(rig: Rig) -> None:
    """A peer that does not read is read from until the buffer is full, and not further; then all of it comes back."""
    rig.limit(buffer=BUFFER)
    client, stream = rig.pair(tight=True)
    content = rig.stuff(client, stream)
    held = len(stream.connection.outgoing)

    assert (False, WRITABLE, WRITABLE) == (stream.connection.wants_read, stream.interest, stream.watched)
    assert BUFFER // 2 < held <= BUFFER

    back = rig.fetch(client, len(content))
    client.close()

    assert content == back
    assert [
        ConnectionOpened(**rig.facts(stream)),
        closed(rig, stream, CloseReason.PEER_CLOSED, received=len(content), echoed=len(content)),
    ] == in_the_end(rig)


def test_a_paused_connection_costs_no_turns(rig: Rig) -> None:
    """A peer that neither reads nor goes makes no descriptor ready, even with unread input and an urgent mark."""
    rig.limit(buffer=BUFFER)
    client, stream = rig.pair(tight=True)
    rig.stuff(client, stream)
    with suppress(BlockingIOError):  # the mark goes out with the segment header, whether or not the byte does
        client.send(b"!", socket.MSG_OOB)

    assert ([], [], []) == rig.poller.poll(0.0)


def test_half_close(rig: Rig) -> None:
    """A peer that ends its side with much outstanding still gets every byte, then FIN."""
    rig.limit(buffer=BUFFER)
    client, stream = rig.pair(tight=True)
    content = rig.stuff(client, stream)
    client.shutdown(socket.SHUT_WR)
    rig.turn()

    assert content == rig.fetch_all(client)
    assert (
        closed(rig, stream, CloseReason.PEER_CLOSED, received=len(content), echoed=len(content)) == in_the_end(rig)[-1]
    )


def test_half_closed_while_bytes_are_held(rig: Rig) -> None:
    """The end of input is read while something is held: the connection waits to write and to nothing else."""
    client, stream = rig.pair(tight=True)
    content = bytes(range(256)) * 1200
    sent = 0
    while sent < len(content):
        try:
            sent += client.send(content[sent:])
        except BlockingIOError:
            rig.turn()
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: stream.connection.state is State.HALF_CLOSED)

    assert (WRITABLE, False) == (stream.interest, stream.done)
    assert content == rig.fetch_all(client)
    assert CloseReason.PEER_CLOSED is stream.connection.reason


def test_leftovers_of_one_survive_the_reads_of_others(rig: Rig) -> None:
    """All streams read into one buffer; what one still owes is not overwritten by what another gets."""
    rig.limit(buffer=BUFFER)
    slow, stuck = rig.pair(tight=True)
    quick, _ = rig.pair()
    content = rig.stuff(slow, stuck)
    for _ in range(3):
        quick.send(b"\xff" * 1000)
        rig.fetch(quick, 1000)

    assert content == rig.fetch(slow, len(content))


def test_a_spurious_wakeup(rig: Rig) -> None:
    """Readable that is not readable any more does nothing."""
    _, stream = rig.pair()
    stream.on_readable(rig.clock.now)

    assert (State.OPEN, 0, READABLE) == (stream.connection.state, stream.connection.received, stream.interest)


# -- urgent data ------------------------------------------------------------------------------------------------------


def test_urgent_data_stands_in_the_stream(rig: Rig) -> None:
    """An urgent byte is echoed in its place, and the third list is said once and then quiet."""
    rig.setting.verbose = True
    client, stream = rig.pair()
    for content, flags in ((b"ab", 0), (b"X", socket.MSG_OOB), (b"cd", 0)):
        client.send(content, flags)
    back = rig.fetch(client, 5)

    assert b"abXcd" == back
    assert ([], [], []) == rig.poller.poll(0.0)
    assert ConnectionExceptional(id=stream.caller.id) in rig.recorded


def test_exceptional_reads(rig: Rig) -> None:
    """What is said to be exceptional is read on the spot; it need not be readable as well."""
    client, stream = rig.pair()
    client.send(b"!", socket.MSG_OOB)
    rig.poller.poll(1.0)
    stream.on_exceptional(rig.clock.now)

    assert (1, 1) == (stream.connection.received, stream.connection.echoed)


# -- resets -----------------------------------------------------------------------------------------------------------


def test_reset_by_an_idle_peer(rig: Rig) -> None:
    """A reset ends the connection with the error's name, and nothing else."""
    client, stream = rig.pair()
    rig.cut(client)

    assert [
        ConnectionOpened(**rig.facts(stream)),
        closed(rig, stream, CloseReason.PEER_RESET, error="ECONNRESET"),
    ] == in_the_end(rig)
    assert [] == rig.crashes


def test_reset_by_a_peer_that_is_owed_bytes(rig: Rig) -> None:
    """So does one that comes while bytes are held and reading is paused."""
    rig.limit(buffer=BUFFER)
    client, stream = rig.pair(tight=True)
    rig.stuff(client, stream)
    connection = stream.connection
    rig.cut(client)

    assert (
        closed(
            rig,
            stream,
            CloseReason.PEER_RESET,
            received=connection.received,
            echoed=connection.echoed,
            error="ECONNRESET",
        )
        == in_the_end(rig)[-1]
    )
    assert connection.echoed < connection.received


def test_reset_by_a_half_closed_peer(rig: Rig) -> None:
    """So does one from a peer that had ended its side: the kernel calls that a broken pipe."""
    client, stream = rig.pair(tight=True)
    sent = 0
    while sent < 300_000:
        try:
            sent += client.send(bytes(10_000))
        except BlockingIOError:
            rig.turn()
    client.shutdown(socket.SHUT_WR)
    rig.until(lambda: stream.connection.state is State.HALF_CLOSED)
    rig.cut(client)
    record = in_the_end(rig)[-1]

    assert isinstance(record, ConnectionClosed)
    assert (CloseReason.PEER_RESET, "EPIPE") == (record.reason, record.error)


def test_exceptional_takes_the_pending_error(rig: Rig) -> None:
    """Where the third list speaks first, it has the error from the socket."""
    rig.setting.verbose = True
    client, stream = rig.pair()
    rig.cut(client)
    rig.poller.poll(1.0)
    stream.on_exceptional(rig.clock.now)
    rig.reactor.touch(stream)

    assert [
        ConnectionOpened(**rig.facts(stream)),
        ConnectionExceptional(id=stream.caller.id, error="ECONNRESET"),
        closed(rig, stream, CloseReason.PEER_RESET, error="ECONNRESET"),
    ] == in_the_end(rig)


def test_exceptional_without_error_or_reading_is_a_hangup(rig: Rig) -> None:
    """Who does not read is exceptional only when the peer is gone both ways: it is not left to come back at once."""
    rig.limit(buffer=BUFFER)
    client, stream = rig.pair(tight=True)
    rig.stuff(client, stream)
    stream.on_exceptional(rig.clock.now)

    assert (True, CloseReason.PEER_RESET) == (stream.done, stream.connection.reason)


class Failing(socket.socket):
    """The socket `sock` from now on, one call of which fails."""

    def __init__(self, sock: socket.socket, call: str, failure: int) -> None:
        super().__init__(fileno=sock.detach())

        def fail(*_: object) -> int:
            raise OSError(failure, os.strerror(failure))

        setattr(self, call, fail)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (errno.ECONNRESET, CloseReason.PEER_RESET),
        (errno.ETIMEDOUT, CloseReason.READ_FAILED),
        (errno.ENOMEM, CloseReason.READ_FAILED),
    ],
)
def test_a_receive_that_fails(rig: Rig, failure: int, reason: CloseReason) -> None:
    """A receive that fails cuts the connection, and only where the peer cut it that is said of the peer."""
    client, stream = rig.pair()
    stream.socket = rig.keep(Failing(stream.socket, "recv_into", failure))
    client.send(b"hello")

    assert closed(rig, stream, reason, error=errno.errorcode[failure]) == in_the_end(rig)[-1]
    assert was_reset(client)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (errno.EPIPE, CloseReason.PEER_RESET),
        (errno.ECONNRESET, CloseReason.PEER_RESET),
        (errno.EHOSTUNREACH, CloseReason.WRITE_FAILED),
        (errno.ENOBUFS, CloseReason.WRITE_FAILED),
    ],
)
def test_a_send_that_fails(rig: Rig, failure: int, reason: CloseReason) -> None:
    """A send that fails cuts the connection: the peer sees a reset, and never a short stream with a FIN."""
    client, stream = rig.pair()
    stream.socket = rig.keep(Failing(stream.socket, "send", failure))
    client.send(b"hello")

    assert closed(rig, stream, reason, received=5, error=errno.errorcode[failure]) == in_the_end(rig)[-1]
    assert was_reset(client)


def stall(rig: Rig, stream: Stream) -> None:
    """Let the kernel take nothing from `stream`."""
    stream.socket = rig.keep(Failing(stream.socket, "send", errno.EAGAIN))


def recover(rig: Rig, stream: Stream) -> None:
    """Let the kernel take again what it is given."""
    stream.socket = rig.keep(socket.socket(fileno=stream.socket.detach()))


def test_a_kernel_that_takes_nothing(rig: Rig) -> None:
    """A send that would block is no failure: everything is held, and goes out later."""
    rig.setting.verbose = True
    client, stream = rig.pair()
    stall(rig, stream)
    client.send(b"hello")
    rig.until(lambda: stream.connection.received)
    held = bytes(stream.connection.outgoing)
    wanted = stream.interest
    recover(rig, stream)

    assert (b"hello", READABLE | WRITABLE) == (held, wanted)
    assert b"hello" == rig.fetch(client, 5)
    assert [
        ConnectionReceived(id=stream.caller.id, count=5),
        ConnectionSent(id=stream.caller.id, count=5),
    ] == rig.recorded[1:]
    assert READABLE == stream.interest


def test_never_more_is_held_than_the_limit(rig: Rig) -> None:
    """What is held already counts: a read fills the buffer up to the brim, whatever more has come."""
    rig.limit(buffer=BUFFER)
    client, stream = rig.pair()
    stall(rig, stream)
    connection = stream.connection
    client.send(bytes(1000))
    rig.until(lambda: connection.received == 1000)
    client.send(bytes(3 * BUFFER))
    rig.until(lambda: connection.received > 1000)
    held = len(connection.outgoing)
    recover(rig, stream)

    assert (BUFFER, WRITABLE) == (held, stream.interest)
    assert 1000 + 3 * BUFFER == len(rig.fetch(client, 1000 + 3 * BUFFER))


def test_a_read_that_empties_ends_the_wish_to_write(rig: Rig) -> None:
    """When new input takes along all that was held, there is nothing left to wait for: writable would spin."""
    client, stream = rig.pair()
    stall(rig, stream)
    client.send(b"hello")
    rig.until(lambda: stream.connection.received)
    recover(rig, stream)
    client.send(b"again")
    rig.poller.poll(1.0)
    stream.on_readable(rig.clock.now)

    assert (READABLE, 10) == (stream.interest, stream.connection.echoed)


# -- ends that echod decides upon -------------------------------------------------------------------------------------


def test_idle_timeout_sends_fin_and_lingers(rig: Rig) -> None:
    """An idle peer gets FIN, what it still sends is thrown away and counted, and its own FIN closes."""
    rig.limit(idle_timeout=60.0)
    client, stream = rig.pair()
    rig.later(59.9)
    before = stream.connection.state
    rig.later(0.1)
    ended = rig.fetch_all(client)
    client.send(b"too late")
    rig.until(lambda: stream.connection.discarded)
    client.close()

    assert (State.OPEN, b"") == (before, ended)
    assert [
        ConnectionOpened(**rig.facts(stream)),
        closed(rig, stream, CloseReason.IDLE_TIMEOUT, duration=60.0, discarded=8),
    ] == in_the_end(rig)


def test_bytes_keep_a_connection_from_being_idle(rig: Rig) -> None:
    """The idle deadline moves with each byte, though it is looked at only when it fires."""
    rig.limit(idle_timeout=60.0)
    client, stream = rig.pair()
    for _ in range(5):
        rig.later(30.0)
        client.send(b"x")
        rig.fetch(client, 1)
    last = rig.clock.now
    rig.later(59.9)

    assert (State.OPEN, last + 60.0) == (stream.connection.state, stream.deadline)

    rig.later(0.1)

    assert State.LINGERING is stream.connection.state


def test_lingering_ends_by_itself(rig: Rig) -> None:
    """A peer that neither sends nor ends is closed after the linger time, by a plain close."""
    rig.limit(idle_timeout=60.0)
    client, stream = rig.pair()
    rig.later(60.0)
    rig.later(LINGER)

    assert closed(rig, stream, CloseReason.IDLE_TIMEOUT, duration=60.0 + LINGER) == rig.recorded[-1]
    assert b"" == rig.fetch_all(client)
    assert not was_reset(client)


def test_lingering_on_a_peer_that_resets(rig: Rig) -> None:
    """A reset while lingering ends it too, for the reason that came first."""
    rig.limit(idle_timeout=60.0)
    client, stream = rig.pair()
    rig.later(60.0)
    rig.cut(client)

    assert closed(rig, stream, CloseReason.IDLE_TIMEOUT, duration=60.0, error="ECONNRESET") == in_the_end(rig)[-1]


def test_half_close_timeout_resets(rig: Rig) -> None:
    """A peer that takes nothing back for too long is cut, and sees it."""
    rig.limit(buffer=BUFFER, half_close_timeout=5.0)
    client, stream = rig.pair(tight=True)
    rig.stuff(client, stream)
    stream.finish(CloseReason.SUPERVISOR_LOST, rig.clock.now)
    rig.reactor.touch(stream)
    rig.later(0.0)
    rig.later(5.0)
    record = rig.recorded[-1]

    assert isinstance(record, ConnectionClosed)
    assert (CloseReason.SUPERVISOR_LOST, 5.0) == (record.reason, record.duration)

    with pytest.raises(ConnectionResetError):
        rig.fetch_all(client)


def test_max_lifetime(rig: Rig) -> None:
    """A connection of the greatest age is ended in good order."""
    rig.limit(max_lifetime=10.0)
    client, stream = rig.pair()
    rig.later(10.0)

    assert b"" == rig.fetch_all(client)

    client.close()

    assert closed(rig, stream, CloseReason.MAX_LIFETIME, duration=10.0) == in_the_end(rig)[-1]


def test_fin_to_a_peer_that_is_gone(rig: Rig) -> None:
    """Shutting down a socket that was reset fails, and that ends the connection; the reason is the first one."""
    client, stream = rig.pair()
    rig.cut(client)
    rig.poller.poll(1.0)
    stream.finish(CloseReason.SUPERVISOR_LOST, rig.clock.now)
    rig.reactor.touch(stream)

    assert closed(rig, stream, CloseReason.SUPERVISOR_LOST, error="ENOTCONN") == in_the_end(rig)[-1]


def test_fail_resets(rig: Rig) -> None:
    """A stop at once cuts: the peer sees a reset."""
    client, stream = rig.pair()
    stream.fail(CloseReason.STOPPED, rig.clock.now)
    rig.reactor.touch(stream)

    assert closed(rig, stream, CloseReason.STOPPED) == in_the_end(rig)[-1]
    assert was_reset(client)


def test_a_defect_costs_one_connection(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the handling of one connection cuts it and is named in its record; others go on."""
    client, stream = rig.pair()
    other, _ = rig.pair()
    with monkeypatch.context() as patch:
        patch.setattr(rig.setting, "views", [])
        client.send(b"hello")
        rig.until(lambda: stream.done)
    other.send(b"x")

    assert closed(rig, stream, CloseReason.INTERNAL_ERROR, error="IndexError") == rig.recorded[-1]
    assert [stream] == [handler for handler, _ in rig.crashes]
    assert (b"x", True) == (rig.fetch(other, 1), was_reset(client))


# -- drain ------------------------------------------------------------------------------------------------------------


def drain(rig: Rig, stream: Stream) -> None:
    """Let the daemon stop."""
    stream.drain(rig.clock.now)
    rig.reactor.touch(stream)
    rig.later(0.0)


def test_drain_of_a_quiet_connection(rig: Rig) -> None:
    """A stop closes who is quiet: FIN, a short linger, and the reason."""
    client, stream = rig.pair()
    drain(rig, stream)
    rig.later(QUIET)

    assert b"" == rig.fetch_all(client)

    client.close()

    assert closed(rig, stream, CloseReason.DRAINED, duration=QUIET) == in_the_end(rig)[-1]


def test_drain_lets_a_conversation_go_on(rig: Rig) -> None:
    """Bytes still come back during a stop, and put the end off."""
    client, stream = rig.pair()
    drain(rig, stream)
    for _ in range(5):
        rig.later(QUIET * 0.8)
        client.send(b"x")
        assert rig.fetch(client, 1) == b"x"

    assert State.DRAINING is stream.connection.state


@pytest.mark.parametrize("arrived", [True, False])
def test_drain_does_not_forget_what_has_arrived(rig: Rig, monkeypatch: pytest.MonkeyPatch, arrived: bool) -> None:
    """At the end of the quiet the kernel is asked whether bytes are on their way."""
    _, stream = rig.pair()
    monkeypatch.setattr(sockets, "in_flight", lambda sock: arrived)
    drain(rig, stream)
    rig.later(QUIET)

    assert (State.DRAINING if arrived else State.LINGERING) is stream.connection.state


def test_only_a_drain_asks_the_kernel(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle timeout does not cost the calls that tell what is in flight."""
    rig.limit(idle_timeout=60.0)
    monkeypatch.setattr(sockets, "in_flight", lambda sock: pytest.fail("asked"))
    _, stream = rig.pair()
    rig.later(60.0)

    assert (State.LINGERING, []) == (stream.connection.state, rig.crashes)


CLOSERS: dict[str, Callable[[socket.socket], None]] = {
    "close": lambda client: client.close(),
    "shutdown": lambda client: client.shutdown(socket.SHUT_WR),
}


@pytest.mark.parametrize("closer", CLOSERS)
def test_a_peer_that_ends_in_the_same_breath(rig: Rig, closer: str) -> None:
    """Bytes and FIN that arrive together are an echo and an end, in that order."""
    client, stream = rig.pair()
    client.send(b"hello")
    CLOSERS[closer](client)
    record = in_the_end(rig)[-1]

    assert isinstance(record, ConnectionClosed)
    assert (5, stream.caller.id) == (record.received, record.id)
    if closer == "shutdown":
        assert (CloseReason.PEER_CLOSED, 5) == (record.reason, record.echoed)
        assert rig.fetch_all(client) == b"hello"
