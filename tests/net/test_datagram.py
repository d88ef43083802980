"""A UDP socket: every datagram comes back once and whole, from where it was sent to; nothing ends the loop."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from echod.config import listeners as models
from echod.events import DatagramDropped, DatagramThrottled, DropReason
from echod.net import datagram
from echod.net.datagram import Datagrams
from echod.net.poller import READABLE
from tests.net.binding import bind_resolved

if TYPE_CHECKING:
    from tests.net.conftest import Rig

LARGEST = 65507


class Flaky(socket.socket):
    """A UDP socket whose next calls fail as told."""

    def __init__(self, real: socket.socket) -> None:
        super().__init__(real.family, real.type, fileno=real.detach())
        self.setblocking(False)
        self.failing: dict[str, list[Exception]] = {"recvmsg_into": [], "sendmsg": []}

    def recvmsg_into(self, *arguments: Any) -> Any:
        """Fail, while there are failures left."""
        if self.failing["recvmsg_into"]:
            raise self.failing["recvmsg_into"].pop(0)
        return super().recvmsg_into(*arguments)

    def sendmsg(self, *arguments: Any) -> Any:
        """Fail, while there are failures left."""
        if self.failing["sendmsg"]:
            raise self.failing["sendmsg"].pop(0)
        return super().sendmsg(*arguments)


def door(rig: Rig, address: str = "127.0.0.1:0", **keys: Any) -> tuple[Flaky, Datagrams]:
    """Answer at an address."""
    config = models.Listener.model_validate({"kind": "udp", "address": address} | keys)
    ([bound], []) = bind_resolved(config)
    sock = rig.keep(Flaky(bound))
    handler = Datagrams(config, sock, rig.reactor, rig.setting)
    rig.reactor.add(handler)
    return sock, handler


def client(rig: Rig, host: str = "127.0.0.1") -> socket.socket:
    """Return a client's socket."""
    made = rig.keep(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM))
    made.bind((host, 0))
    made.settimeout(5)
    return made


@pytest.mark.parametrize("size", [0, 1, 576, 1472, 9000, LARGEST])
def test_a_datagram_comes_back_whole(rig: Rig, size: int) -> None:
    """Empty ones, and the largest that there is."""
    sock, _ = door(rig)
    peer = client(rig)
    data = os.urandom(size)
    peer.sendto(data, sock.getsockname())
    rig.until(lambda: rig.tally.sent)

    assert (data, sock.getsockname()) == peer.recvfrom(LARGEST + 1)
    assert ([size], []) == (rig.tally.sent, rig.tally.lost)


@pytest.mark.parametrize(
    ("bound", "asked"), [("0.0.0.0:0", "127.0.0.9"), ("[::]:0", "::1"), ("127.0.0.2:0", "127.0.0.2")]
)
def test_the_reply_leaves_from_the_address_that_was_asked(rig: Rig, bound: str, asked: str) -> None:
    """Also from a socket on the wildcard address, of which the machine has many."""
    sock, _ = door(rig, bound)
    peer = client(rig, "::1" if ":" in asked else "127.0.0.1")
    peer.sendto(b"who?", (asked, sock.getsockname()[1]))
    rig.until(lambda: rig.tally.sent)

    assert (asked, sock.getsockname()[1]) == peer.recvfrom(100)[1][:2]


def test_a_socket_for_both_families_answers_ipv4(rig: Rig) -> None:
    """An IPv4 client of an IPv6 socket is held to the list for IPv4."""
    sock, _ = door(rig, "[::]:0", ipv6_only=False, allow=["127.0.0.0/8"])
    peer = client(rig)
    peer.sendto(b"x", ("127.0.0.3", sock.getsockname()[1]))
    rig.until(lambda: rig.tally.sent)

    assert "127.0.0.3" == peer.recvfrom(100)[1][0]


def test_broadcast_is_not_answered(rig: Rig) -> None:
    """Many could be asked by one datagram."""
    sock, _ = door(rig, "0.0.0.0:0")
    peer = client(rig)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    peer.sendto(b"all?", ("127.255.255.255", sock.getsockname()[1]))
    rig.until(lambda: rig.tally.lost)

    assert [DropReason.DESTINATION] == rig.tally.lost


