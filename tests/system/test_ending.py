"""How it ends, to the last number: who was cut and who was drained, what died and what took its place.

Beside `test_stop`, which shows that an ending works: here are the cases where two endings meet (a second signal while
connections linger, a death during the drain delay, a supervisor that is gone with data queued), and the books after.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM, Signals
from typing import TYPE_CHECKING

import pytest

from tests.system import proc
from tests.system.clients import KIB, MIB, Client, Load, Payload, connect, echo_once, ping, read_exactly, read_to_end
from tests.system.daemon import Daemon, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.conftest import Size
    from tests.system.clients import Address
    from tests.system.daemon import Starter
    from tests.system.logs import Record

SEED = 862
WORKERS = 2
SLOTS = 256  # a connection's id is its serial number in its worker's slot times this, plus the slot
ENDLESS = 1024 * MIB  # more than any kernel buffers
AT_ONCE = 1.0
LEFT_ALONE = 2.0  # seconds after which a worker without a supervisor is gone


def opened(stack: contextlib.ExitStack, daemon: Daemon, count: int) -> list[socket.socket]:
    """Open so many connections and see each of them echo."""
    clients = [stack.enter_context(connect(daemon.address())) for _ in range(count)]
    for client in clients:
        ping(client)
    return clients


def stuck(stack: contextlib.ExitStack, daemon: Daemon, count: int, size: int = ENDLESS, window: int = 4 * KIB) -> Load:
    """Open so many connections that send until nobody takes any more and read nothing.

    By default they have more to send than any kernel buffers: where all of it fits, echod has nothing left to hold.
    """
    load = stack.enter_context(
        Load.open(daemon.address(), count, size, SEED, reads="never", hold_open=True, receive_buffer=window)
    )

    def held() -> bool:
        load.run(0.05)
        return holds_all_it_takes(daemon, load)

    wait_until(held, 20, f"a full buffer of each of {count} connections")
    return load


def holds_all_it_takes(daemon: Daemon, load: Load) -> bool:
    """Tell whether the workers sleep although bytes of every client wait: they want no more of them.

    That nothing was sent for a while does not say so: on a busy machine a worker may not have had its turn.
    """
    unread = proc.unread(daemon.address()[1])
    waiting = all(unread.get(client.port) for client in load.clients)
    return waiting and all(proc.stat(pid)[0] == "S" for pid in daemon.workers())


def talk(client: socket.socket) -> None:
    """Exchange small messages until the connection ends, which raises."""
    while True:
        ping(client)
        time.sleep(0.05)  # a client's own pace


def port(client: socket.socket) -> int:
    """Return the client's port, by which the log knows it."""
    return int(client.getsockname()[1])


def by_slot(daemon: Daemon, clients: Iterable[socket.socket]) -> dict[int, list[socket.socket]]:
    """Sort connections by the slot of the worker that has them."""
    found: dict[int, list[socket.socket]] = {slot: [] for slot in range(1, WORKERS + 1)}
    for client in clients:
        record = daemon.wait_for("connection.opened", {"client.port": port(client)})
        found[record["echod.connection.id"] % SLOTS].append(client)
    return found


def pid_of(daemon: Daemon, slot: int) -> int:
    """Return the pid of the worker in a slot, as the log knows it."""
    return int(daemon.records("worker.started", {"echod.worker.slot": slot})[-1]["echod.worker.pid"])


def reasons(daemon: Daemon) -> Counter[str]:
    """Count the closed connections by reason; every opened one must be among them."""
    daemon.wait_for("service.stopped")
    closed = daemon.records("connection.closed")
    assert len(closed) == len(daemon.records("connection.opened"))
    return Counter(record["echod.close.reason"] for record in closed)


def moment(record: Record) -> float:
    """Return the time of a record in seconds."""
    return datetime.fromisoformat(record["timestamp"]).timestamp()


# -- TERM -------------------------------------------------------------------------------------------------------------


