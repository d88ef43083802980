"""What the kernel tells of a path: on loopback, where every number can be known, and where it tells nothing."""

from __future__ import annotations

import socket
from struct import Struct
from typing import TYPE_CHECKING

import pytest

from echod.net import tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK_MTU = 65535  # bytes: the largest IPv4 packet, although the device would take one more
HEADERS = 20 + 32  # bytes, of IPv4, and of TCP with timestamps


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), 5)
        accepted, _ = server.accept()
    with client, accepted:
        accepted.settimeout(5)
        yield client, accepted


def test_what_was_measured(pair: tuple[socket.socket, socket.socket]) -> None:
    """After an echo there are round trips in seconds, the MTU of loopback, and nothing had to be sent again.

    Catches a field that is read from the wrong place of the kernel's structure, and a wrong unit.
    """
    client, accepted = pair
    for _ in range(10):
        client.sendall(b"x" * 100_000)
        left = 100_000
        while left:
            data = accepted.recv(left)
            left -= len(data)
            accepted.sendall(data)
        client.recv(100_000, socket.MSG_WAITALL)
    found = tcp.path(accepted)

    assert list(found) == ["rtt", "rttvar", "min_rtt", "retransmits", "mss", "path_mtu", "delivery_rate"]
    assert 0 < found["min_rtt"] <= found["rtt"] < 1
    assert 0 < found["rttvar"] < 1
    assert (0, LOOPBACK_MTU, LOOPBACK_MTU - HEADERS) == (found["retransmits"], found["path_mtu"], found["mss"])
    assert found["delivery_rate"] > 100_000


def test_the_segment_size_is_the_connections_own(pair: tuple[socket.socket, socket.socket]) -> None:
    """A peer that takes only small segments is seen to: mss is not a constant."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.socket() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
            client.connect(server.getsockname())
            accepted, _ = server.accept()
            with accepted:
                assert 900 < tcp.path(accepted)["mss"] <= 1000


def test_what_was_not_measured_is_left_out() -> None:
    """A socket without a connection has no round trips: no number is made up."""
    with socket.socket() as sock:
        found = tcp.path(sock)

    assert [None] * 4 == [found[name] for name in ("rtt", "rttvar", "min_rtt", "delivery_rate")]


def test_unix_sockets_have_no_path() -> None:
    """Where the kernel refuses to tell, nothing is said."""
    one, other = socket.socketpair()
    with one, other:
        assert {} == tcp.path(one)


def test_an_old_kernel_tells_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is too short is no answer."""
    monkeypatch.setattr(tcp, "_INFO", Struct("4000x I 40x I 4x II 24x I 44x I 8x Q"))
    with socket.socket() as sock:
        assert {} == tcp.path(sock)
