"""Calls on sockets: how addresses and errors are written, and what the kernel knows of a connection."""

from __future__ import annotations

import errno
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.net import sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

V4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
FOREIGN = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.77", 0))
FOREIGN_V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::77", 0, 0, 0))


def descriptors() -> set[str]:
    """Return what this process has open."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what is entered, and hold that no descriptor is left over."""
    before = descriptors()
    with ExitStack() as entered:
        yield entered

    assert before == descriptors()


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [(("127.0.0.1", 7), "127.0.0.1:7"), (("::1", 7, 0, 0), "[::1]:7"), (("fe80::1", 7, 0, 1), "[fe80::1%lo]:7")],
)
def test_text(address: tuple[Any, ...], expected: str) -> None:
    """An address is written as in the configuration file."""
    assert expected == sockets.text(address)


@pytest.mark.parametrize(("family", "expected"), [(socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")])
def test_network(family: int, expected: str) -> None:
    """Families have OpenTelemetry's words."""
    assert expected == sockets.network(family)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ECONNRESET, "x"), "ECONNRESET"),
        (OSError(99999, "x"), "OSError"),
        (BrokenPipeError(), "BrokenPipeError"),
    ],
)
def test_error_name(error: OSError, expected: str) -> None:
    """An error is called by its symbol, or by its class when it has none."""
    assert expected == sockets.error_name(error)


# -- what the kernel knows --------------------------------------------------------------------------------------------


@pytest.fixture
def pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Connect two sockets."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = stack.enter_context(socket.create_connection(door.getsockname(), timeout=10))
        server = stack.enter_context(door.accept()[0])
    server.settimeout(10)
    return server, client


Pair = tuple[socket.socket, socket.socket]


def eventually(condition: Callable[[], bool]) -> bool:
    """Ask until `condition` holds, for a while: the loopback is fast, but not at once."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
    return True


def test_nothing_in_flight(pair: Pair) -> None:
    """A fresh connection has nothing on its way."""
    assert not sockets.in_flight(pair[0])


def test_unread_input_is_in_flight(pair: Pair) -> None:
    """Bytes that have arrived and wait to be read are on their way, until they are read."""
    server, client = pair
    client.send(b"x")
    arrived = eventually(lambda: sockets.in_flight(server))
    server.recv(1)

    assert (True, False) == (arrived, sockets.in_flight(server))


def test_unacknowledged_output_is_in_flight(pair: Pair) -> None:
    """So are bytes that the peer's kernel has not taken, until it has."""
    server, client = pair
    for sock in pair:
        sock.setblocking(False)
    until_blocked(lambda: server.send(bytes(65536)))
    stuck = sockets.in_flight(server)

    def taken() -> bool:
        until_blocked(lambda: client.recv(65536))
        return not sockets.in_flight(server)

    assert (True, True) == (stuck, eventually(taken))


def until_blocked(call: Callable[[], object]) -> None:
    """Repeat `call` until it would block."""
    with suppress(BlockingIOError):
        while True:
            call()


def test_reset_is_seen_by_the_peer(pair: Pair) -> None:
    """A reset connection ends for the peer by an error, not by FIN."""
    server, client = pair
    sockets.reset(server)

    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert -1 == server.fileno()


def test_reset_of_a_closed_socket(pair: Pair) -> None:
    """Whatever state the socket is in, reset closes it and does not raise."""
    pair[0].close()
    sockets.reset(pair[0])

    assert -1 == pair[0].fileno()


def test_pending_error_is_taken_once(pair: Pair) -> None:
    """The error that waits on a socket is returned and gone with that."""
    server, client = pair
    none = sockets.pending_error(server)
    sockets.reset(client)
    found: list[OSError] = []

    def look() -> bool:
        error = sockets.pending_error(server)
        found.extend([error] if error else [])
        return bool(found)

    eventually(look)
    [error] = found

    assert none is None
    assert (errno.ECONNRESET, "Connection reset by peer") == (error.errno, error.strerror)
    assert sockets.pending_error(server) is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_door_is_the_socket_that_it_takes_over(family: socket.AddressFamily, tmp_path: Path) -> None:
    """It has family and type as any socket has them, and those whom it accepts have them too."""
    plain = socket.socket(family)
    plain.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "door"))
    plain.listen()
    with sockets.Door(plain.detach()) as door, socket.socket(family) as client:
        client.connect(door.getsockname())
        accepted, _ = door.accept()
        with accepted:
            assert {(family, socket.SOCK_STREAM)} == {(door.family, door.type), (accepted.family, accepted.type)}


def test_place_shows_the_zone_of_a_link_local_address() -> None:
    """By the name of its interface; by its number when that is gone; nothing where there is no zone."""
    index = socket.if_nametoindex("lo")

    assert ("fe80::1%lo", 7) == sockets.place(("fe80::1", 7, 0, index))
    assert ("fe80::1%2147483647", 7) == sockets.place(("fe80::1", 7, 0, 2**31 - 1))
    assert ("::1", 7) == sockets.place(("::1", 7, 0, 0))