def test_group_is_told_to_stop(start: Starter) -> None:
    """TERM to the whole process group while 100 clients pipeline 2 MiB and read slowly: all of it comes back, then FIN.

    Half of them half-close. Catches a worker that takes for its own the signal that systemd and terminals send to all.
    """
    daemon = start(workers=WORKERS)
    print(f"seed {SEED}")  # noqa: T201
    payload = Payload(SEED)
    with contextlib.ExitStack() as stack:
        clients = [
            Client(
                stack.enter_context(connect(daemon.address(), receive_buffer=32 * KIB)),
                payload,
                SEED + number,
                2 * MIB,
                pace=(16 * KIB, 0.02),  # slow enough for this process too: who is silent for 250 ms is cut
                hold_open=bool(number % 2),
            )
            for number in range(100)
        ]
        load = stack.enter_context(Load(clients))
        load.run(20, until=lambda: sum(client.received for client in clients) > 20 * MIB)
        os.killpg(daemon.pid, SIGTERM)
        assert load.run(30), load.report()
        code = daemon.wait_exit()
    report = load.report()
    closed = {record["client.port"]: record for record in daemon.records("connection.closed")}

    assert code == 0
    assert (100, 0) == (report["complete"], report["wrong"]), report
    for client in clients:
        record = closed[client.port]
        assert client.received == record["echod.io.receive"] == record["echod.io.transmit"]
        assert "echod.io.discarded" not in record
    assert set(reasons(daemon)) == {"peer_closed", "drained"}
    assert daemon.wait_for("service.stopped")["echod.connections.cut"] == 0


def test_drain_timeout_cuts_who_is_busy(start: Starter) -> None:
    """After drain_timeout both a client that never reads and one that never falls quiet are reset, and counted."""
    daemon = start(workers=WORKERS, daemon={"drain_timeout": "1s"})
    with contextlib.ExitStack() as stack:
        idle = opened(stack, daemon, 5)
        talker = opened(stack, daemon, 1)[0]
        silent = stuck(stack, daemon, 3)
        ping(talker)
        stopped = time.monotonic()
        daemon.signal(SIGTERM)
        with pytest.raises(ConnectionError):
            talk(talker)
        code = daemon.wait_exit()
        took = time.monotonic() - stopped
        ends = {read_to_end(client.socket)[1] for client in silent.clients}
        assert {(b"", "fin")} == {read_to_end(client) for client in idle}

    assert code == 0
    assert 1.0 <= took <= 2.0
    assert ends == {"reset"}
    assert reasons(daemon) == {"drained": 5, "drain_timeout": 4}
    assert daemon.wait_for("service.stopped")["echod.connections.cut"] == 4


@pytest.mark.parametrize("second", [SIGQUIT, None], ids=["QUIT", "timeout"])
def test_who_lingers_is_not_cut(start: Starter, second: Signals | None) -> None:
    """`echod.connections.cut` counts the connections that a stop has reset, not those that had FIN already and linger.

    Catches a number that differs from the log's records of reason stopped and drain_timeout.
    """
    daemon = start(workers=WORKERS, daemon={"drain_timeout": "20s" if second else "300ms"})
    with contextlib.ExitStack() as stack:
        idle = opened(stack, daemon, 10)
        silent = stuck(stack, daemon, 6)
        daemon.signal(SIGTERM)
        assert {(b"", "fin")} == {read_to_end(client) for client in idle}
        started = time.monotonic()
        if second:
            daemon.signal(second)
        code = daemon.wait_exit()
        took = time.monotonic() - started
        ends = {read_to_end(client.socket)[1] for client in silent.clients}

    assert code == 0
    assert took <= AT_ONCE
    assert ends == {"reset"}
    assert reasons(daemon) == {"drained": 10, "stopped" if second else "drain_timeout": 6}
    assert daemon.wait_for("service.stopped")["echod.connections.cut"] == 6


