"""Faults on purpose, as the clients meet them that they are made for: exact, loud, and harmless to all others."""

from __future__ import annotations

import socket
import ssl
import time
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.clients import KIB, Load, Payload, connect, echo_once, ping, read_exactly, read_to_end
from tests.system.daemon import wait_until
from tests.system.test_tls import NAME, Identity

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.daemon import Starter

LOUD = ["faults.enabled"]
CONTENT = bytes(Payload(7).view(0, 256 * KIB))


def doors(**faults: Any) -> list[dict[str, Any]]:
    """Describe a listener with these faults, and a good one beside it."""
    return [
        {"name": "echo", "address": "127.0.0.1:0", "faults": faults},
        {"name": "good", "address": "127.0.0.1:0"},
    ]


@pytest.mark.parametrize("poller", ["epoll", "poll", "select"])
def test_a_delay_is_kept_and_harms_nobody_else(start: Starter, poller: str) -> None:
    """A byte comes back no sooner than asked, all of them whole and in order; the listener beside it is as quick."""
    daemon = start(workers=2, listeners=doors(delay="300ms", jitter="50ms"), daemon={"poller": poller}, expect=LOUD)
    with connect(daemon.address()) as slow, connect(daemon.address("good")) as good:
        assert 0.25 <= ping(slow) < 2
        began = time.monotonic()
        slow.sendall(CONTENT)
        slow.shutdown(socket.SHUT_WR)
        assert ping(good) < 0.25
        assert (CONTENT, "fin") == read_to_end(slow)
        assert time.monotonic() - began >= 0.25

    assert daemon.cpu_share(1) < 0.2


def test_all_records_say_so(start: Starter) -> None:
    """A warning at the start and after a reload says what is asked for; each record of the listener is marked."""
    daemon = start(
        workers=2,
        listeners=[
            *doors(delay="1ms", jitter="1ms", seed=7),
            {"name": "udp", "kind": "udp", "address": "127.0.0.1:0", "faults": {"drop": 1}},
        ],
        log={"level": "debug"},
        limits={"max_connections": 2},
        expect=LOUD,
    )
    warning = daemon.wait_for("faults.enabled", {"echod.listener": "echo"})
    with connect(daemon.address()) as first, connect(daemon.address("good")) as second:
        ping(first)
        ping(second)
        with connect(daemon.address()) as third:
            assert read_to_end(third)[0] == b""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"x", daemon.address("udp"))
        dropped = daemon.wait_for("datagram.dropped")
    closed = daemon.wait_for("connection.closed", {"echod.listener": "echo"})
    daemon.reload(limits={"idle_timeout": "9m"})
    daemon.wait_for("faults.enabled", {"echod.listener": "udp"}, count=2)
    daemon.wait_for("connection.closed", {"echod.listener": "good"})

    assert ("warning", ['delay = "1ms"', 'jitter = "1ms"', "seed = 7"], True) == (
        warning["level"],
        warning["echod.faults"],
        warning["echod.fault"],
    )
    assert (1, True) == (dropped["echod.dropped.on_purpose"], dropped["echod.fault"])
    for event in ("opened", "closed", "refused"):
        for record in daemon.records(f"connection.{event}"):
            assert ("echod.fault" in record) is (record["echod.listener"] == "echo"), record
    for event in ("received", "sent"):
        for record in daemon.records(f"connection.{event}"):
            assert ("echod.fault" in record) is (record["echod.connection.id"] == closed["echod.connection.id"])
    assert {"echo", "udp"} == {record["echod.listener"] for record in daemon.records("faults.enabled")}
    assert daemon.records("connection.refused")


@pytest.mark.alone
def test_a_rate_is_kept(start: Starter) -> None:
    """Each client gets its bytes at the rate that was asked for, whatever the others do."""
    daemon = start(listeners=doors(rate="128KiB"), expect=LOUD)
    with connect(daemon.address()) as one, connect(daemon.address()) as other:
        began = time.monotonic()
        for client in (one, other):
            client.sendall(CONTENT)
            client.shutdown(socket.SHUT_WR)
        assert (CONTENT, "fin") == read_to_end(one)
        took = time.monotonic() - began
        assert (CONTENT, "fin") == read_to_end(other)
        both = time.monotonic() - began

    assert took == pytest.approx(2.0, rel=0.05)
    assert both == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(("key", "end", "reason"), [("close", "fin", "fault_close"), ("reset", "reset", "fault_reset")])
