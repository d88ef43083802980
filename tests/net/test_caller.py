"""Who talks to whom, in the words of the log."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from echod.config.listeners import Listener
from echod.net.caller import Caller, Origin

if TYPE_CHECKING:
    from pathlib import Path

TCP = Origin("echo", "192.0.2.1", 7, "ipv4", "tcp")


def test_a_listening_socket_says_where_it_is() -> None:
    """Address and port are the socket's own, also where the kernel chose."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        host, port = listening.getsockname()
        assert Origin("echo", host, port, "ipv4", "tcp") == Origin.of(Listener(), listening)


def test_a_path_is_an_address_without_a_port(tmp_path: Path) -> None:
    """A Unix socket has a path and no network."""
    path = str(tmp_path / "echo.sock")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(path)
        assert Origin("echo", path, None, None, "unix") == Origin.of(Listener(), listening)


def test_a_caller_is_whoever_the_kernel_says() -> None:
    """Without a proxy the two ends of the socket are the client and the server."""
    facts = Caller.of(3, TCP, ("198.51.100.7", 4711)).facts()

    assert (3, "echo", "ipv4", "tcp") == (facts["id"], facts["listener"], facts["network"], facts["transport"])
    assert ("198.51.100.7", 4711) == (facts["client_address"], facts["client_port"])
    assert ("192.0.2.1", 7) == (facts["server_address"], facts["server_port"])
    assert (None, None) == (facts["peer_address"], facts["peer_port"])


def test_faults_are_marked_in_every_record() -> None:
    """A listener with faults says so of itself and of all its connections, in the smallest record too."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        for keys, expected in (({}, None), ({"delay": "1s"}, True)):
            origin = Origin.of(Listener.model_validate({"faults": keys}), listening)
            caller = Caller.of(3, origin, ("198.51.100.7", 4711))

            assert [expected] * 3 == [facts["fault"] for facts in (origin.facts(), caller.facts(), caller.mark())]


def test_ipv4_is_ipv4_through_whatever_socket() -> None:
    """What the kernel writes within IPv6 is looked up and shown as IPv4."""
    caller = Caller.of(3, TCP, ("::ffff:198.51.100.7", 4711))

    assert ("198.51.100.7", "198.51.100.7", "ipv4") == (
        caller.ip,
        caller.facts()["client_address"],
        caller.facts()["network"],
    )


@pytest.mark.parametrize("path", ["/run/client.sock", "::ffff:192.0.2.9", "10.0.0.1"])
def test_a_path_is_no_ip_address(path: str) -> None:
    """A Unix client may have bound any path: it is shown as it is, and held against no list of networks."""
    caller = Caller.of(3, Origin("echo", "/run/echo.sock", None, None, "unix"), path)

    assert (path, None) == (caller.name, caller.ip)
    assert (path, None) == (caller.facts()["client_address"], caller.facts()["network"])


def test_a_proxy_is_named_beside_its_client() -> None:
    """Who has said whose connection it is stays in the record."""
    facts = Caller(3, TCP, "203.0.113.9", 99, via=("198.51.100.7", 4711)).facts()

    assert ("203.0.113.9", 99) == (facts["client_address"], facts["client_port"])
    assert ("198.51.100.7", 4711) == (facts["peer_address"], facts["peer_port"])