@pytest.mark.alone
def test_quit_with_many(start: Starter) -> None:
    """QUIT with 2,000 connections: gone within a second, each reset and counted once.

    Catches the kill of a worker that is at work, whose connections then count as cut and as lost.
    """
    count = 2000
    daemon = start(workers=WORKERS)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.address())) for _ in range(count)]
        daemon.wait_for("connection.opened", count=count)
        took = daemon.stop(SIGQUIT)
        ends = Counter(read_to_end(client, 1)[1] for client in clients)

    assert took <= AT_ONCE
    assert ends == {"reset": count}
    assert reasons(daemon) == {"stopped": count}
    assert daemon.wait_for("service.stopped")["echod.connections.cut"] == count
    assert len(daemon.records("worker.exited")) == WORKERS


def test_worker_dies_during_the_drain_delay(start: Starter) -> None:
    """The only worker is killed during drain_delay: the next one serves for the rest of it, and the stop is clean."""
    daemon = start(daemon={"drain_delay": "2s"}, expect=["worker.died"])
    address = daemon.address()
    stopped = time.monotonic()
    daemon.signal(SIGTERM)
    daemon.wait_for("service.stopping")
    os.kill(pid_of(daemon, 1), SIGKILL)
    daemon.wait_for("worker.died")
    echo_once(address)
    code = daemon.wait_exit()
    took = time.monotonic() - stopped

    assert code == 0
    assert 2.0 <= took <= 3.0
    assert len(daemon.records("worker.started")) == 2


# -- the death of a worker --------------------------------------------------------------------------------------------


def test_killed_worker_is_replaced(start: Starter) -> None:
    """Kill -9 of one of two workers: its clients see an end, the sibling's none; nobody new is refused or kept waiting.

    The books are right after it: what is lost is said once, and does not take up places for ever.
    """
    daemon = start(workers=WORKERS, expect=["worker.died"])
    with contextlib.ExitStack() as stack:
        clients = by_slot(daemon, opened(stack, daemon, 60))
        assert all(clients.values()), "all connections went to one worker"
        victim = pid_of(daemon, 1)
        killed = time.monotonic()
        os.kill(victim, SIGKILL)
        new = []
        while time.monotonic() < killed + 1.0:
            new.append(stack.enter_context(connect(daemon.address())))
            assert ping(new[-1]) < 1.0
            ping(clients[2][len(new) % len(clients[2])])
        started = daemon.wait_for("worker.started", count=WORKERS + 1)
        died = daemon.wait_for("worker.died")
        ends = {read_to_end(client)[1] for client in clients[1]}
        for client in [*clients[2], *new]:
            ping(client)

        assert ends <= {"fin", "reset"}
        assert daemon.active() == len(clients[2]) + len(new)
    expected = {"echod.worker.slot": 1, "echod.worker.pid": victim, "echod.signal": "SIGKILL"}
    assert expected == {key: died[key] for key in expected}
    assert died["echod.connections.lost"] == len(clients[1])
    assert "echod.worker.silent" not in died
    assert moment(started) - moment(died) < 1.0
    assert started["echod.worker.slot"] == 1
    wait_until(lambda: daemon.active() == 0, 5, "no active connection")


