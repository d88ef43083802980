"""Very many: what connections cost while they are there and after they are gone, and that the limit is exact."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections import Counter
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import KIB, MIB, Load, connect, echo_once, ping
from tests.system.daemon import wait_until
from tests.system.traffic import ENDLESS, Traffic

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Size
    from tests.system.daemon import Daemon, Starter

SEED = 10_000
SLOTS = 256  # a connection's id is its serial number in its worker's slot times this, plus the slot
GROWTH = 5 * MIB
PER_THOUSAND = 4 * MIB
SPARE = 200  # descriptors beside those of connections, of a worker and of this process


def connected(stack: contextlib.ExitStack, daemon: Daemon, count: int) -> list[socket.socket]:
    """Open so many connections, as fast as that goes."""
    address = daemon.address()
    return [stack.enter_context(connect(address)) for _ in range(count)]


def served(client: socket.socket) -> bool:
    """Tell whether a connection was let in; close it if not."""
    try:
        ping(client)
    except (ConnectionError, AssertionError):
        client.close()
        return False
    return True


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Stop processes for as long as the context lasts."""
    for pid in pids:
        os.kill(pid, SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, SIGCONT)


@pytest.fixture
def room() -> Callable[[int], None]:
    """Skip where a process may not have so many connections."""

    def need(connections: int) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard < connections + SPARE:
            pytest.skip(f"a process may have {hard} descriptors, and {connections} connections are needed")

    return need


