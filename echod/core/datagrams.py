"""Which datagrams are answered.

Rules
    Pure. What is not answered is dropped for one reason, the first that applies.
    A source is looked at closely once; from then on it costs one look into a bounded table.
    A new configuration judges each source anew, and keeps what is left of its rate.
    Nothing is ever sent to a port of echod's own: two listeners of one daemon would never stop.

Known limits
    Whoever forges more sources than the table holds is not held to the rate for each. What goes out is still never more
    than what came in.
    Each worker holds a source to its share of the rate, and the kernel does not share datagrams evenly: with several
    workers one source may get less than the rate, never more.
    Two daemons on different ports do not know each other's: a forged datagram between them is held to the rate.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from echod.core.access import parse
from echod.core.admission import Bucket
from echod.events import DropReason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from echod.config.udp import Udp
    from echod.core.access import Access

MAX_SOURCES = 65_536
"""Addresses that a worker remembers, of all its listeners together; some 20 MiB of them at most."""

_PORTS = 65_536
_BROADCAST = IPv4Address("255.255.255.255")
"""The limited broadcast address (RFC 919 §7). The rest of 240.0.0.0/4 is unicast to Linux, and used as such."""


class Source:
    """What a worker remembers of one address at one listener."""

    __slots__ = ("bucket", "drop_reason", "judged_by")

    def __init__(self) -> None:
        self.judged_by: object = None
        """The terms of the guard under which the two others hold."""
        self.drop_reason: DropReason | None = None
        self.bucket: Bucket | None = None


class SourceTable:
    """The sources of all UDP listeners of a worker, at most MAX_SOURCES: the oldest makes room for a new one."""

    def __init__(self) -> None:
        self._sources: dict[tuple[str, str], Source] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def find(self, listener: str, host: str) -> Source:
        """Return what is remembered of `host` at `listener`, from now on if it is new."""
        key = (listener, host)
        source = self._sources.get(key)
        if source is None:
            if len(self._sources) >= MAX_SOURCES:
                del self._sources[next(iter(self._sources))]
            source = self._sources[key] = Source()
        return source


class Guard:
    """What one listener answers."""

    def __init__(  # noqa: PLR0913, PLR0917  # a configuration, and all that it is held against
        self,
        listener: str,
        config: Udp,
        access: Access,
        own_ports: Iterable[int],
        workers: int,
        sources: SourceTable,
    ) -> None:
        self._listener = listener
        self._access = access
        self._denied_ports = _flags(config.deny_source_ports, own_ports)
        self._rate = config.rate / workers
        self._burst = (config.burst or config.rate) / workers
        self._sources = sources
        self._terms = object()  # small, since sources that never come again keep it alive

    def objection(self, host: str, port: int, now: float) -> DropReason | None:
        """Tell why a datagram from `host` and `port` is not answered, None if it is."""
        if self._denied_ports[port]:
            return DropReason.SOURCE_PORT
        source = self._sources.find(self._listener, host)
        if source.judged_by is not self._terms:
            self._judge(source, host, now)
        if source.drop_reason or not source.bucket or source.bucket.take(now):
            return source.drop_reason
        return DropReason.OVER_RATE

    def _judge(self, source: Source, host: str, now: float) -> None:
        source.judged_by = self._terms
        source.drop_reason = self._drop_reason(host)
        if not self._rate:
            source.bucket = None
        elif source.bucket:
            source.bucket.adjust(self._rate, now, self._burst)
        else:
            source.bucket = Bucket(self._rate, now, self._burst)

    def _drop_reason(self, host: str) -> DropReason | None:
        address = parse(host)
        if address is None or address.is_multicast or address.is_unspecified or address == _BROADCAST:
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
