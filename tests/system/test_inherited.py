"""Sockets that somebody else has bound: taken by name, whatever the file says of their address, and never lost."""

from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.clients import connect, echo_once, ping, read_exactly
from tests.system.daemon import StartFailedError, echod

if TYPE_CHECKING:
    from tests.system.daemon import Starter

# Binds what its first argument lists, as systemd would, and becomes the program that follows.
PASS = """
import json, os, socket, sys
sockets = []
for entry in json.loads(sys.argv[1])["sockets"]:
    sock = socket.socket(socket.AF_INET6 if ":" in entry["host"] else socket.AF_INET, entry["type"], entry["protocol"])
    if ":" in entry["host"]:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not entry["dual"])
    sock.bind((entry["host"], 0))
    if entry["type"] == socket.SOCK_STREAM:
        sock.listen()
    sockets.append(sock)
for fd, sock in enumerate(sockets, 3):
    high = os.dup2(sock.fileno(), 100 + fd)
for fd in range(3, 3 + len(sockets)):
    os.dup2(100 + fd, fd)
    os.close(100 + fd)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets))} | json.loads(sys.argv[1])["environment"]
os.execvp(sys.argv[2], sys.argv[2:])
"""

MPTCP = 262  # IPPROTO_MPTCP of linux/in.h

ELSEWHERE = [{"name": "echo", "address": "127.0.0.1:1"}]  # nobody may bind it without root, nobody ever asks for it


def passing(
    names: str, *hosts: str, kind: int = socket.SOCK_STREAM, dual: bool = False, protocol: int = 0, **environment: str
) -> list[str]:
    """Return the launcher that passes a listening socket on each of `hosts`."""
    sockets = [{"host": host, "type": kind, "dual": dual, "protocol": protocol} for host in hosts]
    handed: dict[str, Any] = {"sockets": sockets, "environment": {"LISTEN_FDNAMES": names} | environment}
    return [sys.executable, "-c", PASS, json.dumps(handed)]


def test_passed_sockets_win_over_the_address(start: Starter) -> None:
    """Several share the listener's name: all of them are served, the configured address is not bound; it is said."""
    daemon = start(prefix=passing("echo:echo", "127.0.0.1", "::1"), listeners=ELSEWHERE, workers=2)
    addresses = daemon.addresses()
    for address in addresses:
        echo_once(address)

    assert ["127.0.0.1", "::1"] == [host for host, _ in addresses]
    with pytest.raises(ConnectionRefusedError):
        connect(("127.0.0.1", 1))
    assert [("127.0.0.1:1", host, port) for host, port in addresses] == [
        (record["echod.configured_address"], record["server.address"], record["server.port"])
        for record in daemon.records("listener.opened")
    ]


def test_a_socket_for_both_families_tells_them_apart(start: Starter) -> None:
    """A peer that comes by IPv4 is logged as such, by its own address and not by one that IPv6 makes of it."""
    daemon = start(prefix=passing("echo", "::", dual=True), listeners=ELSEWHERE)
    port = daemon.address()[1]
    echo_once(("127.0.0.1", port))
    echo_once(("::1", port))
    daemon.wait_for("connection.closed", count=2)

    assert [("127.0.0.1", "ipv4"), ("::1", "ipv6")] == [
        (record["client.address"], record["network.type"]) for record in daemon.records("connection.closed")
    ]


def test_a_passed_socket_for_datagrams(start: Starter) -> None:
    """A UDP listener takes it, and answers from the address that was asked."""
    daemon = start(
        prefix=passing("echo", "127.0.0.1", kind=socket.SOCK_DGRAM), listeners=[ELSEWHERE[0] | {"kind": "udp"}]
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"hello", daemon.address())

        assert (b"hello", daemon.address()) == client.recvfrom(100)


def test_a_reload_keeps_what_was_passed(start: Starter) -> None:
    """Another address changes nothing; a listener more is bound; without its listener the whole reload is refused."""
    daemon = start(prefix=passing("echo", "127.0.0.1"), listeners=ELSEWHERE, expect={"reload.refused"})
    before = daemon.address()
    other = {"name": "other", "address": "127.0.0.1:0"}
    with connect(before) as client:
        ping(client)
        daemon.reload(listener=[{"name": "echo", "address": "127.0.0.1:2"}, other])
        echo_once(daemon.address("other"))
        report = daemon.reload(ok=False, listener=[other])
        ping(client)

    assert before == daemon.address()
    echo_once(before)
    (line,) = report["errors"]
    (number,) = [number for number, said in enumerate(daemon.file.read_text().splitlines(), 1) if "listener" in said]
    assert line.startswith(f'{daemon.file}:{number}: listener: a socket named "echo" was passed, which no listener')
    assert 78 == report["exit_code"]


def test_sockets_for_another_process_are_not_taken(start: Starter) -> None:
    """With another LISTEN_PID the variables were meant for somebody else: the configured address is bound."""
    daemon = start(prefix=passing("other", "127.0.0.1", LISTEN_PID="1"))

    assert {"inherited": False} == {"inherited": daemon.state()["listeners"][0]["inherited"]}
    echo_once(daemon.address())


@pytest.mark.parametrize(
    ("prefix", "code", "sentence"),
    [
        (passing("web", "127.0.0.1"), 78, 'listener: a socket named "web" was passed, which no listener is called'),
        (
            passing("echo", "127.0.0.1", kind=socket.SOCK_DGRAM),
            78,
            'listener "echo": a AF_INET SOCK_DGRAM socket was passed for it, and it is tcp',
        ),
        (passing("echo:echo", "127.0.0.1"), 1, "LISTEN_FDNAMES: 2 names for 1 descriptors"),
        (passing("echo", "127.0.0.1", LISTEN_FDS="many"), 1, 'LISTEN_FDS: must be a number, got "many"'),
        (
            passing("echo:echo", "127.0.0.1", LISTEN_FDS="2"),
            1,
            'LISTEN_FDS: descriptor 4, named "echo": Bad file descriptor',
        ),
    ],
)
def test_what_does_not_fit_is_one_line(start: Starter, prefix: list[str], code: int, sentence: str) -> None:
    """A name, a type or a number that is not as promised ends the start with one line that says which."""
    with pytest.raises(StartFailedError) as failed:
        start(prefix=prefix)
    (line,) = failed.value.stderr.splitlines()

    assert (code, True) == (failed.value.code, sentence in line)


def test_a_check_takes_no_sockets() -> None:
    """Only the daemon itself takes what was passed."""
    assert 0 == echod("check", "-c", "etc/echod.toml").returncode


def test_passed_mptcp_sockets_echo(start: Starter) -> None:
    """A unit with SocketProtocol=mptcp is served, to clients with multipath TCP and without."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP).close()
    except OSError as error:
        pytest.skip(f"this kernel has no multipath TCP: {error}")
    daemon = start(prefix=passing("echo:echo", "127.0.0.1", "::1", protocol=MPTCP), listeners=ELSEWHERE)
    for address in daemon.addresses():
        with connect(address) as plain:
            for data, flags in ((b"ab", 0), (b"X", socket.MSG_OOB), (b"cd", 0)):
                plain.send(data, flags)
            assert read_exactly(plain, 5) == b"abXcd"
        with socket.socket(
            socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM, MPTCP
        ) as client:
            client.settimeout(5)
            client.connect(address)
            ping(client)
    daemon.reload()

    assert len(daemon.records("connection.opened")) == 4
