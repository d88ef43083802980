"""Which datagrams are answered.

Rules
    Pure. What is not answered is dropped for one reason, the first that applies.
    A source is looked at closely once; from then on it costs one look into a bounded table.
    Nothing is ever sent to a port of echod's own: two listeners of one daemon would never stop.

Known limits
    Whoever forges more sources than the table holds is not held to the rate for each. What goes out is still never more
    than what came in.
    Each worker holds a source to its share of the rate, and the kernel does not share datagrams evenly: with several
    workers one source may get less than the rate, never more.
    Two daemons on different ports do not know each other's: a forged datagram between them is held to the rate.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from echod.core.admission import Bucket
from echod.events import DropReason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from echod.config.udp import Udp
    from echod.core.access import Access

MOST_SOURCES = 65_536
"""Addresses that a worker remembers, some 20 MiB of them at most."""

_PORTS = 65_536


class Guard:
    """What one listener answers."""

    def __init__(self, config: Udp, access: Access, own_ports: Iterable[int], workers: int) -> None:
        self._access = access
        self._denied_ports = _flags(config.deny_source_ports, own_ports)
        self._rate = config.rate / workers
        self._burst = (config.burst or config.rate) / workers
        self._sources: dict[str, Bucket | DropReason | None] = {}

    def objection(self, host: str, port: int, now: float) -> DropReason | None:
        """Tell why a datagram from `host` and `port` is not answered, None if it is."""
        if self._denied_ports[port]:
            return DropReason.SOURCE_PORT
        try:
            source = self._sources[host]
        except KeyError:
            source = self._meet(host, now)
        if source is None:
            return None
        if isinstance(source, DropReason):
            return source
        return None if source.take(now) else DropReason.OVER_RATE

    def _meet(self, host: str, now: float) -> Bucket | DropReason | None:
        if len(self._sources) >= MOST_SOURCES:
            del self._sources[next(iter(self._sources))]  # the one that was met first
        bucket = Bucket(self._rate, now, self._burst) if self._rate else None
        source = self._sources[host] = self._judge(host) or bucket
        return source

    def _judge(self, host: str) -> DropReason | None:
        address = ipaddress.ip_address(host)
        broadcast = isinstance(address, ipaddress.IPv4Address) and address.is_reserved  # 255.255.255.255 among them
        if address.is_multicast or address.is_unspecified or broadcast:
            return DropReason.SOURCE_ADDRESS
        return None if self._access.admits(host) else DropReason.DENIED


def _flags(ranges: Iterable[str], own: Iterable[int]) -> bytearray:
    flags = bytearray(_PORTS)
    for text in ranges:
        first, _, last = text.partition("-")
        flags[int(first) : int(last or first) + 1] = bytes([1]) * (int(last or first) + 1 - int(first))
    for port in own:
        flags[port] = 1
    return flags
