"""A connection behind a proxy: whose it is, from the first byte that is not the header's."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from echod.config import listeners as models
from echod.core.access import Networks, address_key
from echod.core.lifecycle import State
from echod.core.proxy import LONGEST
from echod.events import CloseReason, ConnectionClosed, ConnectionOpened, ConnectionRefused, RefuseReason

if TYPE_CHECKING:
    from echod.net.stream import Stream
    from tests.net.conftest import Rig

LINE = b"PROXY TCP4 192.0.2.1 203.0.113.9 56324 443\r\n"
LINE6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 4 5\r\n"


def behind(rig: Rig, trusted: str = "127.0.0.0/8", **keys: Any) -> socket.socket:
    """Connect to a listener that demands a header."""
    door = rig.door()
    listener = rig.listen(door)
    proxy = {"enabled": True, "trusted": [trusted], "timeout": "5s"}
    listener.configure(models.Listener.model_validate({"proxy_protocol": proxy} | keys))
    return rig.knock(door)


def inside(rig: Rig) -> Stream:
    """Wait for the connection."""
    rig.until(rig.streams)
    [stream] = rig.streams()
    return stream


def closed(rig: Rig) -> ConnectionClosed:
    """Wait for its last record."""
    rig.until(lambda: rig.recorded and isinstance(rig.recorded[-1], ConnectionClosed))
    last = rig.recorded[-1]
    assert isinstance(last, ConnectionClosed)
    return last


@pytest.mark.parametrize("cut", [1, 5, len(LINE) - 1, len(LINE), len(LINE) + 2])
def test_the_client_is_whom_the_header_names(rig: Rig, cut: int) -> None:
    """However it comes in pieces; what follows it comes back, and the header does not; the proxy is named beside."""
    client = behind(rig)
    stream = inside(rig)
    assert [] == rig.recorded
    data = LINE + b"hello"
    client.send(data[:cut])
    rig.turn()
    client.send(data[cut:])

    assert b"hello" == rig.fetch(client, 5)
    [opened] = rig.recorded
    host, port = client.getsockname()
    assert isinstance(opened, ConnectionOpened)
    assert ("192.0.2.1", 56324, host, port) == (
        opened.client_address,
        opened.client_port,
        opened.peer_address,
        opened.peer_port,
    )
    assert (5, State.OPEN) == (stream.connection.received, stream.connection.state)
    client.close()
    assert (1, CloseReason.PEER_CLOSED, 5) == (closed(rig).proxy_version, closed(rig).reason, closed(rig).echoed)


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")])
def test_a_header_that_names_nobody(rig: Rig, header: bytes) -> None:
    """UNKNOWN and LOCAL leave the proxy as the client."""
    client = behind(rig)
    client.send(header + b"x")

    assert b"x" == rig.fetch(client, 1)
    [opened] = rig.recorded
    assert isinstance(opened, ConnectionOpened)
    assert (client.getsockname()[0], None) == (opened.client_address, opened.peer_address)


@pytest.mark.parametrize("data", [b"hello", b"PROXY TCP4 1.2.3.4", b"PROXY TCP4 010.0.0.1 1.1.1.1 1 1\r\n"])
def test_what_is_no_header_is_cut(rig: Rig, data: bytes) -> None:
    """At the first wrong byte, or when the input ends; nothing of it comes back, and the record says why."""
    client = behind(rig)
    client.send(data)
    client.shutdown(socket.SHUT_WR)
    last = closed(rig)

    assert (CloseReason.BAD_PROXY_HEADER, 0, 0) == (last.reason, last.received, last.echoed)
    assert last.error
    assert ConnectionOpened is type(rig.recorded[0])


def test_an_endless_header_is_not_kept(rig: Rig) -> None:
    """No more is ever read than a header can have."""
    client = behind(rig)
    client.send(bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 ffff") + bytes(10 * LONGEST))

    assert CloseReason.BAD_PROXY_HEADER is closed(rig).reason


def test_a_silent_proxy_is_cut(rig: Rig) -> None:
    """At its deadline, which the idle timeout does not move."""
    behind(rig)
    inside(rig)
    rig.later(4.9)
    rig.turn()
    assert [] == rig.recorded
    rig.later(0.2)

    assert CloseReason.HANDSHAKE_TIMEOUT is closed(rig).reason


def test_a_connection_without_a_byte_is_no_error(rig: Rig) -> None:
    """A proxy's health check; where its network is quiet it leaves no record at all."""
    client = behind(rig)
    inside(rig)
    client.close()
    assert (CloseReason.PEER_CLOSED, None) == (closed(rig).reason, closed(rig).error)
    rig.recorded.clear()
    rig.setting.quiet = Networks(["127.0.0.0/8"])
    client = behind(rig)
    inside(rig)
    client.close()
    rig.until(lambda: not rig.streams())

    assert [] == rig.recorded


