"""Limits in real time: what ends a connection, how, and with which reason; what admission costs."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.clients import MIB, connect, ping, read_to_end
from tests.system.daemon import wait_until

if TYPE_CHECKING:
    from tests.conftest import Size
    from tests.system.daemon import Daemon, Starter

SLACK = 1.0  # a limit of T ends a connection between T and T + 1 s


def ended(daemon: Daemon, reason: str) -> float:
    """Wait for the one closed record, hold its reason and return its duration."""
    record = daemon.wait_for("connection.closed")

    assert record["echod.close.reason"] == reason
    return float(record["echod.connection.duration"])


def test_idle_timeout(start: Starter) -> None:
    """A silent client is sent FIN once the idle timeout has passed since its last byte, and not before."""
    daemon = start(limits={"idle_timeout": "300ms"})
    with connect(daemon.address()) as client:
        time.sleep(0.2)
        ping(client)
        started = time.monotonic()
        answer, end = read_to_end(client)
        waited = time.monotonic() - started

    assert (answer, end) == (b"", "fin")
    assert 0.28 <= waited <= 0.3 + SLACK
    assert ended(daemon, "idle_timeout") >= 0.48


def test_a_trickling_client_stays(start: Starter) -> None:
    """A client that sends one byte every half timeout is never closed."""
    daemon = start(limits={"idle_timeout": "300ms"})
    with connect(daemon.address()) as client:
        for _ in range(10):
            ping(client, b"x")
            time.sleep(0.15)
        ping(client, b"still here")

    assert ended(daemon, "peer_closed") >= 1.5


def test_idle_timeout_spares_input_that_follows(start: Starter) -> None:
    """What a client sends into the closing of an idle connection makes no reset: echod lingers, and FIN is read."""
    daemon = start(limits={"idle_timeout": "200ms"})
    with connect(daemon.address()) as client:
        assert client.recv(1) == b""
        client.sendall(b"too late" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == (b"", "fin")

    ended(daemon, "idle_timeout")
    assert daemon.records("connection.closed")[0]["echod.io.receive"] == 0


def test_max_lifetime(start: Starter) -> None:
    """A busy client is sent all that it is owed and FIN when its lifetime is over: each byte received came back."""
    daemon = start(limits={"max_lifetime": "500ms"})
    sent = 0
    with connect(daemon.address()) as client:
        started = time.monotonic()
        try:
            while time.monotonic() < started + 3:
                ping(client, b"0123456789")
                sent += 10
                time.sleep(0.01)
        except AssertionError:
            waited = time.monotonic() - started
        assert client.recv(1) == b""
    duration = ended(daemon, "max_lifetime")
    record = daemon.records("connection.closed")[0]

    assert 0.45 <= waited <= 0.5 + SLACK
    assert duration >= 0.5
    assert record["echod.io.receive"] == record["echod.io.transmit"] == sent


def test_half_close_timeout(start: Starter) -> None:
    """A client that half-closes and does not read what is held for it is cut after the half-close timeout.

    It is cut by RST: FIN would tell it that it has got everything.
    """
    daemon = start(limits={"half_close_timeout": "300ms", "buffer": "16MiB"})
    data = b"x" * 12 * MIB  # more than the kernel takes for a peer that does not read, less than echod may hold
    with connect(daemon.address(), receive_buffer=4096) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        record = daemon.wait_for("connection.closed", timeout=5)
        answer, end = read_to_end(client)

    assert record["echod.close.reason"] == "half_close_timeout"
    assert (len(data), "reset") == (record["echod.io.receive"], end)
    assert len(answer) < len(data)
    assert 0.3 <= record["echod.connection.duration"] <= 0.3 + 2 * SLACK


def test_half_close_timeout_spares_a_slow_reader(start: Starter) -> None:
    """A client that half-closes and reads slowly, but reads, gets everything and FIN: progress moves the deadline."""
    daemon = start(limits={"half_close_timeout": "500ms"})
    data = bytes(range(256)) * 8192
    with connect(daemon.address(), receive_buffer=65_536) as client:
        client.settimeout(0.2)
        sent = 0
        try:
            while sent < len(data):
                sent += client.send(data[sent:])
        except TimeoutError:
            pass
        client.shutdown(socket.SHUT_WR)
        answer = bytearray()
        client.settimeout(5)
        started = time.monotonic()
        while part := client.recv(65_536):
            answer += part
            time.sleep(0.05)
        waited = time.monotonic() - started

    assert bytes(answer) == data[:sent]
    assert waited > 1.0
    ended(daemon, "peer_closed")


def test_zero_switches_a_limit_off(start: Starter) -> None:
    """With every time limit at 0 a silent client stays."""
    off = {"idle_timeout": "0s", "half_close_timeout": "0s", "max_lifetime": "0s"}
    daemon = start(limits=off)
    with connect(daemon.address()) as client:
        time.sleep(1.0)
        ping(client)
    ended(daemon, "peer_closed")


def burst(daemon: Daemon, listeners: int, clients: int) -> float:
    """Connect so many clients at once, spread over all listeners; return the seconds until all were echoed to."""
    addresses = [daemon.address(f"echo{number}") for number in range(listeners)]
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.socket()) for _ in range(clients)]
        began = time.monotonic()
        for number, client in enumerate(crowd):
            client.setblocking(False)
            client.connect_ex(addresses[number % listeners])
        for client in crowd:
            client.settimeout(20)
            client.sendall(b"x")
        for client in crowd:
            assert client.recv(1) == b"x"
        took = time.monotonic() - began
    wait_until(lambda: daemon.active() == 0, what="all clients to be gone")
    return took


@pytest.mark.alone
def test_limit_per_address_does_not_slow_a_burst_of_connects(start: Starter, size: Size) -> None:
    """The workers admit side by side: with the limit a burst takes at most three times as long as without."""
    workers, listeners = size(48, 128), size(40, 100)
    tables: dict[str, Any] = {
        "workers": workers,
        "listeners": [{"name": f"echo{number}", "address": "127.0.0.1:0"} for number in range(listeners)],
        "log": {"suppress": ["connection.opened", "connection.closed"]},
    }
    medians = []
    for per_address in (0, 1000):
        daemon = start(limits={"max_connections": 2000, "max_connections_per_address": per_address}, **tables)
        medians.append(statistics.median(burst(daemon, listeners, 700) for _ in range(7)))
        daemon.stop()
    without, limited = medians
    print(f"{workers} workers: {limited * 1000:.0f} ms with the limit, {without * 1000:.0f} ms without")  # noqa: T201

    assert limited <= 3 * without
