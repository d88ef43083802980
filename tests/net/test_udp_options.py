"""Options of UDP sockets that the socket module does not name: what the kernel says they are afterwards."""

from __future__ import annotations

import socket

import pytest

from echod.net.udp_options import drops, set_path_mtu_discovery

IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23


@pytest.mark.parametrize(("word", "mode"), [("dont", 0), ("want", 1), ("do", 2), ("probe", 3)])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_path_mtu_discovery_is_what_the_word_of_ping_says(family: int, word: str, mode: int) -> None:
    """For both families of a socket that serves both, whatever it was before."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for before in ("probe", "dont", word):
            set_path_mtu_discovery(sock, before)

        assert mode == sock.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER)
        if family == socket.AF_INET6:
            assert mode == sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)


def test_drops_are_those_of_the_kernel() -> None:
    """Each datagram that does not fit into the receive buffer, and no other."""
    sent = 100
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        before = drops(sock)
        for _ in range(sent):
            peer.sendto(b"x", sock.getsockname())
        received = 0
        while received < sent:
            try:
                sock.recv(10)
            except BlockingIOError:
                break
            received += 1

        assert 0 == before
        assert 0 < received < sent
        assert sent - received == drops(sock)


def test_drops_of_what_has_none_are_unknown() -> None:
    """A descriptor of which the kernel does not tell is no error."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.close()

    assert drops(sock) is None
