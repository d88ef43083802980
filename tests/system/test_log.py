"""What is written and what is not: rotation, levels, suppressed events, snapshots, and never a byte of the payload."""

from __future__ import annotations

import os
import socket
from signal import SIGUSR1, SIGUSR2
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.core.headers import UNIX, binary, tls, vector
from tests.system.clients import Load, connect, echo_once, ping
from tests.system.daemon import Daemon, echod, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.daemon import Starter

SEED = 3

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root writes where another user chooses")


def connection_lines(lines: list[dict[str, object]]) -> int:
    """Count the lines about connections."""
    return sum(str(line["event"]).startswith("connection.") for line in lines)


def test_rotation_loses_no_line(start: Starter, tmp_path: Path) -> None:
    """20 renames with USR1 under load, two workers: the files together hold every line, whole."""
    file = tmp_path / "rotating.log"
    daemon = start(workers=2, log={"file": str(file)})
    connections = 0
    for number in range(20):
        with Load.open(daemon.address(), 50, 1000, SEED, writes=(1, 256)) as load:
            load.run(0.005)
            file.rename(tmp_path / f"rotated.{number}")
            daemon.signal(SIGUSR1)
            assert load.run(10), load.report()
        connections += 50
        wait_until(file.exists, 5, "a new file")
        wait_until(lambda: b"log.reopened" in file.read_bytes(), 5, "log.reopened")
    daemon.stop()
    files = [*tmp_path.glob("rotated.*"), file]
    lines = [orjson.loads(line) for path in files for line in path.read_bytes().splitlines()]
    counts = {
        event: sum(line["event"] == event for line in lines) for event in ("connection.opened", "connection.closed")
    }

    assert counts == {"connection.opened": connections, "connection.closed": connections}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert all(path.read_bytes().endswith(b"\n") for path in files)


def test_a_log_that_cannot_be_reopened(start: Starter, tmp_path: Path) -> None:
    """When the directory of the log is gone at USR1, the old file goes on being written and the reason is in it."""
    folder = tmp_path / "logs"
    folder.mkdir()
    daemon = start(log={"file": str(folder / "echod.log")}, expect=["log.failed"])
    folder.rename(tmp_path / "moved")
    daemon.signal(SIGUSR1)
    record = daemon.wait_for("log.failed")
    echo_once(daemon.address())
    daemon.wait_for("connection.closed")

    assert "error.message" in record


def trap(file: Path) -> Path:
    """Put a link in the place of the log, as the workers' user can where it owns the directory; return its target."""
    secret = file.parent.parent / "secret"
    secret.touch(mode=0o600)
    file.unlink(missing_ok=True)
    file.symlink_to(secret)
    return secret


@as_root
def test_start_refuses_link_in_directory_of_another_user(tmp_path: Path) -> None:
    """One line with the remedy; the target keeps its contents."""
    folder = tmp_path / "logs"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    daemon = Daemon(tmp_path, log={"file": str(folder / "echod.log")})
    secret = trap(folder / "echod.log")
    result = echod("run", "-c", str(daemon.file))

    assert 1 == result.returncode
    assert result.stderr == (
        f'echod: log.file: {folder}/echod.log: "echod.log" is a symbolic link in a directory that other users can '
        "write to or replace; remove the link, or set log.file to its target\n"
    )
    assert b"" == secret.read_bytes()


@as_root
def test_reopen_refuses_link_in_directory_of_another_user(start: Starter, tmp_path: Path) -> None:
    """A link that the workers' user plants is not followed at USR1: the old file goes on, and says why."""
    folder = tmp_path / "logs"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    daemon = start(log={"file": str(folder / "echod.log")}, expect=["log.failed"])
    secret = trap(folder / "echod.log")
    daemon.signal(SIGUSR1)
    record = daemon.wait_for("log.failed")
    echo_once(daemon.address())
    daemon.wait_for("connection.closed")

    assert "is a symbolic link in a directory that other users can write to" in record["error.message"]
    assert b"" == secret.read_bytes()


@as_root
def test_reload_refuses_link_in_directory_of_another_user(start: Starter, tmp_path: Path) -> None:
    """The reload is refused, and the old log goes on."""
    folder = tmp_path / "logs"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    secret = trap(folder / "echod.log")
    daemon = start(expect=["reload.refused"])
    report = daemon.reload(ok=False, log={"file": str(folder / "echod.log")})
    echo_once(daemon.address())
    daemon.wait_for("connection.closed")

    assert "is a symbolic link in a directory that other users can write to" in report["errors"][0]
    assert b"" == secret.read_bytes()


@pytest.mark.parametrize("level", ["debug", "warning"])
def test_levels(start: Starter, level: str) -> None:
    """At debug each step of a connection is a line; at warning nothing of an ordinary day is."""
    daemon = start(log={"level": level})
    with connect(daemon.address()) as client:
        ping(client, b"12345")
    if level == "debug":
        received = daemon.wait_for("connection.received")
        sent = daemon.wait_for("connection.sent")
        assert received["echod.io.count"] == sent["echod.io.count"] == 5
        daemon.wait_for("connection.closed")
    else:
        daemon.stop()
        assert daemon.reader
        assert daemon.reader.records == []