def test_only_trusted_proxies_are_heard(rig: Rig) -> None:
    """Others are turned away before a byte is read."""
    behind(rig, trusted="192.0.2.0/24")
    rig.until(lambda: rig.recorded)
    [refused] = rig.recorded

    assert isinstance(refused, ConnectionRefused)
    assert RefuseReason.UNTRUSTED_PROXY is refused.reason


def test_the_lists_are_held_against_the_client(rig: Rig) -> None:
    """And not against the proxy, which need not be on them."""
    client = behind(rig, allow=["192.0.2.0/24"])
    client.send(LINE + b"x")
    assert b"x" == rig.fetch(client, 1)
    rig.recorded.clear()
    other = behind(rig, deny=["2001:db8::/32"])
    other.send(LINE6 + b"x")
    last = closed(rig)

    assert (CloseReason.CLIENT_REFUSED, "denied", "2001:db8::1") == (last.reason, last.error, last.client_address)


def test_the_limit_of_addresses_counts_clients(rig: Rig) -> None:
    """A client that has enough connections is cut although its proxy has none of its own."""
    rig.gate.per_address = 1
    rig.gate.full.add(address_key("192.0.2.1"))
    client = behind(rig)
    client.send(LINE6 + b"x")
    assert b"x" == rig.fetch(client, 1)
    rig.recorded.clear()
    behind(rig).send(LINE + b"x")

    assert (CloseReason.CLIENT_REFUSED, "over_address_limit") == (closed(rig).reason, closed(rig).error)


def test_a_stop_does_not_wait_for_a_header(rig: Rig) -> None:
    """Who has not said whose it is gets FIN, and what it says then is read and dropped."""
    client = behind(rig)
    stream = inside(rig)
    stream.drain(rig.clock.now)
    rig.reactor.touch(stream)
    client.setblocking(True)
    client.settimeout(5)
    rig.turn()
    assert b"" == client.recv(1)
    client.send(LINE)
    client.close()

    assert (CloseReason.DRAINED, 0) == (closed(rig).reason, closed(rig).received)


def test_a_quiet_client_speaks_first(rig: Rig) -> None:
    """The network of the client counts, once it is known."""
    rig.setting.quiet = Networks(["192.0.2.0/24"])
    client = behind(rig)
    client.send(LINE)
    stream = inside(rig)
    rig.until(lambda: stream.connection.state is State.OPEN)
    assert [] == rig.recorded
    client.send(b"x")

    assert b"x" == rig.fetch(client, 1)
    assert [ConnectionOpened] == [type(event) for event in rig.recorded]


@pytest.mark.parametrize(
    ("data", "reason"), [(b"GET / HTTP/1.0\r\n\r\n", "bad_proxy_header"), (b"", "handshake_timeout")]
)
def test_a_quiet_proxy_that_is_wrong_is_reported(rig: Rig, data: bytes, reason: str) -> None:
    """To be quiet is for health checks; what goes wrong with a proxy is in the log whatever its network."""
    rig.setting.quiet = Networks(["127.0.0.0/8"])
    client = behind(rig)
    inside(rig)
    client.send(data)
    rig.turn()
    rig.later(6.0)

    assert reason == closed(rig).reason
    assert ["connection.opened", "connection.closed"] == [event.name for event in rig.recorded]


def test_what_comes_with_the_header_is_received(rig: Rig) -> None:
    """A verbose log counts it as what comes later."""
    rig.setting.verbose = True
    client = behind(rig)
    client.send(LINE + b"hello")
    rig.fetch(client, 5)

    assert ["connection.opened", "connection.received", "connection.sent"] == [event.name for event in rig.recorded]


def test_a_quiet_network_counts_on_a_socket_for_both_families(rig: Rig) -> None:
    """There the kernel writes IPv4 within IPv6; a health check from a quiet network leaves no record all the same."""
    rig.setting.quiet = Networks(["127.0.0.0/8"])
    door = rig.door("::")
    proxy = {"enabled": True, "trusted": ["127.0.0.0/8"]}
    rig.listen(door).configure(models.Listener.model_validate({"proxy_protocol": proxy}))
    for said in (b"", b"PROXY UNKNOWN\r\n"):
        with socket.create_connection(("127.0.0.1", door.getsockname()[1])) as client:
            client.send(said)
        rig.until(lambda: rig.gate.inside)
        rig.until(lambda: not rig.gate.inside)

    assert [] == rig.recorded

    with socket.create_connection(("127.0.0.1", door.getsockname()[1])) as client:
        client.send(LINE)
        rig.until(lambda: rig.recorded)

    assert [("192.0.2.1", "127.0.0.1")] == [(event.client_address, event.peer_address) for event in opened(rig)]


def opened(rig: Rig) -> list[ConnectionOpened]:
    """Return the records of connections that came in."""
    return [event for event in rig.recorded if isinstance(event, ConnectionOpened)]
