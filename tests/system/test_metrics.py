"""The numbers of a real daemon agree: with its log and with what its clients have counted, whoever is killed."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.clients import KIB, Load, connect, ping, read_exactly
from tests.system.daemon import wait_until
from tests.system.test_admin import ANYWHERE, get

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.conftest import Size
    from tests.system.daemon import Daemon, Starter

Numbers = dict[str, float]


def numbers(daemon: Daemon) -> Numbers:
    """Return every number of the page, by name and the value of its label, as in "echod_io_bytes_total receive"."""
    page = get(daemon.address("admin"), "/metrics")[1]
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def logged(daemon: Daemon, key: str, events: Iterable[str] = ("connection.closed", "worker.died")) -> int:
    """Return the sum of a field over records."""
    return sum(record.get(key, 0) for event in events for record in daemon.records(event))


def await_bytes(daemon: Daemon, count: int) -> None:
    """Wait until so many bytes have come back: those of open connections are counted once a second."""
    wait_until(lambda: numbers(daemon)["echod_io_bytes_total transmit"] == count, timeout=3)


def agree(daemon: Daemon) -> Numbers:
    """Hold the counters against the log, once no connection is open; return them."""
    wait_until(lambda: numbers(daemon)["echod_connections_active"] == 0)
    found = numbers(daemon)
    ended = found["echod_connections_accepted_total"]
    wait_until(lambda: ended <= len(daemon.records("connection.closed")) + logged(daemon, "echod.connections.lost"))
    reasons: dict[str, int] = {"worker_lost": logged(daemon, "echod.connections.lost")}
    for record in daemon.records("connection.closed"):
        reason = record["echod.close.reason"]
        reasons[reason] = reasons.get(reason, 0) + 1
    name = "echod_connections_closed_total "
    closed = {key.removeprefix(name): value for key, value in found.items() if key.startswith(name)}

    assert {reason: count for reason, count in reasons.items() if count} == {
        reason: count for reason, count in closed.items() if count
    }
    assert found["echod_connections_accepted_total"] == sum(closed.values())
    assert found["echod_io_bytes_total receive"] == logged(daemon, "echod.io.receive")
    assert found["echod_io_bytes_total transmit"] == logged(daemon, "echod.io.transmit")
    return found


def test_log_counters_and_clients_agree(start: Starter, size: Size) -> None:
    """After a random load with reloads the log, the counters and the clients have the same number of bytes and ends."""
    seed = random.randrange(1 << 30)
    daemon = start(workers=2, admin=ANYWHERE, limits={"idle_timeout": "10m"})
    sent = 0
    for turn in range(size(4, 40)):
        with Load.open(daemon.address(), 30, 200_000, seed + turn) as load:
            load.run(0.05)
            daemon.reload(daemon={"workers": 1 + turn % 3, "runtime_directory": str(daemon.runtime)})
            assert load.run(60)
            report = load.report()
        assert 30 == report["complete"]
        sent += report["sent"]
        before = numbers(daemon)
        assert before["echod_workers_configured"] == 1 + turn % 3
    found = agree(daemon)

    assert (sent, sent) == (found["echod_io_bytes_total receive"], found["echod_io_bytes_total transmit"])
    assert found["echod_connection_duration_seconds_count"] == 30 * size(4, 40)
    assert found["echod_config_last_reload_successful"] == 1


def test_the_lost_are_counted_once(start: Starter, size: Size) -> None:
    """Of a worker that is killed, log and counters give up the same connections and bytes, and nothing goes back."""
    daemon = start(workers=2, admin=ANYWHERE, expect=["worker.died", "worker.throttled"])
    before: Numbers = {}
    echoed = 0
    for turn in range(size(3, 20)):
        died = turn + 1
        clients = [connect(daemon.address()) for _ in range(8)]
        for client in clients:
            ping(client, b"x" * 1000)
            echoed += 1000
        for client in clients[:3]:
            client.close()
        await_bytes(daemon, echoed)
        wait_until(lambda: daemon.active() == 5)
        os.kill(max(daemon.workers(), key=daemon.descriptors().__getitem__), SIGKILL)  # the one that has most of them
        daemon.wait_for("worker.died", count=died)
        for client in clients[3:]:
            client.close()
        wait_until(lambda: numbers(daemon)["echod_workers"] == 2, timeout=30)
        found = agree(daemon)
        gone_back = {
            name: value
            for name, value in before.items()
            if name.startswith("echod_") and "_total" in name and found[name] < value
        }
        assert not gone_back
        before = found

    assert found["echod_connections_closed_total worker_lost"] >= size(3, 20)
    assert echoed == found["echod_io_bytes_total receive"] == found["echod_io_bytes_total transmit"]
    assert found["echod_worker_restarts_total"] == size(3, 20)


def test_killed_in_the_middle(start: Starter, size: Size) -> None:
    """Killed while bytes flow both ways, counters and log still tell the same story, to the connection and the byte."""
    daemon = start(workers=2, admin=ANYWHERE, expect=["worker.died", "worker.throttled"])
    for turn in range(size(2, 15)):
        with Load.open(daemon.address(), 60, 1 << 40, turn, window=32 * KIB, writes=(1, 32 * KIB)) as load:
            load.run(1.2 + 0.05 * turn)  # so that a ping has counted bytes of theirs
            os.kill(daemon.workers()[0], SIGKILL)
            for client in load.clients:
                client.finish()
            assert load.run(60)
        wait_until(lambda: numbers(daemon)["echod_workers"] == 2, timeout=30)
        found = agree(daemon)

    assert found["echod_connections_closed_total worker_lost"] > 0
    assert logged(daemon, "echod.io.receive", ["worker.died"]) > 0


def test_an_open_connection_is_counted(start: Starter) -> None:
    """The bytes of a connection that stays open are there within two seconds, and are not counted again at its end."""
    daemon = start(admin=ANYWHERE)
    with connect(daemon.address()) as client:
        for total in (5000, 10_000):
            ping(client, b"x" * 5000)
            await_bytes(daemon, total)
    assert 10_000 == agree(daemon)["echod_io_bytes_total transmit"]


def test_refused_and_dropped(start: Starter) -> None:
    """Each reason for turning somebody away is counted under its word."""
    daemon = start(
        admin=ANYWHERE,
        listeners=[
            {"name": "echo", "address": "127.0.0.1:0", "deny": ["127.0.0.1/32"]},
            {"name": "udp", "kind": "udp", "address": "127.0.0.1:0", "deny": ["127.0.0.2/32"]},
        ],
    )
    with connect(daemon.address()) as client:
        assert b"" == client.recv(1)
    for host in ("127.0.0.1", "127.0.0.2"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((host, 0))
            sender.sendto(b"12345", daemon.address("udp"))
    wait_until(lambda: numbers(daemon)["echod_datagrams_dropped_total denied"] == 1)
    found = numbers(daemon)

    assert 1 == found["echod_connections_refused_total denied"]
    assert (1, 5) == (found["echod_datagrams_answered_total"], found["echod_datagrams_bytes_total"])


def test_a_refused_reload_shows(start: Starter) -> None:
    """Whoever watches sees that the file is refused, until it is not."""
    daemon = start(admin=ANYWHERE, expect=["reload.refused"])
    since = numbers(daemon)["echod_config_last_reload_success_timestamp_seconds"]
    daemon.reload(ok=False, limits={"idle_timeout": "soon"})
    refused = numbers(daemon)
    daemon.reload(limits={"idle_timeout": "1m"})

    assert (0, since) == (
        refused["echod_config_last_reload_successful"],
        refused["echod_config_last_reload_success_timestamp_seconds"],
    )
    assert 1 == numbers(daemon)["echod_config_last_reload_successful"]


def test_a_real_prometheus(start: Starter, tmp_path: Path) -> None:
    """Prometheus scrapes echod and answers a query with the number that the clients have counted."""
    prometheus = shutil.which("prometheus")
    if not prometheus:
        pytest.skip("prometheus is not installed: make peers")
    daemon = start(workers=2, admin=ANYWHERE)
    with connect(daemon.address()) as client:
        client.sendall(b"x" * 12_345)
        read_exactly(client, 12_345)
    host, port = daemon.address("admin")
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{"job_name": "echod", "static_configs": [{"targets": [f"{host}:{port}"]}]}],
    }
    (tmp_path / "prometheus.yml").write_bytes(orjson.dumps(config))  # YAML holds JSON
    with socket.create_server(("127.0.0.1", 0)) as free:
        web = free.getsockname()
    running = subprocess.Popen(
        [
            prometheus,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{web[1]}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def answer(query: str) -> list[Any]:
            try:
                status, body = get(web, f"/api/v1/query?query={query}")
            except OSError:
                return []  # it is not up yet
            return list(orjson.loads(body)["data"]["result"]) if status == 200 else []

        def value(query: str) -> list[str]:
            return [result["value"][1] for result in answer(query)]

        query = "echod_io_bytes_total%7Bdirection=%22transmit%22%7D"
        wait_until(lambda: value(query) == ["12345"], timeout=30, what="the number of bytes at Prometheus")
        assert ["1"] == value("up")
        assert ["3"] == value("count(process_resident_memory_bytes)")
    finally:
        running.terminate()
        running.wait(20)