@pytest.mark.alone
def test_dying_workers_are_throttled(start: Starter, size: Size) -> None:
    """A worker that is killed whenever it appears: the waits double from 0.1 s to 10 s, said once, on the edge.

    The other slot's connections notice nothing, and once the killing ends the slot serves again. All the while the
    supervisor takes less than 5 % of a processor. Catches waits that stay short, and a warning with every death.
    """
    deaths = size(5, 9)
    daemon = start(workers=WORKERS, expect=["worker.died", "worker.throttled"])
    with contextlib.ExitStack() as stack:
        bystander = opened(stack, daemon, 1)[0]
        slot = next(slot for slot, clients in by_slot(daemon, [bystander]).items() if not clients)
        spent, began = proc.cpu(daemon.pid), time.monotonic()
        for number in range(1, deaths + 1):
            started = daemon.wait_for("worker.started", {"echod.worker.slot": slot}, count=number, timeout=12)
            os.kill(started["echod.worker.pid"], SIGKILL)
            daemon.wait_for("worker.died", count=number)
            ping(bystander)
            if number == 4:
                wait_until(lambda: len(daemon.state()["workers"]) == 1, 1, "a state without the dead worker")
        last = daemon.wait_for("worker.started", {"echod.worker.slot": slot}, count=deaths + 1, timeout=12)
        share = (proc.cpu(daemon.pid) - spent) / (time.monotonic() - began)
        wait_until(lambda: len(daemon.state()["workers"]) == WORKERS, 2, "a state with the new worker")
        assert daemon.reader
        life = [record for record in daemon.reader.records if record.get("echod.worker.slot") == slot]
        waits = [
            moment(after) - moment(before)
            for before, after in pairwise(life)
            if (before["event"], after["event"]) == ("worker.died", "worker.started")
        ]
        throttled = daemon.records("worker.throttled")

    print(f"waits {[round(wait, 3) for wait in waits]}, supervisor at {share:.1%}")  # noqa: T201
    assert share < 0.05
    for wait, expected in zip(waits, [min(0.1 * 2**number, 10.0) for number in range(deaths)], strict=True):
        assert expected - 0.01 <= wait <= expected + 0.25
    assert [0.2] == [record["echod.worker.delay"] for record in throttled]
    assert moment(throttled[0]) < moment(daemon.records("worker.started", {"echod.worker.slot": slot})[2])
    assert proc.alive(last["echod.worker.pid"])


@pytest.mark.xdist_group("slow")
def test_silent_worker_is_replaced(start: Starter, size: Size) -> None:
    """A worker that is stopped (SIGSTOP) is killed and replaced within 11 s; nobody new waits for it.

    Takes 11 s each, nearly all of them asleep. Catches a worker that is given the time for one answer more.
    """
    for _ in range(size(1, 5)):
        one_silence(start(workers=WORKERS, expect=["worker.died"]))


def one_silence(daemon: Daemon) -> None:
    """Stop a worker and follow everybody's clients until it is replaced."""
    with contextlib.ExitStack() as stack:
        clients = by_slot(daemon, opened(stack, daemon, 60))
        assert all(clients.values()), "all connections went to one worker"
        victim = pid_of(daemon, 2)
        stopped, before = time.monotonic(), time.time()
        os.kill(victim, SIGSTOP)
        slowest = 0.0
        while not daemon.records("worker.died") and time.monotonic() < stopped + 15:
            with connect(daemon.address()) as client:
                slowest = max(slowest, ping(client))
            ping(clients[1][0])
            time.sleep(0.1)  # a client's own pace
        died = daemon.wait_for("worker.died")
        started = daemon.wait_for("worker.started", count=WORKERS + 1, timeout=1)
        for client in clients[1]:
            ping(client)
        ends = {read_to_end(client)[1] for client in clients[2]}

    waited, took = moment(died) - before, moment(started) - before
    print(f"dead after {waited:.2f} s, replaced after {took:.2f} s, slowest new connection {slowest:.3f} s")  # noqa: T201
    assert 9.0 <= waited <= took <= 11.0
    assert slowest < 1.0
    assert ends <= {"fin", "reset"}
    expected = {"echod.worker.slot": 2, "echod.worker.pid": victim, "echod.worker.silent": True}
    assert expected == {key: died.get(key) for key in expected}
    assert died["echod.connections.lost"] == len(clients[2])