@pytest.mark.alone
def test_connections_that_are_gone_cost_nothing(start: Starter, size: Size) -> None:
    """300,000 connections are opened, used and closed: memory grows by 5 MiB at most, descriptors are as they were.

    A tenth of them come before memory is looked at first: what is needed once is had by then. Catches a loop that
    keeps the deadlines of those who are gone, and with them the connections.
    """
    count = size(6_000, 300_000)
    daemon = start(workers=2, log={"suppress": ["connection.opened"]})
    echo_once(daemon.address())
    descriptors = daemon.descriptors()
    with Traffic(daemon.address(), SEED) as traffic:
        traffic.await_visits(count // 10, timeout=60)
        memory = daemon.memory()
        traffic.await_visits(count - count // 10, timeout=600)
        traffic.stop()
    wait_until(lambda: daemon.descriptors() == descriptors, 5, "the same descriptors")
    grown = daemon.memory() - memory
    daemon.wait_for("connection.closed", count=traffic.let_in + 1)

    print(f"{traffic.let_in} connections, memory grown by {grown / MIB:.1f} MiB")  # noqa: T201
    assert {} == traffic.faults
    assert traffic.let_in >= count
    assert grown <= GROWTH
    assert daemon.active() == 0


@pytest.mark.alone
def test_idle_connections_beside_busy_ones(
    start: Starter, size: Size, room: Callable[[int], None], tmp_path: Path
) -> None:
    """10,000 idle connections and 500 that never rest: no error, nobody waits, and a thousand idle cost 4 MiB at most.

    Catches a connection that has a buffer of its own while it holds nothing.
    """
    idle_count, busy_count, seconds = size(1_000, 10_000), size(50, 500), size(1, 60)
    room(idle_count + busy_count)
    # Into a file: a pipe is too slow for ten thousand that leave at once, and lines would be dropped, as they should.
    log = {"file": str(tmp_path / "echod.log")}
    daemon = start(workers=2, log=log, limits={"max_connections": idle_count + busy_count + 1})
    echo_once(daemon.address())
    descriptors, before = daemon.descriptors(), daemon.memory()
    with contextlib.ExitStack() as stack:
        idle = connected(stack, daemon, idle_count)
        for client in idle:
            ping(client)
        each = (daemon.memory() - before) * 1000 / idle_count
        bystander = stack.enter_context(connect(daemon.address()))
        waits: list[float] = []

        def ask() -> bool:
            waits.append(ping(bystander))
            return False

        with Load.open(daemon.address(), busy_count, ENDLESS, SEED, writes=(KIB, KIB), window=KIB) as busy:
            busy.run(seconds, until=ask)
            for talker in busy.clients:
                talker.finish()
            assert busy.run(10), busy.report()
        for client in idle:
            ping(client)
    report = busy.report()
    waits.sort()
    wait_until(lambda: daemon.descriptors() == descriptors, 5, "the same descriptors")

    rate, p99 = report["received"] / KIB / seconds, waits[len(waits) * 99 // 100]
    print(f"{each / MIB:.2f} MiB for a thousand idle ones, {rate:.0f} messages a second by the others")  # noqa: T201
    print(f"somebody else's message took {p99 * 1000:.1f} ms at p99, {waits[-1] * 1000:.1f} ms at most")  # noqa: T201
    assert each <= PER_THOUSAND
    assert (busy_count, 0) == (report["complete"], report["wrong"]), report
    assert waits[-1] < 1.0
    assert len(daemon.records("connection.opened")) == idle_count + busy_count + 2
    daemon.wait_for("connection.closed", count=idle_count + busy_count + 2)
    assert {"peer_closed"} == {record["echod.close.reason"] for record in daemon.records("connection.closed")}


def test_the_limit_is_exact(start: Starter, size: Size, room: Callable[[int], None], tmp_path: Path) -> None:
    """10,000 may come in, over four workers: of 12,000 exactly so many do, and then as many as others have left.

    Those who come later wait at the door until all workers open it in the same instant, so that several are at the last
    place together. Catches a limit that each worker keeps by itself and, in the long form, a place that two give away.
    """
    most, surplus, rounds = size(500, 10_000), size(300, 2_000), size(20, 200)
    room(most + surplus)
    log = {"file": str(tmp_path / "echod.log")}  # a pipe is too slow for so many in one instant
    daemon = start(workers=4, log=log, limits={"max_connections": most}, expect=["connection.refused"])
    with contextlib.ExitStack() as stack:
        inside = [client for client in connected(stack, daemon, most + surplus) if served(client)]
        assert most == len(inside)
        for number in range(rounds):
            leaving, inside = inside[:100], inside[100:]
            for client in leaving:
                client.close()
            wait_until(lambda: daemon.active() == most - 100, 5, "the places of those who have left")
            with stopped(daemon.workers()):
                waiting = connected(stack, daemon, 200)
            daemon.wait_for("connection.refused", count=surplus + 100 * (number + 1))
            came = [client for client in waiting if served(client)]
            inside += came
            assert (number, 100, most) == (number, len(came), daemon.active())
        assert all(map(served, inside))
    wait_until(lambda: daemon.active() == 0, 5, "no active connection")
    slots = Counter(record["echod.connection.id"] % SLOTS for record in daemon.records("connection.opened"))

    print(f"let in by the workers: {dict(slots)}")  # noqa: T201
    assert {1, 2, 3, 4} == set(slots)
    assert most + 100 * rounds == slots.total()
    assert surplus + 100 * rounds == len(daemon.records("connection.refused"))


@pytest.mark.alone
@pytest.mark.parametrize("pause", [0.0, 0.001], ids=["at once", "one by one"])
def test_workers_share_the_work(start: Starter, size: Size, pause: float) -> None:
    """Of 1,000 long connections none of four workers gets fewer than 150, whether they come at once or one by one.

    Catches workers that all wait at the same door: the kernel would wake the same one again and again.
    """
    fewest = []
    for _ in range(size(1, 10)):
        daemon = start(workers=4)
        with contextlib.ExitStack() as stack:
            for _ in range(1000):
                connected(stack, daemon, 1)
                time.sleep(pause)  # for as long as it takes another client to come
            daemon.wait_for("connection.opened", count=1000)
        slots = Counter(record["echod.connection.id"] % SLOTS for record in daemon.records("connection.opened"))
        fewest.append(min(slots[slot] for slot in range(1, 5)))
        daemon.stop()

    print(f"the least that a worker had: {fewest}")  # noqa: T201
    assert min(fewest) >= 150
