"""The control socket: who may connect, how many at once, and what survives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from echod.net.poller import READABLE
from echod.process import control
from echod.process.control import MAX_CONNECTIONS, MAX_WAITING
from tests.process.control_server import Server, answer, open_count

if TYPE_CHECKING:
    from tests.process.conftest import Recorder


def test_new_connection_replaces_oldest_without_request(server: Server, turn: Any, recorder: Recorder) -> None:
    """Sixteen silent clients keep no other out: the one that came first makes room."""
    silent = [server.client() for _ in range(MAX_CONNECTIONS)]
    turn(server.reactor, lambda: open_count(server.reactor) == MAX_CONNECTIONS)
    client = server.client(b'{"command":"status"}\n')
    turn(server.reactor, server.received)

    assert answer(client)["ok"]
    assert b"" == silent[0].recv(1)
    assert ["evicted"] == [vars(event)["reason"] for event in recorder.events]
    for other in silent:
        other.close()


def test_commands_get_through_when_many_wait(server: Server, turn: Any) -> None:
    """Waiting clients take 12 places; one more is told so, and what does not wait is served."""
    waiting = [server.client(b'{"command": "reload", "wait": true}\n') for _ in range(MAX_WAITING)]
    turn(server.reactor, lambda: server.received() == MAX_WAITING)
    refused = server.client(b'{"command": "stop", "wait": true}\n')
    status = server.client(b'{"command": "status"}\n')
    turn(server.reactor, lambda: server.received() > MAX_WAITING)
    turn(server.reactor, lambda: open_count(server.reactor) == MAX_WAITING)

    said = answer(refused)
    assert (["too many commands wait already; try without --wait"], 1) == (said["errors"], said["exit_code"])
    assert answer(status)["ok"]
    waiting[3].close()
    waiting.append(server.client(b'{"command": "reopen"}\n'))
    turn(server.reactor, lambda: server.requests[-1][1].command == "reopen")
    for other in waiting:
        other.close()


def test_connection_over_the_limit_is_told(
    server: Server, turn: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When no connection can make room, a new one gets a line that says why."""
    monkeypatch.setattr(control, "MAX_CONNECTIONS", 2)
    waiting = [server.client(b'{"command": "reload", "wait": true}\n') for _ in range(2)]
    turn(server.reactor, lambda: server.received() == 2)
    client = server.client()
    turn(server.reactor, lambda: recorder.events[-1].name == "control.rejected")
    refused = answer(client)

    assert (False, 1) == (refused["ok"], refused["exit_code"])
    assert "too many connections" in refused["errors"][0]
    assert "too_many_connections" == vars(recorder.events[-1])["reason"]
    for other in waiting:
        other.close()


def test_kept_connection_ends_with_the_server(server: Server, turn: Any) -> None:
    """A connection that is kept open outlives its answer; `end` leaves its descriptor to the kernel."""
    client = server.client(b'{"command": "stop", "wait": true}\n')
    turn(server.reactor, server.received)
    connection = server.requests[0][0]
    connection.keep_open()
    connection.answer(server.reactor.now)
    server.reactor.turn(0)
    assert client.recv(4096).endswith(b"\n")
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)
    descriptor = connection.fd
    server.control.end()

    with pytest.raises(TimeoutError):
        client.recv(1)
    os.close(descriptor)
    assert b"" == client.recv(1)
    client.close()


def test_connections_survive_a_new_listening_socket(server: Server, turn: Any) -> None:
    """When the path was lost the next socket takes over; clients of the old one get their answers."""
    old = server.control
    waiting = server.client(b'{"command": "reload", "wait": true}\n')
    turn(server.reactor, server.received)
    server.control = old.move_to(server.listen())
    server.reactor.turn(0)
    client = server.client(b'{"command":"status"}\n')
    turn(server.reactor, lambda: server.received() == 2)
    server.requests[0][0].answer(server.reactor.now)
    server.reactor.turn(0)

    assert answer(client)["ok"]
    assert answer(waiting)["ok"]
    assert -1 == old.socket.fileno()


def test_accepting_pauses_without_descriptors(
    server: Server, turn: Any, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    """A table of descriptors that is full is asked again ten times a second, not in every turn."""

    class Full:
        def fileno(self) -> int:
            return server.control.socket.fileno()

        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    real = server.control.socket
    client = server.client(b'{"command":"status"}\n')
    monkeypatch.setattr(server.control, "socket", Full())
    server.control.on_readable(server.reactor.now)
    assert 0 == server.control.interest
    monkeypatch.setattr(server.control, "socket", real)
    server.control.on_deadline(server.reactor.now)
    turn(server.reactor, server.received)

    assert answer(client)["ok"]


def test_control_socket_goes_on_when_it_cannot_be_watched(server: Server) -> None:
    """Without memory in the kernel, say; the supervisor must not end."""
    server.control.on_crash(OSError(12, "Cannot allocate memory"), 5.0)

    assert server.control.interest == 0
    assert server.control.deadline == 5.0 + control.ACCEPT_BACKOFF
    server.control.on_deadline(6.0)
    assert server.control.interest == READABLE


@dataclass(frozen=True)
class Client:
    """A client's user, as the kernel tells it to a supervisor of the user `own`."""

    uid: int
    own: int
    user_namespace: bool
    allowed: bool


@pytest.mark.parametrize(
    "case",
    [
        Client(0, 0, user_namespace=False, allowed=True),
        Client(0, 1000, user_namespace=False, allowed=True),
        Client(1000, 1000, user_namespace=False, allowed=True),
        Client(1001, 1000, user_namespace=False, allowed=False),
        Client(65534, 0, user_namespace=False, allowed=False),
        Client(65534, 65534, user_namespace=False, allowed=True),
        Client(65534, 65534, user_namespace=True, allowed=False),
    ],
    ids=str,
)
def test_only_root_and_own_user_may_command(
    server: Server, turn: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, case: Client
) -> None:
    """Root and the supervisor's own user; never the workers' user, nor the overflow uid where it may be any user."""
    monkeypatch.setattr(control, "peer_credentials", lambda _: (77, case.uid))
    monkeypatch.setattr(control, "_overflow_uid", lambda: 65534)
    monkeypatch.setattr(control, "_in_user_namespace", lambda: case.user_namespace)
    monkeypatch.setattr(os, "geteuid", lambda: case.own)
    client = server.client(b'{"command":"status"}\n')
    turn(server.reactor, lambda: server.requests or recorder.events)

    assert case.allowed == bool(server.requests)
    if not case.allowed:
        (event,) = recorder.events
        assert ("permission_denied", 77, case.uid) == (vars(event)["reason"], vars(event)["pid"], vars(event)["uid"])
    client.close()


def test_namespace_of_this_machine_is_read() -> None:
    """The kernel's files are there, and say what they say in the initial user namespace."""
    assert 0 < control._overflow_uid()
    assert control._in_user_namespace() in {True, False}
