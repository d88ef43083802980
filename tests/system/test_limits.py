"""Time limits of a connection, in real time: FIN when everything was echoed, RST when not, the reason in the record."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from tests.system.clients import MIB, connect, ping, read_to_end

if TYPE_CHECKING:
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