def test_no_turn_is_longer_than_others_can_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood is answered in portions."""
    monkeypatch.setattr(datagram, "PER_TURN", 3)
    sock, handler = door(rig)
    peer = client(rig)
    for _ in range(5):
        peer.sendto(b"x", sock.getsockname())
    handler.on_readable(rig.clock.now)
    first = len(rig.tally.sent)
    handler.on_readable(rig.clock.now)

    assert (3, 5) == (first, len(rig.tally.sent))


def test_an_answer_that_cannot_be_sent_is_counted(rig: Rig) -> None:
    """A full buffer, an unreachable peer or a broadcast address (EACCES, ip(7)) costs that datagram, and no more."""
    sock, _ = door(rig)
    sock.failing["sendmsg"] += [
        BlockingIOError(errno.EAGAIN, "x"),
        OSError(errno.ENETUNREACH, "x"),
        PermissionError(errno.EACCES, "x"),
    ]
    peer = client(rig)
    for _ in range(4):
        peer.sendto(b"x", sock.getsockname())
    rig.until(lambda: rig.tally.sent)

    assert [DropReason.SEND_FAILED] * 3 == rig.tally.lost


def test_a_failing_receive_is_no_spin(rig: Rig) -> None:
    """The socket rests for a moment, and goes on."""
    sock, handler = door(rig)
    sock.failing["recvmsg_into"] += [OSError(errno.ENOMEM, "x"), OSError(errno.ENOMEM, "x")]
    peer = client(rig)
    peer.sendto(b"x", sock.getsockname())
    rig.until(lambda: rig.tally.lost)
    rig.turn()
    resting = handler.interest
    rig.clock.now += datagram.PAUSE
    rig.until(lambda: rig.tally.sent)

    assert (0, [DropReason.RECEIVE_FAILED] * 2) == (resting, rig.tally.lost)


def test_an_icmp_error_pauses_nothing(rig: Rig) -> None:
    """What one peer has caused is counted, and the datagrams of others are answered in the same turn."""
    sock, handler = door(rig)
    sock.failing["recvmsg_into"].append(ConnectionRefusedError(errno.ECONNREFUSED, "x"))
    peer = client(rig)
    peer.sendto(b"x", sock.getsockname())
    handler.on_readable(rig.clock.now)

    assert [DropReason.RECEIVE_FAILED] == rig.tally.lost
    assert [1] == rig.tally.sent
    assert READABLE == handler.interest


def test_a_pending_error_is_taken(rig: Rig) -> None:
    """Else it would come back at once."""
    _, handler = door(rig)
    handler.on_exceptional(rig.clock.now)

    assert [] == rig.tally.lost


def test_drops_are_said_once_a_second(rig: Rig) -> None:
    """By reason, in one record; a source over its rate is worth one warning; what is left is said at the end."""
    sock, handler = door(rig, udp={"rate": 2})
    peer = client(rig)
    for _ in range(6):
        peer.sendto(b"x", sock.getsockname())
    rig.until(lambda: len(rig.tally.lost) == 4)
    assert [DatagramThrottled] == [type(event) for event in rig.recorded]
    rig.clock.now += 0.9
    rig.turn()
    assert 1 == len(rig.recorded)
    rig.clock.now += 0.2
    rig.until(lambda: len(rig.recorded) == 2)
    dropped = rig.recorded[1]

    assert isinstance(dropped, DatagramDropped)
    assert (4, None, "udp") == (dropped.over_rate, dropped.denied, dropped.transport)
    handler.configure(
        models.Listener.model_validate({"kind": "udp", "address": "127.0.0.1:7", "deny": ["::/0", "0.0.0.0/0"]})
    )
    peer.sendto(b"x", sock.getsockname())
    rig.until(lambda: len(rig.tally.lost) == 5)
    handler.release(rig.clock.now)
    rig.reactor.touch(handler)
    rig.turn()
    assert 1 == vars(rig.recorded[2])["denied"]


def test_a_crash_is_one_datagram(rig: Rig) -> None:
    """A defect costs the datagram that met it: the rest of the batch is answered at once, nothing pauses."""
    sock, handler = door(rig)
    error = ZeroDivisionError("x")
    sock.failing["sendmsg"].append(error)
    peer = client(rig)
    for content in (b"x", b"y", b"z"):
        peer.sendto(content, sock.getsockname())
    handler.on_readable(rig.clock.now)

    assert [b"y", b"z"] == [peer.recv(10) for _ in range(2)]
    assert [(handler, error)] == rig.crashes
    assert [DropReason.INTERNAL_ERROR] == rig.tally.lost
    assert READABLE == handler.interest


def test_faults_lose_and_double_what_is_answered(rig: Rig) -> None:
    """What is to be lost is counted and marked, what is doubled goes back twice; after a reload all is well again."""
    sock, handler = door(rig, faults={"drop": 1.0})
    peer = client(rig)
    peer.sendto(b"lost", sock.getsockname())
    rig.until(lambda: rig.tally.lost)
    rig.later(2)

    assert [DropReason.ON_PURPOSE] == rig.tally.lost
    assert [(1, True)] == [
        (event.on_purpose, event.fault) for event in rig.recorded if isinstance(event, DatagramDropped)
    ]

    for keys, times in (({"faults": {"duplicate": 1.0}}, 2), ({}, 1)):
        handler.configure(models.Listener.model_validate({"kind": "udp", "address": "127.0.0.1:0"} | keys))
        peer.sendto(b"twice?", sock.getsockname())
        rig.tally.sent.clear()
        rig.until(lambda: rig.tally.sent)
        assert [6] * times == rig.tally.sent
        assert [b"twice?"] * times == [peer.recv(10) for _ in range(times)]
