"""Who may come in, how fast, and which socket options they find, as a client sees it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.clients import MIB, connect, echo_once, ping, read_to_end

if TYPE_CHECKING:
    from tests.system.daemon import Starter

IP = 0x0800  # ETH_P_IP


def door(**keys: Any) -> list[dict[str, Any]]:
    """Describe one listener with these keys."""
    return [{"name": "echo", "address": "127.0.0.1:0"} | keys]


def test_access_follows_a_reload(start: Starter) -> None:
    """Who is denied is closed without a byte and recorded; those inside stay; a reload lets the next one in."""
    daemon = start(workers=2)
    with connect(daemon.address()) as inside:
        ping(inside)
        daemon.reload(listener=door(deny=["127.0.0.0/8"]))
        with connect(daemon.address()) as denied:
            assert read_to_end(denied)[0] == b""
            record = daemon.wait_for("connection.refused")
            assert ("denied", denied.getsockname()[1]) == (record["echod.refuse.reason"], record["client.port"])
        ping(inside)
        daemon.reload(listener=door(allow=["10.0.0.0/8", "127.0.0.1/32"]))
        echo_once(daemon.address())


def test_health_checks_are_not_written(start: Starter) -> None:
    """A quiet client that only connects leaves no record, one that speaks leaves two; the count has both."""
    daemon = start(log={"quiet": ["127.0.0.0/8"]})
    for _ in range(20):
        connect(daemon.address()).close()
    echo_once(daemon.address())
    closed = daemon.wait_for("connection.closed")
    daemon.stop()

    assert 5 == closed["echod.io.receive"]
    assert (1, 1) == (len(daemon.records("connection.opened")), len(daemon.records("connection.closed")))


@pytest.mark.parametrize("workers", [1, 4])
def test_an_address_has_its_own_limit(start: Starter, workers: int) -> None:
    """Exactly so many of one address are inside, over all workers; others are not its concern; places return."""
    daemon = start(workers=workers, limits={"max_connections_per_address": 25})
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connect(daemon.address())) for _ in range(100)]
        daemon.wait_for("connection.refused", {"echod.refuse.reason": "over_address_limit"}, count=75)
        inside = [client for client in crowd if answers(client)]
        assert 25 == len(inside)
        with socket.create_connection(daemon.address(), 5, source_address=("127.0.0.2", 0)) as other:
            ping(other)
        for client in inside[:5]:
            client.close()
        daemon.wait_for("connection.closed", {"client.address": "127.0.0.1"}, count=5)
        for _ in range(5):
            ping(stack.enter_context(connect(daemon.address())))


def answers(client: socket.socket) -> bool:
    """Tell whether a client is inside."""
    try:
        ping(client)
    except (OSError, AssertionError):
        return False
    return True


def test_a_rate_holds_over_the_workers(start: Starter) -> None:
    """Three times as many clients a second as may come: about as many as may are let in, the others are recorded."""
    rate, seconds = 40, 3
    daemon = start(workers=2, listeners=door(accept_rate=rate))
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for number in range(3 * rate * seconds):
            time.sleep(max(0.0, began + number / (3 * rate) - time.monotonic()))  # evenly over the time
            stack.enter_context(connect(daemon.address()))
        daemon.wait_for("connection.refused", {"echod.refuse.reason": "over_rate"})
        took = time.monotonic() - began
    let_in = len(daemon.records("connection.opened"))

    assert rate * took * 0.5 <= let_in <= rate * (took + 1)  # half, should all have come to one worker; and one burst


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees packets")
@pytest.mark.parametrize("both", [False, True])
def test_the_type_of_service_is_on_the_wire(start: Starter, both: bool) -> None:
    """What comes back over IPv4 is marked as the listener says, and otherwise after a reload for those who come then.

    Also through a socket that takes both families.
    """
    keys = {"address": "[::]:0", "ipv6_only": False} if both else {}
    daemon = start(listeners=door(tos=184, **keys))
    port = daemon.address()[1]
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(IP)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, 33, 64 * MIB)  # SO_RCVBUFFORCE: other tests are on the wire too
        wire.bind(("lo", IP))
        wire.settimeout(5)
        for tos in (184, 32):
            with connect(("127.0.0.1", port)) as client:
                ping(client, b"mark me")
            while not (packet := wire.recv(2048)).endswith(b"mark me") or int.from_bytes(packet[20:22], "big") != port:
                pass

            assert tos == packet[1]
            daemon.reload(listener=door(tos=32, **keys))
