"""What everything that a worker has open shares: limits, buffer, and who counts for the whole daemon."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from echod.core.datagrams import SourceTable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from echod.config.models import Limits
    from echod.core.access import Networks
    from echod.core.connection import Connection
    from echod.events import DropReason, Event, RefuseReason


SMALL = 2048
"""Bytes of the largest message whose view is ready: to make one costs a tenth of a message, to keep it 200 bytes."""


class Gate(Protocol):
    """Counts connections for the whole daemon and says who may come in."""

    limit: int
    """Connections at once, over all workers."""

    per_address: int
    """The same for one address; 0 for any number."""

    def admit(self, key: int) -> int | RefuseReason:
        """Count one connection in and return its id, or why there are enough; `key` is its address's, 0 for none."""
        ...

    def refuse(self, reason: RefuseReason) -> int:
        """Count one connection that was turned away and return an id for it."""
        ...

    def crowded(self) -> bool:
        """Tell whether this worker has many more connections than its siblings."""
        ...

    def enter(self, key: int) -> bool:
        """Count an address in that became known later; False when it has enough connections."""
        ...

    def leave(self, key: int) -> None:
        """Count one connection out, with the key that it came in with."""
        ...


class Tally(Protocol):
    """Counts what goes on, for the whole daemon."""

    def moved(self, received: int, echoed: int) -> None:
        """Count bytes that a connection has taken and given since it last said so."""
        ...

    def closed(self, connection: Connection) -> None:
        """Count one that has ended."""
        ...

    def echoed(self, count: int) -> None:
        """Count one that was sent back, of `count` bytes."""
        ...

    def dropped(self, reason: DropReason) -> None:
        """Count one that was not."""
        ...


@dataclass
class Setting:
    """What all connections of a worker share. A reload replaces the values; an open connection keeps its limits."""

    limits: Limits
    buffer: memoryview
    """What every connection of the worker receives into; RECEIVE bytes."""
    gate: Gate
    emit: Callable[[Event], None]
    verbose: bool
    """Whether events of level debug are wanted."""
    workers: int
    """Workers that share what is said for all of them."""
    tally: Tally
    udp_ports: frozenset[int]
    """The ports of all UDP sockets of the daemon."""
    quiet: Networks
    """Clients whose connections are reported only if they carry a byte."""
    contexts: Mapping[str, ssl.SSLContext]
    """What the listeners that speak TLS do it with, by name."""
    sources: SourceTable = field(default_factory=SourceTable)
    """The addresses that the UDP listeners remember."""

    def __post_init__(self) -> None:
        self.views = [self.buffer[:count] for count in range(SMALL + 1)]
        """The first so many bytes of the buffer, by their number."""
