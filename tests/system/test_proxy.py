"""Behind a proxy: the client that it names counts, and nobody else may name one. With HAProxy and nginx in front."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.clients import KIB, Load, connect, free_port, ping, read_to_end
from tests.system.daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.clients import Address
    from tests.system.daemon import Daemon, Starter

CLIENT = ("127.0.0.77", 0)


def door(**keys: Any) -> list[dict[str, Any]]:
    """Describe a listener that demands a header from this machine."""
    proxy = {"enabled": True, "trusted": ["127.0.0.1/32"]}
    return [{"name": "echo", "address": "127.0.0.1:0", "proxy_protocol": proxy | keys}]


@contextlib.contextmanager
def running(*command: str, address: Address) -> Iterator[None]:
    """Run a proxy in the foreground until the test is over; it is ready when it accepts."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            wait_until(lambda: process.poll() is not None or accepts(address), 10, f"{command[0]}'s door")
            assert process.poll() is None, process.communicate()[0]
            yield
        finally:
            process.terminate()
            process.communicate(timeout=10)


def accepts(address: Address) -> bool:
    """Tell whether somebody listens."""
    with socket.socket() as sock:
        return sock.connect_ex(address) == 0


@pytest.mark.parametrize("word", ["send-proxy", "send-proxy-v2"])
def test_haproxy_in_front(start: Starter, tmp_path: Path, word: str) -> None:
    """A hundred clients come through with their own addresses and all their bytes; its health checks are no errors."""
    daemon = start(workers=2, listeners=door())
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(front(port, f"127.0.0.1:{daemon.address()[1]} {word} check inter 100ms check-send-proxy"))
    with running("haproxy", "-db", "-f", str(config), address=("127.0.0.1", port)):
        with socket.create_connection(("127.0.0.1", port), 5, source_address=CLIENT) as client:
            ping(client)
            own = client.getsockname()
        with Load.open(("127.0.0.1", port), 100, 64 * KIB, 7) as load:
            load.run(30)
            assert load.report()["complete"] == 100, load.report()
        record = daemon.wait_for("connection.closed", {"client.address": own[0]})
        daemon.wait_for("connection.closed", {"echod.io.receive": 0}, count=5)
    version = 1 if word == "send-proxy" else 2

    assert (own[1], "127.0.0.1", version, 14) == (
        record["client.port"],
        record["network.peer.address"],
        record["echod.proxy.version"],
        record["echod.io.receive"],
    )
    assert {"peer_closed", "peer_reset"} >= {
        record["echod.close.reason"] for record in daemon.records("connection.closed")
    }


def front(port: int, server: str) -> str:
    """Return a configuration of HAProxy's with one server."""
    return f"""
global
    maxconn 1000
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen front
    bind 127.0.0.1:{port}
    bind [::1]:{port}
    unique-id-format %[src]-%[src_port]
    server echod {server}
"""


def test_haproxy_tells_more_than_addresses(start: Starter, tmp_path: Path) -> None:
    """An IPv6 client comes through to a Unix socket with its address, a unique id and a checksum that is right."""
    path = tmp_path / "s"
    daemon = start(
        listeners=[{"name": "echo", "kind": "unix", "address": str(path), "proxy_protocol": {"enabled": True}}]
    )
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(front(port, f"unix@{path} send-proxy-v2 proxy-v2-options unique-id,crc32c"))
    with running("haproxy", "-db", "-f", str(config), address=("127.0.0.1", port)):
        with socket.create_connection(("::1", port), 5) as client:
            ping(client)
            host, own = client.getsockname()[:2]
        record = daemon.wait_for("connection.closed", {"client.port": own})

    assert (host, 2, f"{host}-{own}".encode().hex()) == (
        record["client.address"],
        record["echod.proxy.version"],
        record["echod.proxy.unique_id"],
    )


def test_health_checks_can_be_quiet(start: Starter, tmp_path: Path) -> None:
    """HAProxy's checks carry a header and no byte: they are ordinary ends, and say nothing where `quiet` has them."""
    daemon = start(listeners=door())
    port, there = free_port(), daemon.address()[1]
    config = tmp_path / "haproxy.cfg"
    config.write_text(front(port, f"127.0.0.1:{there} send-proxy-v2 check check-send-proxy inter 50ms"))
    with running("haproxy", "-db", "-f", str(config), address=("127.0.0.1", port)):
        daemon.wait_for("connection.closed", {"echod.io.receive": 0}, count=10)
        daemon.reload(log={"quiet": ["127.0.0.1/32"]})
        before, said = accepted(daemon), len(daemon.records("connection.closed"))
        wait_until(lambda: accepted(daemon) >= before + 20, 10, "twenty more checks")
        assert len(daemon.records("connection.closed")) <= said + 1  # one may have come in before
        with socket.create_connection(("127.0.0.1", port), 5, source_address=CLIENT) as client:
            ping(client)
        daemon.wait_for("connection.closed", {"client.address": CLIENT[0]})
    closed = daemon.records("connection.closed")

    assert {"peer_closed", "peer_reset"} >= {record["echod.close.reason"] for record in closed}
    assert {"info"} == {record["level"] for record in closed}


