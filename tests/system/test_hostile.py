"""Peers that mean harm, or merely do it: never reading, resetting, urgent data, floods. Nobody else notices."""

from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import KIB, MIB, Load, abort, connect, echo_once, ping, read_to_end
from tests.system.daemon import highest_cpu_share, wait_until

if TYPE_CHECKING:
    from tests.system.clients import Address
    from tests.system.daemon import Daemon, Starter

SEED = 41
FLOOD = 20_000
PER_CONNECTION = 32 * KIB  # what echod may need for a connection besides its buffer
CONSTANT = 4 * MIB  # arenas and tables that grow once

POLLERS = ["epoll", "poll", "select"]


def assert_descriptors_return(daemon: Daemon, baseline: dict[int, int]) -> None:
    """Hold that every process comes back to the descriptors it had before."""
    wait_until(lambda: daemon.descriptors() == baseline, 5, f"descriptors at {baseline}")


@pytest.mark.parametrize("buffer", ["256KiB", "16KiB"])
def test_never_readers_cost_bounded_memory(start: Starter, buffer: str) -> None:
    """200 clients send 10 MiB and never read: echod grows by no more than buffer + 32 KiB each, others are served."""
    size = int(buffer.removesuffix("KiB")) * KIB
    daemon = start(limits={"buffer": buffer})
    with connect(daemon.address()) as bystander:
        ping(bystander)
        before = daemon.memory()
        slowest = 0.0
        with Load.open(daemon.address(), 200, 10 * MIB, SEED, reads="never", writes=(MIB, MIB)) as load:
            for _ in range(20):
                load.run(0.1)
                slowest = max(slowest, ping(bystander))
            grown = daemon.memory() - before
            sent = load.report()["sent"]
    print(f"grown by {grown / MIB:.1f} MiB, {sent / MIB:.0f} MiB taken, slowest echo {slowest * 1000:.0f} ms")  # noqa: T201

    assert grown <= 200 * (size + PER_CONNECTION) + CONSTANT
    assert slowest < 1.0


@pytest.mark.parametrize("poller", ["epoll", "select"])
def test_resets_at_any_moment(start: Starter, poller: str) -> None:
    """600 clients reset before, while and after they send or read, half-closed or not: nothing leaks."""
    daemon = start(daemon={"poller": poller})
    print(f"seed {SEED}")  # noqa: T201
    source = random.Random(SEED)
    with connect(daemon.address()) as bystander:
        ping(bystander)
        baseline = daemon.descriptors()
        for number in range(600):
            victim = connect(daemon.address())
            victim.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(source.randrange(4)):
                    victim.send(source.randbytes(source.randrange(1, 300_000)))
            if source.random() < 0.3:
                victim.shutdown(socket.SHUT_WR)
            if source.random() < 0.3:
                select.select([victim], [], [], 0.002)
            if source.random() < 0.3:
                with contextlib.suppress(BlockingIOError):
                    victim.recv(100_000)
            abort(victim)
            if number % 50 == 0:
                ping(bystander)
        ping(bystander)
        assert_descriptors_return(daemon, baseline)
    daemon.wait_for("connection.closed", count=len(daemon.records("connection.opened")))
    reasons = {record["echod.close.reason"] for record in daemon.records("connection.closed")}

    assert reasons <= {"peer_closed", "peer_reset", "write_failed"}
    assert "peer_reset" in reasons


def send_urgent(peer: socket.socket) -> None:
    """Send `abXcd`, the X as urgent data, in three segments."""
    peer.sendall(b"ab")
    peer.send(b"X", socket.MSG_OOB)
    peer.sendall(b"cd")


@pytest.mark.parametrize("poller", POLLERS)
def test_urgent_data_is_echoed_in_its_place(start: Starter, poller: str) -> None:
    """`ab`, an urgent `X` and `cd` come back as `abXcd`: without SO_OOBINLINE the X would be lost."""
    daemon = start(daemon={"poller": poller})
    for _ in range(20):
        with connect(daemon.address()) as client:
            send_urgent(client)
            client.shutdown(socket.SHUT_WR)

            assert read_to_end(client) == (b"abXcd", "fin")