@pytest.mark.xdist_group("slow")
def test_all_stopped_for_a_while(start: Starter, size: Size) -> None:
    """Every process is stopped for longer than silence is suffered, and continued: nobody is killed, all serve on.

    A machine that was suspended looks like that. Catches a supervisor that blames its workers for its own absence.
    """
    daemon = start(workers=WORKERS)
    pids = daemon.pids()
    with contextlib.ExitStack() as stack:
        clients = opened(stack, daemon, 20)
        address = daemon.address()
        os.killpg(daemon.pid, SIGSTOP)
        for client in clients:
            client.sendall(b"under way")
        waiting = stack.enter_context(connect(address))
        time.sleep(size(12, 30))  # how long they are stopped
        os.killpg(daemon.pid, SIGCONT)
        assert {b"under way"} == {read_exactly(client, 9) for client in clients}
        ping(waiting)
        # Whoever was to be killed for the silence would be by the next ping but one.
        time.sleep(3)
        for client in [*clients, waiting]:
            ping(client)
        daemon.reload()

    assert pids == daemon.pids()
    assert [] == daemon.records("worker.died")


# -- the death of the supervisor --------------------------------------------------------------------------------------


def successor(directory: Path, killed: Daemon, address: Address) -> Daemon:
    """Return a daemon for the same address and the same runtime directory, not started yet."""
    directory.mkdir()
    found = Daemon(
        directory,
        daemon={"runtime_directory": str(killed.runtime)},
        listeners=[{"name": "echo", "kind": "tcp", "address": f"{address[0]}:{address[1]}"}],
    )
    found.runtime = killed.runtime
    return found


def more_than_fits() -> int:
    """Return how many bytes are more than the kernel and echod take from a client that does not read, but not by much.

    What is left is less than a lingering close reads (1 MiB), so that an ending by FIN is possible.
    """
    largest = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
    return largest + 768 * KIB


def test_killed_supervisor_leaves_no_debts(start: Starter, tmp_path: Path, size: Size) -> None:
    """Kill -9 of the supervisor with data queued: who reads gets every byte that echod took, then FIN.

    Who does not read is cut when two seconds are over, and nobody is left; a new start gets the address, the lock and
    the runtime directory while the old workers still send. Catches workers that send first and close the door then.
    """
    for number in range(size(1, 10)):
        one_abandonment(start(workers=WORKERS), tmp_path / f"successor-{number}")


def one_abandonment(daemon: Daemon, directory: Path) -> None:
    """Kill a supervisor whose workers have bytes to send, and follow all of its clients to their end."""
    address = daemon.address()
    with contextlib.ExitStack() as stack:
        idle = opened(stack, daemon, 5)
        readers = stuck(stack, daemon, 8, more_than_fits(), 64 * KIB)
        never = stuck(stack, daemon, 2)
        workers = daemon.workers()
        killed = time.monotonic()
        daemon.signal(SIGKILL)
        daemon.wait_exit()
        wait_until(lambda: bindable(address), 5, "a free address")
        freed = time.monotonic() - killed
        with successor(directory, daemon, address):
            overlap = sum(map(proc.alive, workers))
            echo_once(address)
            for client in readers.clients:
                client.reads = "always"
            readers.run(5)
            readers.close()
            ends = {read_to_end(client)[1] for client in idle}
            wait_until(lambda: not any(map(proc.alive, workers)), 5, "the workers' end")
            took = time.monotonic() - killed
        cut = {read_to_end(client.socket)[1] for client in never.clients}
    closed = {record["client.port"]: record for record in daemon.records("connection.closed")}

    print(f"free after {freed * 1000:.0f} ms, {overlap} old workers beside the new daemon, gone after {took:.2f} s")  # noqa: T201
    assert freed <= 0.25
    assert took <= LEFT_ALONE
    assert overlap == WORKERS
    assert (ends, cut) == ({"fin"}, {"reset"})
    assert len(closed) == 15
    assert {"supervisor_lost"} == {record["echod.close.reason"] for record in closed.values()}
    for client in readers.clients:
        record = closed[client.port]
        assert (client.end, client.wrong) == ("fin", 0)
        assert client.received == record["echod.io.receive"] == record["echod.io.transmit"]
        assert client.received < client.size  # else nothing was queued
        assert client.sent >= client.received + record["echod.io.discarded"]


def bindable(address: Address) -> bool:
    """Tell whether a server could bind an address just now."""
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return True
    return False
