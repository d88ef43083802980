"""Multipath TCP (RFC 8684): a listener takes clients with it and without it, and the record says which."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from echod.net.tcp import IPPROTO_MPTCP
from tests.system.clients import ping

if TYPE_CHECKING:
    from tests.system.daemon import Starter


def client(family: int, protocol: int) -> socket.socket:
    """Return a socket, or skip the test where the kernel has no Multipath TCP."""
    try:
        made = socket.socket(family, socket.SOCK_STREAM, protocol)
    except OSError as error:
        if error.errno not in {errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL}:
            raise
        pytest.skip(f"no Multipath TCP here: {error.strerror}")
    made.settimeout(5)
    return made


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_mptcp_listener_serves_clients_with_and_without(start: Starter, family: int, host: str) -> None:
    """Over both families of one address; `connection.closed` says which client had it."""
    with client(family, IPPROTO_MPTCP) as multipath, client(family, 0) as plain:
        daemon = start(workers=2, listeners=[{"name": "echo", "address": "*:0", "mptcp": True}])
        for one in (multipath, plain):
            one.connect((host, daemon.address()[1]))
            ping(one)
        ports = {one.getsockname()[1]: one is multipath for one in (multipath, plain)}
    daemon.wait_for("connection.closed", count=2)
    records = daemon.records("connection.closed")

    assert {record["client.port"]: record["echod.tcp.mptcp"] for record in records} == ports


def test_listener_without_the_key_says_nothing_of_mptcp(start: Starter) -> None:
    """A client with Multipath TCP falls back to TCP."""
    with client(socket.AF_INET, IPPROTO_MPTCP) as multipath:
        daemon = start()
        multipath.connect(daemon.address())
        ping(multipath)

    assert "echod.tcp.mptcp" not in daemon.wait_for("connection.closed")
