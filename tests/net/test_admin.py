"""The admin listener: answered like a web server, bounded like a connection of echo, and in none of echo's counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from echod.config import listeners as models
from echod.core.exchange import Page
from echod.events import AdminAnswered, ConnectionClosed, ConnectionOpened
from echod.net.admin import MOST, PATIENCE, AdminListener, AdminStream

if TYPE_CHECKING:
    import socket

    from tests.net.conftest import Rig

REQUEST = b"GET /page HTTP/1.1\r\nHost: h\r\n\r\n"
LONG = b"x" * 12_000_000


def serve(rig: Rig) -> socket.socket:
    """Add an admin listener and return its socket."""
    door = rig.door()
    pages = {"/page": Page(200, b"content"), "/long": Page(200, LONG)}
    rig.reactor.add(AdminListener(models.Listener(), door, rig.reactor, rig.setting, lambda path, _accept: pages[path]))
    return door


def answered(rig: Rig) -> list[AdminAnswered]:
    """Return the records so far; there are no others."""
    assert not [event for event in rig.recorded if isinstance(event, ConnectionOpened | ConnectionClosed)]
    return [event for event in rig.recorded if isinstance(event, AdminAnswered)]


def test_a_request_is_answered_and_the_connection_ends(rig: Rig) -> None:
    """The answer, then FIN; one record; and nothing in the counts of echo."""
    client = rig.knock(serve(rig))
    client.sendall(REQUEST)
    answer = rig.fetch_all(client)
    client.close()
    rig.until(lambda: not rig.streams())
    (record,) = answered(rig)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\ncontent")
    assert ("GET", "/page", 200, "127.0.0.1") == (record.method, record.path, record.status, record.client_address)
    assert ([], [], 0, 0) == (rig.tally.bytes, rig.tally.ended, rig.gate.serial, rig.gate.inside)


def test_a_second_request_is_not_answered(rig: Rig) -> None:
    """What follows a request is read and thrown away: there is one answer for one connection."""
    client = rig.knock(serve(rig))
    client.sendall(REQUEST * 3)
    answer = rig.fetch_all(client)

    assert 1 == answer.count(b"HTTP/1.1")


def test_a_request_without_an_end(rig: Rig) -> None:
    """Whoever sends half a request, even bit by bit, is gone after PATIENCE."""
    client = rig.knock(serve(rig))
    rig.until(rig.streams)
    for byte in REQUEST[:10]:
        client.sendall(bytes([byte]))
        rig.turn()
        rig.later(PATIENCE / 11)
    assert rig.streams()
    rig.later(PATIENCE / 11)
    rig.later(PATIENCE)

    assert not rig.streams()
    assert [None] == [record.status for record in answered(rig)]


def test_an_answer_that_is_not_read(rig: Rig) -> None:
    """Whoever asks and does not read the answer is gone after PATIENCE too."""
    client = rig.knock(serve(rig), SO_RCVBUF=4096)
    client.sendall(REQUEST.replace(b"page", b"long"))
    rig.until(lambda: any(stream.connection.wants_write for stream in rig.streams()))
    rig.later(PATIENCE * 0.9)
    rig.fetch(client, 6_000_000)
    assert [1000.0 + PATIENCE] == [stream.deadline for stream in rig.streams()], "not moved by what was read"
    rig.later(PATIENCE * 0.2)

    assert not rig.streams()


def test_one_more_sends_the_oldest_away(rig: Rig) -> None:
    """Whoever holds all places holds nothing up: the next one is answered, and the oldest one is cut."""
    door = serve(rig)
    silent = [rig.knock(door) for _ in range(MOST)]
    rig.until(lambda: len(rig.streams()) == MOST)
    client = rig.knock(door)
    client.sendall(REQUEST)

    assert rig.fetch_all(client).endswith(b"content")
    assert MOST == len([stream for stream in rig.streams() if isinstance(stream, AdminStream)])
    with pytest.raises(ConnectionResetError):
        silent[0].recv(1)
    with pytest.raises(BlockingIOError):
        silent[1].recv(1)


def test_who_has_asked_is_answered_before_it_is_sent_away(rig: Rig) -> None:
    """However many ask in the same moment: each gets its answer."""
    door = serve(rig)
    clients = [rig.knock(door) for _ in range(3 * MOST)]
    for client in clients:
        client.sendall(REQUEST)

    assert all(rig.fetch_all(client).endswith(b"content") for client in clients)


def test_a_peer_that_is_gone(rig: Rig) -> None:
    """A reset, or an end before the request, leaves nothing behind."""
    door = serve(rig)
    first, second = rig.knock(door), rig.knock(door)
    rig.until(lambda: len(rig.streams()) == 2)
    rig.cut(first)
    second.close()
    rig.until(lambda: not rig.streams())

    assert {"ECONNRESET", None} == {record.error for record in answered(rig)}
