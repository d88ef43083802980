"""One client of the control socket: what is answered, what is turned away, and what is bounded."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from echod import __version__
from echod.errors import ConfigError
from echod.process import control_connection
from echod.process.control_connection import Request
from tests.process.control_server import Server, answer, open_count

if TYPE_CHECKING:
    from tests.process.conftest import Recorder


def test_request_is_parsed_and_answered(server: Server, turn: Any, recorder: Recorder) -> None:
    """One line in, one line out with format, pid and version; unknown keys do not matter; status is not logged."""
    client = server.client(b'{"format": 7, "command": "status", "colour": "blue"}\n')
    turn(server.reactor, server.received)
    expected = {"format": 1, "pid": os.getpid(), "version": __version__, "ok": True, "status": {"state": "ready"}}

    assert expected == answer(client)
    assert Request("status", wait=False, now=False) == server.requests[0][1]
    assert [] == recorder.names()


def test_request_in_pieces_and_half_closed_is_answered(server: Server, turn: Any) -> None:
    """A request may come byte by byte, and its client may shut down its side, as socat does."""
    client = server.client()
    for byte in b'{"command":"status"}\n':
        client.send(bytes([byte]))
        server.reactor.turn(0)
    client.shutdown(socket.SHUT_WR)
    turn(server.reactor, server.received)

    assert answer(client)["ok"]


def test_command_is_logged_with_client(server: Server, turn: Any, recorder: Recorder) -> None:
    """What changes the daemon is logged with the client's pid and user, and may be answered later."""
    client = server.client(b'{"command": "stop", "now": true, "wait": true}\n')
    turn(server.reactor, server.received)
    connection, request = server.requests[0]
    connection.refuse(ConfigError("one", "two"), server.reactor.now)
    server.reactor.turn(0)

    assert Request("stop", wait=True, now=True) == request
    assert {"ok": False, "errors": ["one", "two"], "exit_code": 78}.items() <= answer(client).items()
    (event,) = recorder.events
    assert ("control.received", "stop", os.getpid(), os.geteuid()) == (
        event.name,
        vars(event)["command"],
        vars(event)["pid"],
        vars(event)["uid"],
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\n", "malformed"),
        (b"status\n", "malformed"),
        (b"[1]\n", "malformed"),
        (b'{"command": ["status"]}\n', "malformed"),
        (b'{"command": "explode"}\n', "malformed"),
        (b"[" * 4000 + b"\n", "malformed"),
        (b"\xff\x00" * 10 + b"\n", "malformed"),
        (b"x" * 4097, "too_long"),
    ],
    ids=["empty", "word", "array", "list", "unknown", "nested", "binary", "long"],
)
def test_malformed_request_is_refused(server: Server, turn: Any, recorder: Recorder, data: bytes, reason: str) -> None:
    """What is no request gets a line that says what one is, and a record without the client's bytes."""
    client = server.client(data)
    turn(server.reactor, lambda: recorder.events)
    server.reactor.turn(0)
    found = answer(client)

    assert (False, 2) == (found["ok"], found["exit_code"])
    assert "status, reload, stop, reopen" in found["errors"][0]
    assert [("control.rejected", reason)] == [(event.name, vars(event)["reason"]) for event in recorder.events]
    assert [] == server.requests


def test_client_that_sends_nothing_is_dropped_in_time(
    server: Server, turn: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a request does not hold a place for longer than REQUEST_TIMEOUT."""
    monkeypatch.setattr(control_connection, "REQUEST_TIMEOUT", 0.05)
    with server.client(b'{"comm') as client:
        turn(server.reactor, lambda: recorder.events)
        server.reactor.turn(0)

        assert b"" == client.recv(1)
    assert ["timeout"] == [vars(event)["reason"] for event in recorder.events]
    assert 0 == open_count(server.reactor)


def test_client_that_reads_nothing_is_dropped_in_time(
    server: Server, turn: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is not read does not hold a place for longer than REQUEST_TIMEOUT."""
    with server.client(b'{"command": "reload", "wait": true}\n'):
        turn(server.reactor, server.received)
        monkeypatch.setattr(control_connection, "REQUEST_TIMEOUT", 0.05)
        server.requests[0][0].answer(server.reactor.now, padding="x" * 10_000_000)
        turn(server.reactor, lambda: open_count(server.reactor) == 0)

    assert ["control.received", "control.rejected"] == recorder.names()


def test_long_answer_arrives_whole(server: Server, turn: Any) -> None:
    """An answer that the socket does not take at once is sent in parts."""
    client = server.client(b'{"command": "reload", "wait": true}\n')
    turn(server.reactor, server.received)
    server.requests[0][0].answer(server.reactor.now, padding="x" * 1_000_000)
    found: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: found.append(answer(client)))
    reader.start()
    turn(server.reactor, lambda: not reader.is_alive())
    reader.join()

    assert 1_000_000 == len(found[0]["padding"])


def test_client_that_is_gone_hinders_no_answer(server: Server, turn: Any) -> None:
    """Whoever hangs up before the answer is closed when it is sent, quietly."""
    server.client(b'{"command": "reload", "wait": true}\n').close()
    turn(server.reactor, server.received)
    server.requests[0][0].answer(server.reactor.now)
    turn(server.reactor, lambda: open_count(server.reactor) == 0)
    server.requests[0][0].answer(server.reactor.now)
