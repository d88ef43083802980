"""UDP as users meet it: the same bytes back from the address that was asked, and no way to abuse it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.daemon import Daemon, Starter

LARGEST = 65507


def door(address: str = "127.0.0.1:0", name: str = "echo", **keys: Any) -> dict[str, Any]:
    """Describe a UDP listener."""
    return {"name": name, "kind": "udp", "address": address} | keys


@contextlib.contextmanager
def client(host: str = "127.0.0.1", port: int = 0) -> Iterator[socket.socket]:
    """Bind a client's socket."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((host, port))
        made.settimeout(2)
        yield made


def counted(daemon: Daemon, reason: str) -> int:
    """Return how many datagrams were reported as dropped for a reason."""
    return sum(record.get(f"echod.dropped.{reason}", 0) for record in daemon.records("datagram.dropped"))


@pytest.mark.parametrize("poller", ["epoll", "poll", "select"])
def test_every_size_comes_back(start: Starter, poller: str) -> None:
    """From the empty datagram to the largest, byte for byte, over both families and all pollers; after a reload too."""
    daemon = start(workers=2, listeners=[door("localhost:0")], daemon={"poller": poller})
    for address in daemon.addresses():
        with client(address[0]) as peer:
            for size in (0, 1, 2, 1472, 1473, 20_000, LARGEST):
                data = os.urandom(size)
                peer.sendto(data, address)
                answer, source = peer.recvfrom(LARGEST + 1)
                assert (data, address) == (answer, source[:2])
    daemon.reload(limits={"idle_timeout": "9m"})
    with client() as peer:
        peer.sendto(b"again", daemon.address())
        assert peer.recv(10) == b"again"


def test_the_reply_leaves_from_the_address_that_was_asked(start: Starter) -> None:
    """On the wildcard address each of many addresses answers as itself."""
    daemon = start(workers=2, listeners=[door("0.0.0.0:0")])
    port = daemon.address()[1]
    with client() as peer:
        for last in range(2, 30):
            peer.sendto(b"who?", (f"127.0.0.{last}", port))
            assert (f"127.0.0.{last}", port) == peer.recvfrom(10)[1]


def test_echo_services_do_not_answer_each_other(start: Starter) -> None:
    """A datagram that is forged to come from a port of an echo service is not answered: no loop begins."""
    first, second = start(listeners=[door()]), start(listeners=[door("127.0.0.1:0", "one"), door("127.0.0.1:0", "two")])
    with forged() as raw:
        for source, target in (
            (second.address("one"), second.address("two")),  # ports of one daemon's own
            (("127.0.0.1", 7), first.address()),
            (("127.0.0.1", 1900), first.address()),
        ):
            raw.sendto(udp(source[1], target[1], b"ping"), target)
        second_dropped = second.wait_for("datagram.dropped", timeout=3)
        wait_until(lambda: counted(first, "source_port") == 2, 3, "two drops")

    assert 1 == second_dropped["echod.dropped.source_port"]


def test_a_loop_that_no_port_list_can_stop_is_held_to_the_rate(start: Starter) -> None:
    """Two daemons on other ports do answer each other, until the rate is used up: all counted, warned of once."""
    rate = 100
    first, second = (start(listeners=[door(udp={"rate": rate})], expect=["datagram.throttled"]) for _ in range(2))
    began = time.monotonic()
    with forged() as raw:
        for _ in range(2 * rate):
            raw.sendto(udp(first.address()[1], second.address()[1], b"ping"), second.address())
    # Each goes round until one of the two has no token left for it; which of them that is depends on who is quicker.
    wait_until(
        lambda: counted(first, "over_rate") + counted(second, "over_rate") == 2 * rate, 10, "the end of the loop"
    )
    took = time.monotonic() - began
    used = sum(daemon.cpu() for daemon in (first, second))
    time.sleep(2)  # what is watched is that nothing more happens
    share = (sum(daemon.cpu() for daemon in (first, second)) - used) / 2
    warnings = [len(daemon.records("datagram.throttled")) for daemon in (first, second)]

    assert share < 0.1
    assert took < 8
    assert warnings in ([1, 0], [0, 1], [1, 1])


@contextlib.contextmanager
def forged() -> Iterator[socket.socket]:
    """Open a socket whose packets can claim any source port."""
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("only root can forge a datagram")
    with raw:
        raw.bind(("127.0.0.1", 0))
        yield raw


def udp(source: int, target: int, data: bytes) -> bytes:
    """Return a UDP packet without a checksum, which IPv4 allows (RFC 768)."""
    return b"".join(number.to_bytes(2, "big") for number in (source, target, 8 + len(data), 0)) + data


def test_access_and_drops_are_counted(start: Starter) -> None:
    """Who is denied gets nothing; the record says how many, at most once a second."""
    daemon = start(listeners=[door(deny=["127.0.0.9/32"])])
    with client("127.0.0.9") as denied, client() as peer:
        for _ in range(50):
            denied.sendto(b"x", daemon.address())
        peer.sendto(b"y", daemon.address())
        assert peer.recv(10) == b"y"
        wait_until(lambda: counted(daemon, "denied") == 50, 5, "fifty drops")
        denied.settimeout(0.1)
        with pytest.raises(TimeoutError):
            denied.recv(10)

    assert len(daemon.records("datagram.dropped")) <= 2


def test_a_port_that_is_closed_ends_nothing(start: Starter) -> None:
    """Clients that are gone when the answer comes cause ICMP errors; all others are served."""
    daemon = start(listeners=[door(udp={"rate": 0})])
    for number in range(200):
        with client() as gone:
            gone.sendto(b"x" * number, daemon.address())
    with client() as peer:
        peer.sendto(b"still there?", daemon.address())
        assert peer.recv(100) == b"still there?"