def test_an_end_after_so_many_bytes(start: Starter, key: str, end: str, reason: str) -> None:
    """The client gets exactly these, a hundred times, then FIN or a reset; one that asks for fewer is served."""
    most = 100 * KIB + 1
    daemon = start(workers=2, listeners=doors(**{f"{key}_after": f"{most}B"}), expect=LOUD)
    for _ in range(100):
        with connect(daemon.address()) as client:
            client.sendall(CONTENT[: most + 7])
            assert (CONTENT[:most], end) == read_to_end(client)
    echo_once(daemon.address(), CONTENT[: most - 1])
    closed = daemon.wait_for("connection.closed", {"echod.close.reason": reason}, count=100)

    assert (most, True) == (closed["echod.io.transmit"], closed["echod.fault"])


def test_a_stall_ends_with_the_drain(start: Starter) -> None:
    """Nothing comes after so many bytes, nothing beyond the buffer is read, and a stop does not wait for it."""
    daemon = start(listeners=doors(stall_after="1000B"), expect=LOUD, limits={"buffer": "16KiB"})
    with connect(daemon.address()) as client:
        client.sendall(CONTENT[:5000])
        assert CONTENT[:1000] == read_exactly(client, 1000)
        assert (b"", "timeout") == read_to_end(client, timeout=0.3)
        ping_good(daemon.address("good"))
        client.setblocking(False)
        fill(client)
        assert daemon.cpu_share(0.5) < 0.2
        assert daemon.stop() < 2
        closed = daemon.records("connection.closed", {"echod.listener": "echo"})[0]

    assert ("drained", 17384, 1000) == (
        closed["echod.close.reason"],
        closed["echod.io.receive"],
        closed["echod.io.transmit"],
    )


def ping_good(address: tuple[str, int]) -> None:
    """Show that another listener answers."""
    with connect(address) as client:
        ping(client)


def fill(client: socket.socket) -> None:
    """Send until neither side takes more."""

    def sends() -> bool:
        try:
            return client.send(CONTENT) < 0
        except BlockingIOError:
            return True

    wait_until(sends)
    time.sleep(0.1)  # what is watched is that the daemon takes no more


def test_a_drain_waits_for_what_is_delayed(start: Starter) -> None:
    """Bytes that are under way when the daemon is told to stop come back in time, then FIN."""
    daemon = start(listeners=doors(delay="1s"), expect=LOUD)
    with connect(daemon.address()) as client:
        client.sendall(CONTENT[:5000])
        daemon.wait_for("connection.opened")
        time.sleep(0.1)  # so that it is in the daemon's hands, where the drain finds it
        daemon.signal(SIGTERM)
        assert (CONTENT[:5000], "fin") == read_to_end(client)
        assert 0 == daemon.wait_exit()

    assert "drained" == daemon.records("connection.closed")[0]["echod.close.reason"]


def test_a_drain_that_cannot_wait_says_so(start: Starter) -> None:
    """What is delayed beyond the drain's timeout is cut by a reset, and the record has reason and counts."""
    daemon = start(listeners=doors(delay="30s"), expect=LOUD, daemon={"drain_timeout": "500ms"})
    with connect(daemon.address()) as client:
        client.sendall(CONTENT[:5000])
        daemon.wait_for("connection.opened")
        time.sleep(0.1)  # as above
        assert daemon.stop() < 2
        assert (b"", "reset") == read_to_end(client)
    closed = daemon.records("connection.closed")[0]

    assert ("drain_timeout", 5000, 0, True) == (
        closed["echod.close.reason"],
        closed["echod.io.receive"],
        closed["echod.io.transmit"],
        closed["echod.fault"],
    )


def test_a_reload_changes_those_who_come_after(start: Starter) -> None:
    """Who is connected keeps the delay under which it came in, on the same socket; who comes later has none."""
    daemon = start(workers=2, listeners=doors(delay="300ms"), expect=LOUD)
    with connect(daemon.address()) as before:
        ping(before)
        daemon.reload(listener=doors())
        assert ping(before) >= 0.3
        with connect(daemon.address()) as after:
            assert ping(after) < 0.25
    late = daemon.wait_for("connection.closed", {"echod.listener": "echo"}, count=2)

    assert [True, None] == sorted(
        (record.get("echod.fault") for record in daemon.records("connection.closed")), key=lambda mark: mark is None
    )
    assert late


