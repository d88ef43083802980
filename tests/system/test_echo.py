"""What was sent comes back: byte for byte, in order, to the last one, on every poller, and the log tells it right."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import MIB, Load, connect, echo_once, ping, read_exactly, read_to_end

if TYPE_CHECKING:
    from tests.system.daemon import Daemon, Starter

GIB = 1024 * MIB
SEED = 20_240_601
POLLERS = ("epoll", "poll", "select")

each_poller = pytest.mark.parametrize("poller", POLLERS)


def loopback_has_ipv6() -> bool:
    """Tell whether ::1 can be bound here."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def assert_all_complete(load: Load, count: int) -> None:
    """Hold that every client got exactly what it sent, and FIN."""
    report = load.report()

    assert (0, count, count) == (report["wrong"], report["complete"], report.get("fin")), report


def closed_by_port(daemon: Daemon, count: int) -> dict[int, dict[str, object]]:
    """Wait for the closed records and sort them by the client's port."""
    daemon.wait_for("connection.closed", count=count)
    records = daemon.records("connection.closed")
    return {record["client.port"]: record for record in records}


@each_poller
def test_echo_is_byte_exact(start: Starter, poller: str) -> None:
    """200 clients with writes of 1 B to 1 MiB get back what they sent, then FIN; the log counts the same bytes."""
    daemon = start(daemon={"poller": poller})
    with Load.open(daemon.address(), 200, 256 * 1024, SEED) as load:
        assert load.run(30), load.report()
        assert_all_complete(load, 200)
        closed = closed_by_port(daemon, 200)

    for client in load.clients:
        record = closed[client.port]
        assert (client.sent, client.received) == (record["echod.io.receive"], record["echod.io.transmit"])
        assert record["echod.close.reason"] == "peer_closed"


@each_poller
def test_every_byte_value(start: Starter, poller: str) -> None:
    """All 256 byte values come back, one by one and together: nothing is taken for text or for a control character."""
    daemon = start(daemon={"poller": poller})
    with connect(daemon.address()) as client:
        for value in range(256):
            ping(client, bytes([value]))
        ping(client, bytes(range(256)) * 64)


@each_poller
def test_zero_bytes(start: Starter, poller: str) -> None:
    """A client that sends nothing and shuts down gets FIN at once; its record counts 0 bytes."""
    daemon = start(daemon={"poller": poller})
    for _ in range(50):
        echo_once(daemon.address(), b"")
    closed = closed_by_port(daemon, 50)

    assert {(0, 0)} == {(record["echod.io.receive"], record["echod.io.transmit"]) for record in closed.values()}


@each_poller
def test_one_slow_reader_harms_nobody(start: Starter, poller: str) -> None:
    """While one client does not read, others are served: no write ever blocks the loop."""
    daemon = start(daemon={"poller": poller})
    with Load.open(daemon.address(), 1, 64 * MIB, SEED, reads="never") as stuck:
        stuck.run(0.3)
        with connect(daemon.address()) as client:
            slowest = max(ping(client) for _ in range(50))

    assert slowest < 1.0


@each_poller
def test_two_listeners(start: Starter, poller: str) -> None:
    """Two listeners serve at once, and each connection's record names the one it came by."""
    listeners = [{"name": name, "kind": "tcp", "address": "127.0.0.1:0"} for name in ("first", "second")]
    daemon = start(daemon={"poller": poller}, listeners=listeners)
    ports = {}
    with contextlib.ExitStack() as stack:
        for name in ("first", "second"):
            client = stack.enter_context(connect(daemon.address(name)))
            ping(client)
            ports[client.getsockname()[1]] = (name, daemon.address(name)[1])
    closed = closed_by_port(daemon, 2)

    assert ports == {port: (closed[port]["echod.listener"], closed[port]["server.port"]) for port in ports}


def test_ipv4_and_ipv6(start: Starter) -> None:
    """A literal IPv6 address and an IPv4 one are served side by side, and the records name the families."""
    if not loopback_has_ipv6():
        pytest.skip("this machine has no ::1")
    addresses = {"four": "127.0.0.1:0", "six": "[::1]:0"}
    daemon = start(listeners=[{"name": name, "kind": "tcp", "address": at} for name, at in addresses.items()])
    echo_once(daemon.address("four"))
    echo_once(daemon.address("six"))
    closed = closed_by_port(daemon, 2)

    assert {("127.0.0.1", "ipv4"), ("::1", "ipv6")} == {
        (record["client.address"], record["network.type"]) for record in closed.values()
    }


def test_a_name_binds_every_address(start: Starter) -> None:
    """`localhost` binds each address it resolves to, all on one port, and each of them echoes."""
    daemon = start(listeners=[{"name": "echo", "kind": "tcp", "address": "localhost:0"}])
    resolved = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    expected = resolved if loopback_has_ipv6() else resolved - {"::1"}
    bound = daemon.addresses()
    for address in bound:
        echo_once(address)

    assert expected == {host for host, _ in bound}
    assert len({port for _, port in bound}) == 1


