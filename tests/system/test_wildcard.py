"""An address "*:PORT": all families on one port, and reloads to and from it, as clients see them."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import connect, echo_once, free_port
from tests.system.test_admin import get

if TYPE_CHECKING:
    from tests.system.daemon import Starter

FAMILIES = ("127.0.0.1", "::1")


@pytest.mark.parametrize("host", FAMILIES)
def test_wildcard_answers_over_each_family(start: Starter, host: str) -> None:
    """Echo over TCP and UDP, and metrics, on one port each."""
    admin = free_port()
    listeners = [
        {"name": "echo", "address": "*:0"},
        {"name": "udp", "kind": "udp", "address": "*:0"},
    ]
    daemon = start(workers=2, listeners=listeners, admin={"address": f"*:{admin}"})
    ports = {address[1] for address in daemon.addresses("echo")}
    (udp_port,) = {address[1] for address in daemon.addresses("udp")}

    assert len(ports) == 1
    echo_once((host, ports.pop()))
    assert get((host, admin), "/livez")[0] == 200
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"hello", (host, udp_port))
        assert client.recv(100) == b"hello"


def test_reload_to_wildcard_refuses_no_client(start: Starter) -> None:
    """While "0.0.0.0", "[::]" and "*" follow each other on one port, both families are served all the time."""
    port = free_port()
    apart = [{"name": "four", "address": f"0.0.0.0:{port}"}, {"name": "six", "address": f"[::]:{port}"}]
    together = [{"name": "both", "address": f"*:{port}"}]
    daemon = start(workers=2, listeners=apart)
    failures: list[OSError] = []
    done = threading.Event()

    def connect_repeatedly() -> None:
        while not done.is_set():
            for host in FAMILIES:
                try:
                    echo_once((host, port))
                except OSError as error:
                    failures.append(error)

    clients = threading.Thread(target=connect_repeatedly)
    clients.start()
    try:
        for number in range(10):
            daemon.reload(listener=apart if number % 2 else together)
    finally:
        done.set()
        clients.join()

    assert failures == []
    assert daemon.records("listener.closed") == []
    assert len(daemon.records("listener.opened")) == 2


def test_reload_from_one_family_to_all_keeps_the_socket(start: Starter) -> None:
    """That of `[admin]` as well: only the other family is opened."""
    port = free_port()
    daemon = start(admin={"address": f"0.0.0.0:{port}"})
    daemon.reload(admin={"address": f"*:{port}"})

    assert [get((host, port), "/livez")[0] for host in FAMILIES] == [200, 200]
    opened = daemon.records("listener.opened", {"echod.listener": "admin"})
    assert [record["server.address"] for record in opened] == ["0.0.0.0", "::"]
    daemon.reload(admin={"address": f"[::]:{port}"})
    assert get(("::1", port), "/livez")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        connect(("127.0.0.1", port))


def test_collision_with_an_own_listener_is_named(start: Starter) -> None:
    """A client that waits for echo must not become one of `[admin]`: the socket does not fit."""
    port = free_port()
    daemon = start(listeners=[{"name": "echo", "address": f"127.0.0.1:{port}"}], expect={"reload.refused"})
    other = [{"name": "echo", "address": "127.0.0.1:0"}]
    daemon.reload(ok=False, listener=other, admin={"address": f"127.0.0.1:{port}"})

    assert f'echod itself listens on 127.0.0.1:{port}, as listener "echo"' in str(daemon.wait_for("reload.refused"))
    echo_once(("127.0.0.1", port))
