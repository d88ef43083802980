"""Replies on paths that carry less than the interface: fragments and the DF bit, as they are on the cable."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.network import CLIENT4, CLIENT6, SERVER4, SERVER6, Network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.daemon import Starter

PORT = 7007
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
DONT_FRAGMENT = 0x4000
MORE_FRAGMENTS = 0x2000
FRAGMENT_HEADER = 44
"""The next header of an IPv6 packet that is a fragment (RFC 8200 §4.5)."""


@dataclass(frozen=True)
class Packet:
    """What a packet's header says."""

    length: int
    dont_fragment: bool
    is_fragment: bool


@pytest.fixture
def network() -> Iterator[Network]:
    """Make a network, where that is possible."""
    with Network() as made:
        yield made


def listeners(**udp: str) -> list[dict[str, Any]]:
    """Describe a UDP listener for each family."""
    common: dict[str, Any] = {"kind": "udp", "udp": udp}
    return [
        common | {"name": "v4", "address": f"0.0.0.0:{PORT}"},
        common | {"name": "v6", "address": f"[::]:{PORT}"},
    ]


def replies(network: Network, server: str, size: int) -> list[Packet]:
    """Have `size` bytes come back from `server`, and return the packets of the reply."""
    client, protocol = (CLIENT6, ETH_P_IPV6) if ":" in server else (CLIENT4, ETH_P_IP)
    content = bytes(range(250)) * 20
    with contextlib.ExitStack() as stack:
        with network.client():
            wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol)))
            wire.bind(("cable", protocol))
            wire.setblocking(False)
            family = socket.AF_INET6 if ":" in server else socket.AF_INET
            peer = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        peer.bind((client, 0))
        peer.settimeout(5)
        peer.sendto(content[:size], (server, PORT))
        assert content[:size] == peer.recv(70_000)
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = wire.recv(70_000)
                if sent_by(packet, server):
                    found.append(parsed(packet))
    return found


def sent_by(packet: bytes, server: str) -> bool:
    """Tell whether a packet is a reply of `server`, or a fragment of one."""
    if ":" in server:
        return packet[8:24] == socket.inet_pton(socket.AF_INET6, server) and packet[6] in {17, FRAGMENT_HEADER}
    return packet[12:16] == socket.inet_aton(server) and packet[9] == socket.IPPROTO_UDP


def parsed(packet: bytes) -> Packet:
    """Read the header of an IPv4 or IPv6 packet."""
    if packet[0] >> 4 == 6:
        return Packet(40 + int.from_bytes(packet[4:6], "big"), False, packet[6] == FRAGMENT_HEADER)
    flags = int.from_bytes(packet[6:8], "big")
    return Packet(int.from_bytes(packet[2:4], "big"), bool(flags & DONT_FRAGMENT), bool(flags & ~DONT_FRAGMENT))


def test_ipv4_replies_may_be_fragmented_by_default(start: Starter, network: Network) -> None:
    """Whole or in fragments they lack DF, so that every router passes them on."""
    with network.server():
        start(listeners=listeners())
    [whole] = replies(network, SERVER4[1], 1400)
    fragments = replies(network, SERVER4[1], 4000)

    assert Packet(1428, dont_fragment=False, is_fragment=False) == whole
    assert [(False, True)] * 3 == [(packet.dont_fragment, packet.is_fragment) for packet in fragments]


def test_ipv6_replies_leave_in_fragments_that_every_link_carries(start: Starter, network: Network) -> None:
    """At most 1,280 bytes each, since no router makes them smaller; what is shorter is whole."""
    with network.server():
        start(listeners=listeners())
    [whole] = replies(network, SERVER6[1], 1232)
    fragments = replies(network, SERVER6[1], 4000)

    assert Packet(1280, dont_fragment=False, is_fragment=False) == whole
    assert all(packet.is_fragment for packet in fragments)
    assert 1200 < max(packet.length for packet in fragments) <= 1280


def test_ipv6_replies_pass_a_black_hole(start: Starter, network: Network) -> None:
    """Where longer packets vanish and no ICMP tells, what came in fragments goes back in fragments that arrive."""
    network.shrink(1280)
    with network.server():
        start(listeners=listeners())

    assert 4 == len(replies(network, SERVER6[1], 4000))


def test_path_mtu_discovery_is_done_where_it_is_asked_for_by_a_reload(start: Starter, network: Network) -> None:
    """The sockets stay, and what leaves from them changes: DF on IPv4, longer fragments on IPv6; and back again."""
    with network.server():
        daemon = start(listeners=listeners())
    lengths, flags = [], []
    for word in ("want", "dont"):
        daemon.reload(listener=listeners(path_mtu_discovery=word))
        [whole] = replies(network, SERVER4[1], 1400)
        flags.append(whole.dont_fragment)
        lengths.append(max(packet.length for packet in replies(network, SERVER6[1], 4000)))

    assert [True, False] == flags
    assert 1280 < lengths[0] <= 1500
    assert lengths[1] <= 1280


def test_what_may_not_be_fragmented_is_dropped_and_counted(start: Starter, network: Network) -> None:
    """With "do" a reply that does not fit into one packet is not sent; shorter ones are."""
    with network.server():
        daemon = start(listeners=listeners(path_mtu_discovery="do"))
    for server in (SERVER4[1], SERVER6[1]):
        with pytest.raises(TimeoutError):
            replies_at_once(network, server, 4000)
        [packet] = replies(network, server, 1400)
        assert not packet.is_fragment
    daemon.wait_for("datagram.dropped", {"echod.listener": "v4", "echod.dropped.send_failed": 1})
    daemon.wait_for("datagram.dropped", {"echod.listener": "v6", "echod.dropped.send_failed": 1})


def replies_at_once(network: Network, server: str, size: int) -> None:
    """Wait for a reply, but not for long."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with network.client(), socket.socket(family, socket.SOCK_DGRAM) as peer:
        peer.settimeout(0.5)
        peer.sendto(bytes(size), (server, PORT))
        peer.recv(70_000)
