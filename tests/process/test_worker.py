"""A worker: obeys the channel, keeps only what is its own, and leaves when it is left alone."""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from echod.config.listeners import Listener
from echod.config.models import Config, Limits
from echod.config.models import Log as LogTable
from echod.config.tls import Tls
from echod.observe import cap, log_file
from echod.observe.log import Log
from echod.observe.scoreboard import Column, Scoreboard
from echod.process import channel as messages
from echod.process import worker
from echod.process.certificates import Material
from tests.core.peers import SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 10.0


class Supervised:
    """A real worker process and this test as its supervisor."""

    def __init__(self, directory: Path) -> None:
        self.log_file = directory / "log"
        self.board = Scoreboard()
        self.row = self.board.take_row(())
        log = Log(Config().log, log_file.open_file(str(self.log_file)), self.board.row(0))
        self.channel, theirs = messages.pair()
        self.door = socket.create_server(("127.0.0.1", 0))
        self.address = self.door.getsockname()
        self.door.setblocking(False)
        self.pid = os.fork()
        if not self.pid:
            signal.alarm(60)  # whatever goes wrong with the test, its worker ends
            worker.live(theirs, self.row, log, "poll", None)
        theirs.close()
        os.close(log.sink.fd)
        self.status: int | None = None

    def assign(self, generation: int, *names: str, most: int = 0, **limits: Any) -> None:
        """Send an assignment with the one socket under each of `names`, and wait for the answer."""
        listeners = tuple(Listener(name=name, address=f"127.0.0.{n}:7") for n, name in enumerate(names or ["none"], 1))
        fd = messages.to_memfd(Config(limits=Limits(**limits), listener=listeners, log=LogTable(cap=most)), {})
        self.channel.send(messages.Configure(generation, names), [fd, *[self.door.fileno()] * len(names)])
        os.close(fd)
        assert messages.Configured(generation) == self.hear()

    def hear(self) -> messages.Answer | None:
        """Wait for what the worker says next; None when it has hung up."""
        end = monotonic() + PATIENCE
        while monotonic() < end:
            try:
                return self.channel.receive()
            except BlockingIOError:
                continue
        raise AssertionError("the worker says nothing")

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds."""
        end = monotonic() + PATIENCE
        while not condition():
            assert monotonic() < end, "the condition did not come true"

    def ended(self) -> bool:
        """Tell whether the worker has left, and keep how."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def close(self) -> None:
        """End what is left."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.until(self.ended)
        self.channel.close()
        self.door.close()
        self.board.close()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    """Give a worker that has no assignment yet; it does not outlive the test."""
    made = Supervised(tmp_path)
    yield made
    made.close()


def echo(client: socket.socket, data: bytes = b"hello") -> bytes:
    """Send and receive as much."""
    client.sendall(data)
    return client.recv(len(data), socket.MSG_WAITALL)


def test_it_serves_what_it_is_assigned(supervised: Supervised) -> None:
    """It answers each generation, echoes, and keeps a listener that the next assignment names again."""
    supervised.assign(1, "echo")
    with socket.create_connection(supervised.address, PATIENCE) as client:
        assert b"hello" == echo(client)
        before = len(list(Path(f"/proc/{supervised.pid}/fd").iterdir()))
        supervised.assign(2, "renamed", buffer="512KiB")
        assert b"again" == echo(client, b"again")
        assert before == len(list(Path(f"/proc/{supervised.pid}/fd").iterdir()))
    assert 1 == supervised.row[Column.ACCEPTING]


def test_it_keeps_only_what_is_its_own(supervised: Supervised) -> None:
    """Of its parent's descriptors it holds standard streams, both halves of its channel, and log.

    A copy of standard input is its spare one.
    """
    supervised.channel.send(messages.Heartbeat())
    supervised.hear()
    held = {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{supervised.pid}/fd").iterdir()}  # noqa: PTH115
    rest = sorted(what.split(":")[0] for fd, what in held.items() if fd > 2 and what != held[0])

    assert [str(supervised.log_file), "pipe", "socket"] == rest


def test_a_ping_is_answered(supervised: Supervised) -> None:
    """Whoever pongs lives."""
    supervised.channel.send(messages.Heartbeat())

    assert messages.HeartbeatReply() == supervised.hear()


def test_a_ping_ends_the_period_of_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a flood has left unsaid is said although nothing else happens any more."""
    monkeypatch.setattr(cap, "PERIOD", 0.0)
    with closing(Supervised(tmp_path)) as supervised:
        supervised.assign(1, "echo", most=1)
        with socket.create_connection(supervised.address) as one, socket.create_connection(supervised.address) as other:
            assert (b"hello", b"hello") == (echo(one), echo(other))
            supervised.channel.send(messages.Heartbeat())
            supervised.until(lambda: b"log.suppressed" in supervised.log_file.read_bytes())


def test_signals_mean_nothing_to_it(supervised: Supervised) -> None:
    """What terminals and systemd send to the whole group is the supervisor's to act on."""
    supervised.assign(1, "echo")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(supervised.pid, number)
    supervised.channel.send(messages.Heartbeat())

    assert messages.HeartbeatReply() == supervised.hear()


def test_without_listeners_it_retires_unless_it_is_recalled(supervised: Supervised) -> None:
    """It stays for its connections, takes new ones again when recalled, and leaves with 0 after the last one."""
    supervised.assign(1, "echo")
    with socket.create_connection(supervised.address, PATIENCE) as client:
        assert b"hello" == echo(client)
        supervised.assign(2)
        assert 0 == supervised.row[Column.ACCEPTING]
        assert b"still" == echo(client, b"still")
        supervised.assign(3, "echo")
    with socket.create_connection(supervised.address, PATIENCE) as client:
        assert b"again" == echo(client, b"again")
        supervised.assign(4)
    supervised.until(supervised.ended)

    assert 0 == supervised.status