def test_suppressed_events(start: Starter) -> None:
    """Events listed in log.suppress are not written, the others are."""
    daemon = start(log={"suppress": ["connection.opened"]})
    echo_once(daemon.address())
    daemon.wait_for("connection.closed")

    assert daemon.records("connection.opened") == []


def test_no_payload_in_the_log(start: Starter) -> None:
    """Not even at debug does a byte of what clients send appear in the log."""
    daemon = start(log={"level": "debug"})
    with connect(daemon.address()) as client:
        ping(client, b"open-sesame" * 10)
    daemon.wait_for("connection.closed")
    assert daemon.reader

    assert "sesame" not in daemon.reader.tail(1000)


def test_usr2_reports_a_snapshot(start: Starter) -> None:
    """USR2 logs the state with the numbers that `status` shows."""
    daemon = start(workers=2)
    with connect(daemon.address()) as client, connect(daemon.address()) as other:
        ping(client)
        ping(other)
        daemon.signal(SIGUSR2)
        record = daemon.wait_for("status.reported")
        wait_until(lambda: daemon.state()["connections"]["active"] == 2, 5, "2 active connections")

    assert record["echod.connections.active"] == 2
    assert record["echod.connections.accepted"] == 2
    assert record["echod.state"] == "ready"
    assert sorted(record["echod.worker.pids"]) == daemon.workers()
    assert [f"echo 127.0.0.1:{daemon.address()[1]}"] == record["echod.listeners.bound"]
    assert ("none", 0) == (record["echod.reload.outcome"], record["echod.datagrams.answered"])
    assert record["echod.uptime"] > 0


def test_the_path_of_a_connection(start: Starter, tmp_path: Path) -> None:
    """The record of a TCP connection has what the kernel has measured; that of a Unix socket has nothing of it."""
    doors = [{"name": "echo", "address": "127.0.0.1:0"}, {"name": "door", "kind": "unix", "address": f"{tmp_path}/s"}]
    daemon = start(listeners=doors)
    echo_once(daemon.address(), b"x" * 10_000)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/s")
        ping(client)
    daemon.wait_for("connection.closed", count=2)
    closed = {record["echod.listener"]: record for record in daemon.records("connection.closed")}
    path = {key: value for key, value in closed["echo"].items() if key.startswith("echod.tcp.")}

    assert [] == [key for key in closed["door"] if key.startswith("echod.tcp.")]
    assert 0 < path["echod.tcp.min_rtt"] <= path["echod.tcp.rtt"] < 1
    assert (0, 65535) == (path["echod.tcp.retransmits"], path["echod.tcp.path_mtu"])
    assert {"mss", "rttvar", "delivery_rate"} <= {key.removeprefix("echod.tcp.") for key in path}


def test_a_flood_fills_no_disk(start: Starter) -> None:
    """A scanner's 500 connects with a cap of 20: so many lines of each event, and a count of the others to the last."""
    daemon = start(workers=2, log={"cap": 20}, expect=["log.suppressed"])
    for _ in range(500):
        connect(daemon.address()).close()
    daemon.stop()
    daemon.wait_for("service.stopped")
    written = {event: len(daemon.records(event)) for event in ("connection.opened", "connection.closed")}
    counted = dict.fromkeys(written, 0)
    for record in daemon.records("log.suppressed"):
        counted[record["echod.log.event"]] += record["echod.log.suppressed"]

    assert dict.fromkeys(written, 500) == {event: written[event] + counted[event] for event in written}
    assert all(20 <= count <= 80 for count in written.values())  # two workers, two periods where the time falls so


HOSTILE = b'\x1b]0;owned\x07\r\n{"level":"error"}\x9b31m\xe2\x80\xae\xff\x00"\\'


def test_hostile_names(start: Starter) -> None:
    """Proxies and Unix sockets that call themselves so get their line, and nothing else of the log is theirs.

    The reader of every test holds that each line is one object; here it is looked at what the texts say.
    """
    door = {"name": "echo", "address": "127.0.0.1:0", "proxy_protocol": {"enabled": True, "trusted": ["127.0.0.1/32"]}}
    abstract = {"name": "door", "kind": "unix", "address": f"@echod-test-{os.getpid()}"}
    daemon = start(listeners=[door, abstract])
    said = vector(1, HOSTILE) + vector(2, HOSTILE) + vector(5, HOSTILE) + tls(7, 0, vector(0x22, HOSTILE))
    with connect(daemon.address()) as client:
        client.sendall(binary(UNIX + said, family=0x31))
        ping(client)
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(b"\0" + HOSTILE)
        client.connect(f"\0echod-test-{os.getpid()}")
        ping(client)
    records = [daemon.wait_for("connection.closed", {"echod.listener": name}) for name in ("echo", "door")]
    texts = [
        records[0]["echod.proxy.authority"],
        records[0]["echod.proxy.tls.common_name"],
        records[1]["client.address"].removeprefix("@"),
    ]

    assert [HOSTILE.decode("utf-8", "backslashreplace")] * 3 == texts