def accepted(daemon: Daemon) -> int:
    """Have a snapshot reported, and return how many connections were accepted so far."""
    daemon.active()
    return int(daemon.records("status.reported")[-1]["echod.connections.accepted"])


def test_nginx_in_front(start: Starter, tmp_path: Path) -> None:
    """Its stream module says the same by `proxy_protocol on`."""
    daemon = start(listeners=door())
    port = free_port()
    (tmp_path / "nginx.conf").write_text(
        f"""
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid {tmp_path}/nginx.pid;
error_log {tmp_path}/error.log;
events {{ }}
stream {{
    server {{
        listen 127.0.0.1:{port};
        proxy_pass 127.0.0.1:{daemon.address()[1]};
        proxy_protocol on;
    }}
}}
"""
    )
    with running("nginx", "-c", str(tmp_path / "nginx.conf"), address=("127.0.0.1", port)):
        with socket.create_connection(("127.0.0.1", port), 5, source_address=CLIENT) as client:
            ping(client)
            own = client.getsockname()
        record = daemon.wait_for("connection.closed", {"client.address": own[0]})

    assert (own[1], 14) == (record["client.port"], record["echod.io.receive"])


def test_nobody_else_may_name_a_client(start: Starter) -> None:
    """An address that is not trusted is turned away unread, a header that is none is cut; others are served."""
    daemon = start(listeners=door())
    with socket.create_connection(daemon.address(), 5, source_address=("127.0.0.2", 0)) as stranger:
        with contextlib.suppress(ConnectionError):
            stranger.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nhello")
        assert read_to_end(stranger)[0] == b""
    with connect(daemon.address()) as plain:
        plain.sendall(b"hello")
        assert read_to_end(plain) == (b"", "reset")
    with connect(daemon.address()) as proxy:
        proxy.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nhello")
        assert proxy.recv(100) == b"hello"
    daemon.wait_for("connection.opened", {"client.address": "192.0.2.1"})
    reasons = [record["echod.refuse.reason"] for record in daemon.records("connection.refused")]

    assert ["untrusted_proxy"] == reasons
    assert not [record for record in daemon.records("connection.opened") if record["client.address"] == "127.0.0.2"]


def test_silent_proxies_hold_no_place_for_long(start: Starter) -> None:
    """Two hundred that send half a header are cut at the deadline; a good one is served meanwhile."""
    daemon = start(listeners=door(timeout="1s"))
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(daemon.address())) for _ in range(200)]
        for client in silent:
            client.sendall(b"PROXY TCP4 192")
        with connect(daemon.address()) as good:
            good.sendall(b"PROXY UNKNOWN\r\nx")
            assert good.recv(1) == b"x"
        daemon.wait_for("connection.closed", {"echod.close.reason": "handshake_timeout"}, count=200, timeout=5)


def test_the_limit_of_addresses_counts_clients(start: Starter) -> None:
    """All come from one proxy, and each client has its own number of places; the lists are held against them too."""
    daemon = start(
        workers=2, listeners=[door()[0] | {"deny": ["198.51.100.0/24"]}], limits={"max_connections_per_address": 2}
    )
    with contextlib.ExitStack() as stack:

        def client(host: str) -> socket.socket:
            made = stack.enter_context(connect(daemon.address()))
            made.sendall(f"PROXY TCP4 {host} 192.0.2.2 1 2\r\n".encode())
            return made

        for host in ("203.0.113.1", "203.0.113.1", "203.0.113.2"):
            ping(client(host))
        for host, reason in (("203.0.113.1", "over_address_limit"), ("198.51.100.9", "denied")):
            assert read_to_end(client(host))[0] == b""
            record = daemon.wait_for(
                "connection.closed", {"client.address": host, "echod.close.reason": "client_refused"}
            )
            assert record["error.type"] == reason


def test_on_a_path_the_mode_is_the_trust(start: Starter, tmp_path: Path) -> None:
    """Whoever may connect to a Unix socket is believed."""
    path = str(tmp_path / "s")
    daemon = start(listeners=[{"name": "echo", "kind": "unix", "address": path, "proxy_protocol": {"enabled": True}}])
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(path)
        client.sendall(b"PROXY TCP6 2001:db8::1 2001:db8::2 4 5\r\nhello")
        assert client.recv(100) == b"hello"

    assert daemon.wait_for("connection.closed")["client.address"] == "2001:db8::1"
