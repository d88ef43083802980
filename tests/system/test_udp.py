"""UDP as users meet it: the same bytes back from the address that was asked, and no way to abuse it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
import urllib.request
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.clients import MIB
from tests.system.daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.clients import Address
    from tests.system.daemon import Daemon, Starter

LARGEST = 65507
SO_RCVBUFFORCE = 33


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


BURST = 20_000
"""Datagrams, far more than a receive buffer holds."""


def test_drops_of_the_kernel_are_counted(start: Starter) -> None:
    """What does not fit into the receive buffer is in record and metric: with what was answered it is all that came."""
    daemon = start(
        workers=2, listeners=[door(receive_buffer="64KiB", udp={"rate": 0})], admin={"address": "127.0.0.1:0"}
    )
    address = daemon.address()
    with client() as peer:
        for _ in range(BURST):
            peer.sendto(b"x" * 100, address)

    def accounted() -> int:
        return metric(daemon, "echod_datagrams_answered_total") + metric(daemon, "echod_datagrams_dropped_total{")

    wait_until(lambda: accounted() >= BURST, 20, "every datagram to be accounted for")
    dropped = metric(daemon, 'echod_datagrams_dropped_total{reason="receive_buffer_full"}')

    assert BURST == accounted()
    assert dropped > 0
    wait_until(lambda: counted(daemon, "receive_buffer_full") == dropped, 5, "the records")


@pytest.mark.parametrize("closed_by", ["reload", "stop"])
def test_drops_of_the_kernel_are_counted_when_a_socket_closes(start: Starter, closed_by: str) -> None:
    """Those since the last look too, with the burst still in the buffer of a socket that nobody reads."""
    daemon = start(listeners=[door(receive_buffer="64KiB", udp={"rate": 0}), door(name="stays")])
    [worker] = daemon.workers()
    os.kill(worker, SIGSTOP)
    with client() as peer:
        for _ in range(2000):
            peer.sendto(b"x" * 100, daemon.address())
    before = kernel_drops(daemon.address()[1])
    os.kill(worker, SIGCONT)
    if closed_by == "reload":
        daemon.reload(listener=[door(name="stays")])
    else:
        daemon.stop()

    assert before > 0
    assert before == counted(daemon, "receive_buffer_full")


def kernel_drops(port: int) -> int:
    """Return how many datagrams the kernel has dropped of the socket at a port of 127.0.0.1."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return next(int(line[-1]) for line in lines if line[1] == f"0100007F:{port:04X}")


def metric(daemon: Daemon, name: str) -> int:
    """Return the sum of all samples whose lines begin with `name`."""
    host, port = daemon.address("admin")
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)))


@pytest.fixture
def rmem_max() -> int:
    """Return the limit of a receive buffer, where one can be asked for that is larger."""
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    if limit >= 64 * MIB:
        pytest.skip("net.core.rmem_max is 64 MiB or more, and no listener can ask for more")
    return limit


@pytest.mark.usefixtures("rmem_max")
def test_receive_buffer_passes_the_limit_with_cap_net_admin(start: Starter) -> None:
    """Then the socket has what was asked for, and nothing is said of it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
        except PermissionError:
            pytest.skip("needs CAP_NET_ADMIN")
    daemon = start(listeners=[door(receive_buffer="64MiB")])

    assert [] == daemon.records("buffer.clamped")


def test_receive_buffer_that_is_clamped_is_warned_of(start: Starter, rmem_max: int) -> None:
    """Without CAP_NET_ADMIN the socket has less than was asked for: the log says how much, and for what cause."""
    prefix = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"] if os.geteuid() == 0 else []
    if prefix and not shutil.which("setpriv"):
        pytest.skip("needs setpriv to start echod without CAP_NET_ADMIN")
    daemon = start(listeners=[door(receive_buffer="64MiB")], prefix=prefix, expect=["buffer.clamped"])
    warning = daemon.wait_for("buffer.clamped")

    assert "listener.receive_buffer" == warning["echod.config.key"]
    assert "net.core.rmem_max" == warning["echod.config.cause"]
    assert 64 * MIB == warning["echod.config.requested"]
    assert rmem_max == warning["echod.config.value"]


def test_reload_gives_nobody_a_new_burst(start: Starter) -> None:
    """A source that has used up its rate has used it up after a reload too."""
    daemon = start(listeners=[door(udp={"rate": 1, "burst": 50})], expect=["datagram.throttled"])
    with client() as peer:
        peer.settimeout(0.3)
        before = answers(peer, daemon.address(), 60)
        began = time.monotonic()
        daemon.reload(limits={"idle_timeout": "9m"})
        after = answers(peer, daemon.address(), 60)
        refilled = time.monotonic() - began

    assert 50 <= before < 60
    assert after <= 1 + refilled


def answers(peer: socket.socket, address: Address, count: int) -> int:
    """Send so many datagrams, and return how many come back."""
    for _ in range(count):
        peer.sendto(b"x", address)
    found = 0
    with contextlib.suppress(TimeoutError):
        while peer.recv(10):
            found += 1
    return found


def test_a_rate_below_the_number_of_workers_is_refused(start: Starter) -> None:
    """A share of less than one datagram a second cannot be held: the message names both keys."""
    daemon = start(workers=2, listeners=[door(udp={"rate": 2})], expect=["reload.refused"])
    daemon.reload(ok=False, listener=[door(udp={"rate": 1})])
    [error] = daemon.wait_for("reload.refused")["echod.config.errors"]

    assert "listener[0].udp.rate: 1 is below daemon.workers (2)" in error


def test_a_port_that_is_closed_ends_nothing(start: Starter) -> None:
    """Clients that are gone when the answer comes cause ICMP errors; all others are served."""
    daemon = start(listeners=[door(udp={"rate": 0})])
    for number in range(200):
        with client() as gone:
            gone.sendto(b"x" * number, daemon.address())
    with client() as peer:
        peer.sendto(b"still there?", daemon.address())
        assert peer.recv(100) == b"still there?"
