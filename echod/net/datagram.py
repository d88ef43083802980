"""A UDP socket: whatever comes in goes back, once, from the address that it was sent to.

Rules
    One datagram out for one that came in, of the same length; never more, never to several. Only a fault that is asked
    for, `duplicate`, makes it two.
    The reply leaves from the address that was asked (IP_PKTINFO, ip(7); IPV6_PKTINFO, ipv6(7)): from a socket on the
    wildcard address the kernel would choose another, and the client would not know the answer.
    What is dropped is counted by reason, and said in one record a second at most. No error of one datagram, be it an
    ICMP error that is reported on the socket, a full buffer or a defect of echod, ends the loop or pauses the socket.

Known limit: each worker says by itself what it has dropped, and warns by itself of who is over the rate.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from ipaddress import IPv6Address
from math import inf
from typing import TYPE_CHECKING

from echod.core.access import Access
from echod.core.datagrams import Guard
from echod.core.injection import copies, dice
from echod.events import DatagramDropped, DatagramThrottled, DropReason
from echod.net import sockets
from echod.net.caller import Origin
from echod.net.poller import READABLE
from echod.net.reactor import Handler, Reactor

if TYPE_CHECKING:
    from typing import Any

    from echod.config import listeners as models
    from echod.net.setting import Setting

PER_TURN = 64
"""Datagrams that are answered before others have their turn."""

SAID_EVERY = 1.0
"""Seconds between records of what was dropped."""

QUIET_AGAIN = 60.0
"""Seconds without a source over its rate after which the next one is worth a warning again."""

PAUSE = 0.1
"""Seconds that a socket rests on which receiving fails for a reason of its own."""

_IP_PKTINFO = 8  # ip(7); the socket module does not name it
_V4 = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, local address, destination
_V6 = struct.Struct("=16si")  # struct in6_pktinfo: destination, interface
_ANCILLARY = socket.CMSG_SPACE(_V4.size) + socket.CMSG_SPACE(_V6.size)


class Datagrams(Handler):
    """One worker's share of a UDP socket."""

    __slots__ = (
        "_chance",
        "_dropped",
        "_due",
        "_faults",
        "_guard",
        "_reactor",
        "_setting",
        "_warned",
        "origin",
        "socket",
    )

    shared = True

    def __init__(self, config: models.Listener, sock: socket.socket, reactor: Reactor, setting: Setting) -> None:
        super().__init__(sock.fileno())
        self.socket = sock
        self._reactor = reactor
        self._setting = setting
        self._dropped: Counter[DropReason] = Counter()
        self._due = inf
        self._warned = -inf
        self.configure(config)

    def configure(self, config: models.Listener) -> None:
        """Use this configuration from now on."""
        setting = self._setting
        self.origin = Origin.of(config, self.socket)
        access = Access(config.allow, config.deny)
        self._guard = Guard(config.name, config.udp, access, setting.udp_ports, setting.workers, setting.sources)
        self._faults = config.faults if config.faults.active else None
        self._chance = dice(config.faults, 0)

    def on_readable(self, now: float) -> None:
        """Answer some of those who wait."""
        failed = False
        for _ in range(PER_TURN):
            try:
                count, ancillary, flags, peer = self.socket.recvmsg_into([self._setting.buffer], _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:  # the first may be an ICMP error about a reply, which is taken by now; a second is not
                self._drop(DropReason.RECEIVE_FAILED, now)
                if failed:
                    self.interest, self.deadline = 0, now + PAUSE
                    return
                failed = True
                continue
            failed = False
            try:
                self._answer(count, ancillary, flags, peer, now)
            except Exception as error:  # noqa: BLE001  # it costs this datagram; those that wait are answered
                self._drop(DropReason.INTERNAL_ERROR, now)
                self._reactor.report(self, error)

    def on_exceptional(self, now: float) -> None:
        """Take the error that is pending, which would come back at once."""
        if sockets.pending_error(self.socket):
            self._drop(DropReason.RECEIVE_FAILED, now)

    def on_deadline(self, now: float) -> None:
        """Watch the socket again, and say what was dropped."""
        self.interest = READABLE
        if now >= self._due:
            self._say_dropped()
        self.deadline = self._due

    def on_crash(self, error: Exception, now: float) -> None:
        """Go on after a pause, since whatever has failed may fail again at once, as when memory is short."""
        self.interest, self.deadline = 0, now + PAUSE

    def release(self, now: float) -> None:
        """Be done: what waits is the next worker's, or lost as datagrams may be."""
        self.retire()

    def close(self) -> None:
        """Close this worker's descriptor; the supervisor's keeps the socket alive."""
        self.socket.close()
        self._say_dropped()

    def _answer(self, count: int, ancillary: list[tuple[int, int, bytes]], flags: int, peer: Any, now: float) -> None:
        reason = self._guard.objection(peer[0], peer[1], now)
        if flags & socket.MSG_TRUNC:
            reason = DropReason.TRUNCATED
        source = _reply_from(ancillary)
        if source is None:
            reason = DropReason.DESTINATION
        if reason:
            self._drop(reason, now)
            return
        times = copies(self._faults, self._chance) if self._faults else 1
        if not times:
            self._drop(DropReason.ON_PURPOSE, now)
        for _ in range(times):
            try:
                self.socket.sendmsg([self._setting.buffer[:count]], source or (), socket.MSG_DONTWAIT, peer)
            except OSError:  # the buffer is full, the peer cannot be reached: to a datagram that may happen
                self._drop(DropReason.SEND_FAILED, now)
                return
            self._setting.tally.echoed(count)

    def _drop(self, reason: DropReason, now: float) -> None:
        self._setting.tally.dropped(reason)
        if not self._dropped:
            self._due = self.deadline = now + SAID_EVERY
        self._dropped[reason] += 1
        if reason is DropReason.OVER_RATE:
            if now - self._warned > QUIET_AGAIN:
                self._setting.emit(DatagramThrottled(**self.origin.facts(), config_key="listener.udp.rate"))
            self._warned = now

    def _say_dropped(self) -> None:
        self._due = inf
        if self._dropped:
            counts: dict[str, Any] = {reason.value: count for reason, count in self._dropped.items()}
            self._setting.emit(DatagramDropped(**self.origin.facts(), **counts))
            self._dropped.clear()


def _reply_from(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]] | None:
    """Return what makes the reply leave from the address that was asked; None if that was not one host's.

    Of an IPv4 broadcast to a socket of both families only the kernel knows: there sending fails (EINVAL).
    """
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, local, destination = _V4.unpack(data[: _V4.size])
            if local != destination:  # broadcast or multicast
                return None
            return [(level, kind, _V4.pack(0, local, bytes(4)))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            destination, interface = _V6.unpack(data[: _V6.size])
            address = IPv6Address(destination)
            if address.is_multicast:
                return None
            return [(level, kind, _V6.pack(destination, interface if address.is_link_local else 0))]
    return []