def test_faults_go_with_every_door(start: Starter, tmp_path: Path) -> None:
    """On a path and behind a proxy they are the same, and the client is still whom the proxy names."""
    path = str(tmp_path / "s")
    proxy = {"enabled": True, "trusted": ["127.0.0.1/32"]}
    faults = {"delay": "200ms", "close_after": "3B"}
    daemon = start(
        listeners=[
            {"name": "unix", "kind": "unix", "address": path, "faults": faults},
            {"name": "echo", "address": "127.0.0.1:0", "proxy_protocol": proxy, "faults": faults},
        ],
        expect=LOUD,
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        began = time.monotonic()
        client.sendall(b"hello")
        assert (b"hel", "fin") == read_to_end(client)
        assert time.monotonic() - began >= 0.2
    with connect(daemon.address()) as client:
        began = time.monotonic()
        client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nhello")
        assert (b"hel", "fin") == read_to_end(client)
        assert time.monotonic() - began >= 0.2
    closed = daemon.wait_for("connection.closed", {"echod.listener": "echo"})

    assert ("192.0.2.1", "fault_close", True) == (
        closed["client.address"],
        closed["echod.close.reason"],
        closed["echod.fault"],
    )


def test_faults_go_with_tls(start: Starter, tmp_path: Path) -> None:
    """Behind a proxy and under TLS: as many bytes as asked, as late, then close_notify, or a reset and none."""
    identity = Identity(tmp_path)
    proxy = {"enabled": True, "trusted": ["127.0.0.1/32"]}
    [door] = identity.listener()
    daemon = start(
        listeners=[
            door | {"proxy_protocol": proxy, "faults": {"delay": "200ms", "rate": "1MiB", "close_after": "200KiB"}},
            door | {"name": "cut", "faults": {"reset_after": "100KiB"}},
        ],
        expect=LOUD,
    )
    with connect(daemon.address()) as raw:
        raw.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        with identity.client().wrap_socket(raw, server_hostname=NAME, suppress_ragged_eofs=False) as client:
            began = time.monotonic()
            client.sendall(CONTENT)
            assert (CONTENT[: 200 * KIB], "fin") == read_to_end(client)
            assert time.monotonic() - began >= 0.2
    with (
        connect(daemon.address("cut")) as raw,
        identity.client().wrap_socket(raw, server_hostname=NAME, suppress_ragged_eofs=False) as client,
    ):
        client.sendall(CONTENT[: 100 * KIB])
        assert CONTENT[: 100 * KIB] == read_exactly(client, 100 * KIB)
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):  # OpenSSL makes no difference
            client.recv(1)
    closed = daemon.wait_for("connection.closed", {"echod.listener": "echo"})
    cut = daemon.wait_for("connection.closed", {"echod.listener": "cut"})

    assert ("192.0.2.1", "fault_close", 200 * KIB, True) == (
        closed["client.address"],
        closed["echod.close.reason"],
        closed["echod.io.transmit"],
        closed["echod.fault"],
    )
    assert ("fault_reset", 100 * KIB) == (cut["echod.close.reason"], cut["echod.io.transmit"])


def test_the_same_seed_makes_the_same_run(start: Starter) -> None:
    """Of a thousand datagrams the same ones are lost and doubled by another daemon, about as many as asked."""

    def opened(seed: int) -> tuple[str, int]:
        faults = {"drop": 0.3, "duplicate": 0.2, "seed": seed}
        listener = {"name": "echo", "kind": "udp", "address": "127.0.0.1:0", "udp": {"rate": 0}, "faults": faults}
        return start(listeners=[listener], expect=LOUD).address()

    doors = [opened(5), opened(5), opened(6)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        heard = []
        for batch in range(0, 1000, 50):  # as many of all three as the kernel holds for a client that does not read yet
            for number in range(batch, batch + 50):
                for address in doors:
                    peer.sendto(str(number).encode(), address)
            heard += answers(peer, 0.1)
        heard += answers(peer, 1)
    once, again, other = (sorted(number for number, address in heard if address == door) for door in doors)

    assert once == again
    assert once != other
    assert 600 < len(set(once)) < 800
    assert 80 < len(once) - len(set(once)) < 200


def answers(peer: socket.socket, silence: float) -> list[tuple[int, tuple[str, int]]]:
    """Read numbers, each with the address it comes from, until none has come for so long."""
    peer.settimeout(silence)
    found = []
    try:
        while True:
            data, address = peer.recvfrom(10)
            found.append((int(data), address))
    except TimeoutError:
        return found


@pytest.mark.parametrize("poller", ["epoll", "poll", "select"])
def test_many_are_slowed_and_all_is_whole(start: Starter, poller: str) -> None:
    """A hundred clients at once, each delayed and slowed, get back every byte in order, and FIN."""
    faults = {"delay": "20ms", "jitter": "20ms", "rate": "512KiB"}
    daemon = start(
        workers=2,
        listeners=doors(**faults),
        daemon={"poller": poller},
        limits={"buffer": "16KiB"},
        expect=LOUD,
    )
    with Load.open(daemon.address(), 100, 128 * KIB, 7) as load:
        assert load.run(60), load.report()
        assert load.report()["complete"] == 100, load.report()
    daemon.wait_for("connection.closed", {"echod.close.reason": "peer_closed"}, count=100)

    assert {128 * KIB} == {record["echod.io.transmit"] for record in daemon.records("connection.closed")}