def test_one_gibibyte_through_a_thousand_connections(start: Starter) -> None:
    """1 GiB through 1,000 connections, write sizes 1 B to 1 MiB, compared byte for byte: none is wrong."""
    daemon = start(workers=2)
    size = GIB // 1000 + 1
    started = time.monotonic()
    with Load.open(daemon.address(), 1000, size, SEED) as load:
        assert load.run(60), load.report()
        assert_all_complete(load, 1000)
        closed = closed_by_port(daemon, 1000)
    print(f"1 GiB took {time.monotonic() - started:.1f} s")  # noqa: T201

    assert {(size, size)} == {(record["echod.io.receive"], record["echod.io.transmit"]) for record in closed.values()}


def test_a_thousand_half_closes(start: Starter) -> None:
    """1,000 clients send 1 MiB, shut their write side and only then read: all get all of it and FIN, none a reset."""
    daemon = start()
    with Load.open(daemon.address(), 1000, MIB, SEED, reads="after") as load:
        assert load.run(60), load.report()
        assert_all_complete(load, 1000)
        daemon.wait_for("connection.closed", {"echod.close.reason": "peer_closed"}, count=1000)


def test_connection_ids_are_unique(start: Starter) -> None:
    """Over two workers no id is given twice, each opened record has its closed one, and both workers had some."""
    daemon = start(workers=2)
    with Load.open(daemon.address(), 400, 1000, SEED, writes=(1, 256)) as load:
        assert load.run(30), load.report()
        daemon.wait_for("connection.closed", count=400)
    opened = daemon.records("connection.opened")
    closed = daemon.records("connection.closed")
    ids = [record["echod.connection.id"] for record in opened]

    assert len(set(ids)) == len(ids) == 400
    assert sorted(ids) == sorted(record["echod.connection.id"] for record in closed)
    assert {client.port for client in load.clients} == {record["client.port"] for record in opened}


def test_records_are_complete(start: Starter) -> None:
    """The opened and the closed record carry every field of the schema, with the values that the client knows."""
    daemon = start()
    with connect(daemon.address()) as client:
        ping(client, b"x" * 1000)
        here, there = client.getsockname(), client.getpeername()
        time.sleep(0.2)  # a duration to be seen in the record
    closed = daemon.wait_for("connection.closed")
    opened = daemon.wait_for("connection.opened")
    common = {
        "echod.connection.id": opened["echod.connection.id"],
        "echod.listener": "echo",
        "client.address": here[0],
        "client.port": here[1],
        "server.address": there[0],
        "server.port": there[1],
        "network.transport": "tcp",
        "network.type": "ipv4",
        "level": "info",
    }
    ended = {"echod.io.receive": 1000, "echod.io.transmit": 1000, "echod.close.reason": "peer_closed"}

    assert common.items() <= opened.items()
    assert (common | ended).items() <= closed.items()
    assert 0.2 <= closed["echod.connection.duration"] < 2.0
    assert opened["timestamp"] < closed["timestamp"]
    assert closed["timestamp"].endswith("Z")


def test_split_writes_keep_their_order(start: Starter) -> None:
    """Random writes and reads on a tiny receive buffer, taking turns: a short send loses and doubles nothing."""
    daemon = start(limits={"buffer": "16KiB"})
    source = random.Random(SEED)
    data = source.randbytes(3 * MIB)
    answer = bytearray()
    print(f"seed {SEED}")  # noqa: T201
    with connect(daemon.address(), receive_buffer=4096) as client:
        position = 0
        while position < len(data):
            step = source.choice((1, 100, 5000, 30_000))
            client.sendall(data[position : position + step])
            position += step
            if len(answer) < position - 10_000:
                answer += read_exactly(client, min(source.randrange(1, 60_000), position - len(answer)))
        client.shutdown(socket.SHUT_WR)
        rest, end = read_to_end(client)

    assert end == "fin"
    assert bytes(answer + rest) == data


@pytest.mark.alone
@pytest.mark.parametrize("poller", ["epoll", "poll", "select"])
def test_busy_polling_is_a_choice(start: Starter, poller: str) -> None:
    """With `busy_poll` a worker looks on after each message, on its core; a reload ends that, and nobody notices.

    Catches a worker that looks on for ever, or that takes the key and sleeps all the same.
    """
    pause, messages = 0.05, 10
    daemon = start(daemon={"poller": poller, "busy_poll": "20ms"})

    def used(client: socket.socket) -> float:
        before = daemon.cpu()
        for _ in range(messages):
            ping(client)
            time.sleep(pause)  # a client's own pace
        return daemon.cpu() - before

    with connect(daemon.address()) as client:
        ping(client)
        busy = used(client)
        daemon.reload(daemon={"busy_poll": "0s"})
        calm = used(client)

    print(f"{busy / messages * 1e3:.1f} ms of CPU time for a message, {calm / messages * 1e3:.1f} without")  # noqa: T201
    assert messages * 0.5 * 0.02 <= busy <= messages * 0.8 * pause
    assert calm < busy / 4