def test_urgent_mark_on_an_open_connection_does_not_spin(start: Starter) -> None:
    """After urgent data was echoed and nothing follows, the process sleeps: CPU under 2 % over 2 s, by each poller."""
    daemons = [start(daemon={"poller": poller}) for poller in POLLERS]
    with contextlib.ExitStack() as stack:
        for daemon in daemons:
            client = stack.enter_context(connect(daemon.address()))
            client.send(b"X", socket.MSG_OOB)
            assert client.recv(1) == b"X"
        share = highest_cpu_share(daemons, 2.0)

    assert share < 0.02


def test_urgent_mark_on_a_paused_connection_does_not_spin(start: Starter) -> None:
    """An urgent mark pending on a connection that is paused by backpressure: CPU under 2 % over 2 s, by each poller.

    Catches a loop that watches for exceptional events although it does not want to read.
    """
    daemons = [start(daemon={"poller": poller}, limits={"buffer": "16KiB"}) for poller in POLLERS]
    with contextlib.ExitStack() as stack:
        for daemon in daemons:
            client = stack.enter_context(connect(daemon.address(), receive_buffer=4096))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(b"x" * 65536)
            with contextlib.suppress(BlockingIOError):
                client.send(b"X", socket.MSG_OOB)
        wait_until(lambda: highest_cpu_share(daemons, 0.2) < 0.02, 5, "the pause")
        share = highest_cpu_share(daemons, 2.0)
        for daemon in daemons:
            ping(stack.enter_context(connect(daemon.address())))

    assert share < 0.02


def test_idle_connections_cost_nothing(start: Starter) -> None:
    """500 connections that do nothing, some half-open for writing, use under 2 % CPU over 2 s: no timer spins."""
    daemon = start(workers=2)
    with contextlib.ExitStack() as stack:
        for number in range(500):
            client = stack.enter_context(connect(daemon.address()))
            if number % 10 == 0:
                ping(client)
        share = daemon.cpu_share(2.0)

    assert share < 0.02


def flood(address: Address, count: int) -> int:
    """Connect and leave `count` times with at most 200 open, as fast as loopback allows; tell how many failed."""
    failed = 0
    open_ones: list[socket.socket] = []
    for _ in range(count):
        victim = socket.socket()
        victim.setblocking(False)
        code = victim.connect_ex(address)
        failed += code not in {0, errno.EINPROGRESS}
        open_ones.append(victim)
        if len(open_ones) == 200:
            for done in open_ones:
                abort(done)  # no TIME_WAIT, so that the ports of this machine last
            open_ones.clear()
    for done in open_ones:
        abort(done)
    return failed


def test_twenty_thousand_connects(start: Starter) -> None:
    """20,000 connects as fast as loopback allows: others are echoed meanwhile, descriptors and memory come back."""
    daemon = start(log={"level": "warning", "file": ""}, expect=["connection.refused"])
    with connect(daemon.address()) as bystander:
        ping(bystander)
        baseline = daemon.descriptors()
        flood(daemon.address(), 2000)
        assert_descriptors_return(daemon, baseline)
        before = daemon.memory()
        slowest = 0.0
        failed = 0
        started = time.monotonic()
        for _ in range(10):
            failed += flood(daemon.address(), FLOOD // 10)
            slowest = max(slowest, ping(bystander))
        print(f"{FLOOD} connects in {time.monotonic() - started:.1f} s, slowest echo {slowest * 1000:.0f} ms")  # noqa: T201
        assert_descriptors_return(daemon, baseline)
        grown = daemon.memory() - before
        echo_once(daemon.address())

    assert failed == 0
    assert slowest < 1.0
    assert grown < 4 * MIB
