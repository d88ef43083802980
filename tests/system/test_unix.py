"""Unix sockets as users meet them: the same echo, and a path that is there exactly as long as the daemon."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM
from typing import TYPE_CHECKING

import pytest

from tests.system import proc
from tests.system.clients import KIB, Client, Load, Payload, ping, read_to_end
from tests.system.daemon import StartFailedError, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.daemon import Config, Starter

SEED = 1986


def door(path: Path | str, **keys: str) -> Config:
    """Describe a listener at a path."""
    return {"name": "door", "kind": "unix", "address": str(path)} | keys


def connected(path: Path | str) -> socket.socket:
    """Connect to a path or an abstract name."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(5)
    made.connect(f"\0{path[1:]}" if isinstance(path, str) else str(path))
    return made


@pytest.mark.parametrize("poller", ["epoll", "poll", "select"])
def test_the_same_echo(start: Starter, tmp_path: Path, poller: str) -> None:
    """200 clients get back all that they sent, and FIN; the record says by which door they came, and no port."""
    path = tmp_path / "s"
    daemon = start(workers=2, listeners=[door(path)], daemon={"poller": poller})
    payload = Payload(SEED)
    print(f"seed {SEED}")  # noqa: T201
    clients = [Client(connected(path), payload, SEED + number, 256 * KIB) for number in range(200)]
    with Load(clients) as load:
        load.run(30)
        assert load.report()["complete"] == 200, load.report()
    closed = daemon.wait_for("connection.closed", count=200)

    assert {"server.address": str(path), "network.transport": "unix", "echod.close.reason": "peer_closed"} == {
        name: value for name, value in closed.items() if name.startswith(("server", "client", "network", "echod.close"))
    }
    assert [str(path)] == daemon.state()["listeners"][0]["bound"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_socket_with_owner_is_reported_by_its_path(start: Starter, tmp_path: Path) -> None:
    """Status and log name the configured path, also after a reload, and nothing else is left in the directory."""
    folder = tmp_path / "sockets"
    folder.mkdir()
    path = folder / "s"
    daemon = start(listeners=[door(path, owner="daemon:sys", mode="0620")])
    daemon.reload(log={"level": "debug"})
    with connected(path) as client:
        ping(client)
    closed = daemon.wait_for("connection.closed")
    found = path.stat()

    assert (1, 3, "0o620") == (found.st_uid, found.st_gid, oct(stat.S_IMODE(found.st_mode)))
    assert [path] == list(folder.iterdir())
    assert [str(path)] == daemon.state()["listeners"][0]["bound"]
    assert str(path) == daemon.wait_for("listener.opened")["server.address"] == closed["server.address"]
    daemon.stop()
    assert [] == list(folder.iterdir())


def test_the_path_lives_as_long_as_the_daemon(start: Starter, tmp_path: Path) -> None:
    """It has its mode, outlives a reload, is gone after a stop, and is taken over after a kill."""
    path = tmp_path / "s"
    daemon = start(listeners=[door(path, mode="0604")])
    before = path.stat()
    with connected(path) as client:
        ping(client)
        daemon.reload(limits={"idle_timeout": "9m"})
        ping(client)

    assert 0o604 == stat.S_IMODE(before.st_mode)
    assert before.st_ino == path.stat().st_ino
    os.kill(daemon.pid, SIGKILL)
    daemon.wait_exit()
    wait_until(lambda: not any(map(proc.alive, daemon.known)), what="the end of the workers")
    assert path.is_socket()
    daemon.again()
    with connected(path) as client:
        ping(client)
    daemon.stop()
    assert not path.exists()


def test_a_door_comes_and_goes_with_a_reload(start: Starter, tmp_path: Path) -> None:
    """Added and removed, it is there and is gone; a reload that cannot have it changes nothing."""
    path = tmp_path / "s"
    daemon = start(expect=["reload.refused"])
    tcp = daemon.config["listener"]
    daemon.reload(listener=[*tcp, door(path)])
    with connected(path) as client:
        ping(client)
        daemon.reload(listener=tcp)
        assert not path.exists()
        ping(client)
    path.write_text("precious")
    report = daemon.reload(ok=False, listener=[*tcp, door(path)])

    assert [f'listener "door": {path}: there is something that is no socket; remove it'] == report["errors"]
    assert "precious" == path.read_text()


def test_a_living_socket_is_not_taken(start: Starter, tmp_path: Path) -> None:
    """A second daemon at the same path is refused, and the first goes on."""
    path = tmp_path / "s"
    start(listeners=[door(path)])
    with pytest.raises(StartFailedError, match="Address already in use"):
        start(listeners=[door(path)])
    with connected(path) as client:
        ping(client)


def test_an_abstract_name(start: Starter) -> None:
    """It needs no path, and leaves none."""
    name = f"@echod-test-{os.getpid()}"
    daemon = start(listeners=[door(name)])
    with connected(name) as client:
        ping(client)
        assert name == daemon.wait_for("connection.opened")["server.address"]


def test_descriptors_of_a_peer_are_not_kept(start: Starter, tmp_path: Path) -> None:
    """What a peer sends along (SCM_RIGHTS) is closed by the kernel, ten thousand times; the bytes come back."""
    path = tmp_path / "s"
    daemon = start(listeners=[door(path)])
    with connected(path) as client:
        ping(client)
        before = daemon.descriptors()
        for _ in range(2500):
            socket.send_fds(client, [b"x"], [0, 1, 2, client.fileno()])
            assert client.recv(1) == b"x"

        assert before == daemon.descriptors()


def test_a_stop_sends_what_is_held(start: Starter, tmp_path: Path) -> None:
    """A client that reads slowly while the daemon stops gets all that was read from it, and FIN."""
    path = tmp_path / "s"
    daemon = start(listeners=[door(path)])
    with connected(path) as client:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(16):
                client.send(bytes(64 * KIB))
        daemon.wait_for("connection.opened")
        daemon.signal(SIGTERM)
        answer, end = read_to_end(client)
    daemon.wait_exit()
    closed = daemon.records("connection.closed")[0]

    assert ("fin", len(answer)) == (end, closed["echod.io.transmit"])
    assert closed["echod.io.transmit"] == closed["echod.io.receive"]


def test_whatever_a_client_is_called(start: Starter, tmp_path: Path) -> None:
    """A client may have bound any path: behind a proxy, with quiet networks, it is served, and the log shows it."""
    path = tmp_path / "s"
    listener = door(path) | {"proxy_protocol": {"enabled": True}}
    daemon = start(listeners=[listener], log={"quiet": ["10.0.0.0/8"]})
    worker = daemon.workers()
    for name in (b"plain", b"::ffff:10.0.0.9", b"10.0.0.9", b"\xff\xfe"):
        for said in (b"PROXY UNKNOWN\r\nhello", b"nonsense\r\n", b""):
            with (
                contextlib.chdir(tmp_path),
                contextlib.suppress(ConnectionError),
                socket.socket(socket.AF_UNIX) as made,
            ):
                made.settimeout(5)
                made.bind(name)
                made.connect(str(path))
                made.sendall(said)
                made.shutdown(socket.SHUT_WR)
                assert read_to_end(made)[0] == said[15:] * said.endswith(b"hello")
            (tmp_path / os.fsdecode(name)).unlink()
    daemon.wait_for("connection.closed", count=12)
    shown = {record["client.address"] for record in daemon.records("connection.closed")}

    assert worker == daemon.workers()
    assert {"plain", "::ffff:10.0.0.9", "10.0.0.9", "\\xff\\xfe"} == shown


def test_reload_makes_a_removed_path_again(start: Starter, tmp_path: Path) -> None:
    """A path that another program has removed is told once, shown by `status`, and made again by a reload.

    The connection that was open goes on, and so does a client that waited in the queue of the old socket.
    """
    path = tmp_path / "echo.sock"
    daemon = start(listeners=[{"name": "door", "kind": "unix", "address": str(path)}], expect=["listener.degraded"])
    with socket.socket(socket.AF_UNIX) as before, socket.socket(socket.AF_UNIX) as waiting:
        before.connect(str(path))
        ping(before)
        (worker,) = daemon.workers()
        os.kill(worker, SIGSTOP)
        waiting.connect(str(path))
        path.unlink()
        told = daemon.wait_for("listener.degraded")
        shown = daemon.state()["listeners"][0]["degraded"]
        daemon.signal(SIGHUP)
        os.kill(worker, SIGCONT)
        daemon.wait_for("reload.completed")
        ping(before)
        ping(waiting)
        with socket.socket(socket.AF_UNIX) as after:
            after.connect(str(path))
            ping(after)

    assert told["echod.degradation"] == "path_removed"
    assert (shown, daemon.state()["listeners"][0]["degraded"]) == (["path_removed"], [])
    assert len(daemon.records("listener.degraded")) == 1
    assert len(daemon.records("listener.closed")) == 1
    daemon.stop()
    assert not path.exists()


def test_rejected_reload_keeps_the_socket_of_a_removed_path(start: Starter, tmp_path: Path) -> None:
    """When another part of the reload fails, the old socket stays as it was, and no path is left behind."""
    path = tmp_path / "echo.sock"
    listeners = [{"name": "door", "kind": "unix", "address": str(path)}]
    daemon = start(listeners=listeners, expect=["listener.degraded", "reload.refused"])
    before = daemon.descriptors()
    path.unlink()
    daemon.reload(ok=False, listener=[*listeners, {"name": "other", "kind": "tcp", "address": "192.0.2.77:7"}])
    assert not path.exists()
    assert daemon.descriptors() == before
    daemon.reload(listener=listeners)
    with socket.socket(socket.AF_UNIX) as after:
        after.connect(str(path))
        ping(after)
    wait_until(lambda: daemon.descriptors() == before, what="no more descriptors than before")