def test_drain_releases_the_listeners_and_ends_with_the_connections(supervised: Supervised) -> None:
    """It says when nobody waits any more, ends the idle connection with FIN, and leaves with 0."""
    supervised.assign(1, "echo")
    with socket.create_connection(supervised.address, PATIENCE) as client:
        assert b"hello" == echo(client)
        supervised.channel.send(messages.Drain(5.0))
        assert messages.ListenersClosed() == supervised.hear()
        assert b"" == client.recv(1)
    supervised.until(supervised.ended)

    assert 0 == supervised.status


def test_stop_resets_and_counts(supervised: Supervised) -> None:
    """At once means at once: the peer sees a reset, and the row counts one cut."""
    supervised.assign(1, "echo")
    with socket.create_connection(supervised.address, PATIENCE) as client:
        assert b"hello" == echo(client)
        supervised.channel.send(messages.Stop())
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    supervised.until(supervised.ended)

    assert (0, 1, 0) == (supervised.status, supervised.row[Column.CUT], supervised.row[Column.ACTIVE])


def test_without_a_supervisor_it_leaves(supervised: Supervised) -> None:
    """It closes the listeners and its connections, and leaves no echo behind."""
    supervised.assign(1, "echo")
    with socket.create_connection(supervised.address, PATIENCE) as client:
        assert b"hello" == echo(client)
        supervised.channel.close()
        supervised.door.close()
        assert b"" == client.recv(1)
    supervised.until(supervised.ended)

    assert 0 == supervised.status
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(supervised.address, PATIENCE)


def test_it_moves_its_log(supervised: Supervised, tmp_path: Path) -> None:
    """After a reopen it writes to the descriptor that came along, and confirms its serial."""
    fd = log_file.open_file(str(tmp_path / "new.log"))
    supervised.channel.send(messages.ReopenLog(7), [fd])
    os.close(fd)
    assert messages.LogReopened(7) == supervised.hear()
    supervised.assign(1, "echo")
    with socket.create_connection(supervised.address, PATIENCE) as client:
        assert b"hello" == echo(client)
    supervised.until(lambda: b"connection.closed" in (tmp_path / "new.log").read_bytes())

    assert b"" == supervised.log_file.read_bytes()


def test_without_descriptors_left_it_makes_room(supervised: Supervised) -> None:
    """An assignment whose descriptors find no place is said to be missed; sent again it is obeyed, by the same process.

    Meanwhile the connections go on, and who connects waits.
    """
    supervised.assign(1, "echo")
    held = [int(entry.name) for entry in Path(f"/proc/{supervised.pid}/fd").iterdir()]
    _, hard = resource.prlimit(supervised.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(supervised.pid, resource.RLIMIT_NOFILE, (max(held) + 2, hard))
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(supervised.address, PATIENCE))
            for _ in range(max(held) + 2 - len(held))
        ]
        assert {b"hello"} == {echo(client) for client in clients}
        with pytest.raises(AssertionError, match="DescriptorsLost"):
            supervised.assign(2, "echo")
        assert {b"still"} == {echo(client, b"still") for client in clients}
        supervised.assign(2, "echo")
        resource.prlimit(supervised.pid, resource.RLIMIT_NOFILE, (hard, hard))
        clients.append(stack.enter_context(socket.create_connection(supervised.address, PATIENCE)))
        assert {b"again"} == {echo(client, b"again") for client in clients}


def test_certificates_that_find_no_descriptor_are_missed(supervised: Supervised, tmp_path: Path) -> None:
    """OpenSSL reads from descriptors: without one left for it the assignment is missed, and no connection is lost."""
    supervised.assign(1, "echo")
    pem = SERVER.private_key_and_cert_chain_pem.bytes().decode()
    secret = Listener(name="secret", tls=Tls(enabled=True, certificate=f"{tmp_path}/secret.pem"))
    config = Config(listener=(Listener(name="echo", address="127.0.0.1:7"), secret))
    held = [int(entry.name) for entry in Path(f"/proc/{supervised.pid}/fd").iterdir()]
    _, hard = resource.prlimit(supervised.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(supervised.pid, resource.RLIMIT_NOFILE, (max(held) + 4, hard))
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(supervised.address, PATIENCE))
            for _ in range(max(held) + 2 - len(held))  # which leaves two, for what comes with the assignment
        ]
        assert {b"hello"} == {echo(client) for client in clients}
        answers = []
        for _ in range(2):
            fd = messages.to_memfd(config, {"secret": Material(pem, None)})
            supervised.channel.send(messages.Configure(2, ("echo",)), [fd, supervised.door.fileno()])
            os.close(fd)
            answers.append(supervised.hear())
        assert {b"still"} == {echo(client, b"still") for client in clients}

    assert [messages.DescriptorsLost(), messages.Configured(2)] == answers


def test_what_ends_its_loop_is_one_line(supervised: Supervised) -> None:
    """A message that it cannot obey ends it with code 1 and says so; no traceback is printed."""
    reader, writer = os.pipe()
    supervised.channel.send(messages.Configure(1, ("echo",)), [reader, writer])
    supervised.until(supervised.ended)
    os.close(reader)
    os.close(writer)

    assert 1 == supervised.status
    assert b"Traceback" not in supervised.log_file.read_bytes().replace(b"stacktrace", b"")
    assert supervised.log_file.read_bytes().count(b"service.failed") == 1
