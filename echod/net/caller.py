"""Who talks to whom: by which door a connection came, and whose it is.

Rule: one description serves all records of a connection, and one all those of a listening socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from echod.core.access import unmap
from echod.net import sockets, unix

if TYPE_CHECKING:
    import socket

    from echod.config.listeners import Listener
    from echod.net.sockets import Address


@dataclass(frozen=True)
class Origin:
    """Which listening socket a connection came through, in the words of the log."""

    listener: str
    address: str | None
    port: int | None
    network: str | None
    transport: str
    fault: bool | None = None
    """Whether faults happen there on purpose."""

    @classmethod
    def of(cls, listener: Listener, sock: socket.socket) -> Origin:
        """Describe a listening socket of `listener`."""
        address, port = sockets.place(unix.bound_address(listener, sock))
        fault = bool(listener.faults.active) or None
        return cls(listener.name, address, port, sockets.network(sock.family), sockets.transport(sock), fault)

    def facts(self) -> dict[str, Any]:
        """Return what every record of a listening socket says about it."""
        return vars(self).copy()


@dataclass(slots=True)  # and not frozen, which would make it four times as dear to make
class Caller:
    """Whose connection it is, and by which door it came."""

    id: int
    origin: Origin
    host: str | None
    port: int | None
    key: int = 0
    """What its address is counted under; 0 for not at all."""
    via: tuple[str | None, int | None] = (None, None)
    """Host and port of the proxy that has said who it is."""

    @classmethod
    def of(cls, number: int, origin: Origin, peer: Address, key: int = 0) -> Caller:
        """Describe who is at the other end of an accepted socket."""
        host, port = sockets.place(peer)
        return cls(number, origin, host, port, key)

    @property
    def ip(self) -> str | None:
        """Its IP address, an IPv4 one as such through whatever socket it came; None for a path, whatever that says."""
        return None if self.host is None or self.port is None else unmap(self.host)

    @property
    def name(self) -> str | None:
        """What the log calls it: its IP address, or its path."""
        return self.ip or self.host

    def facts(self) -> dict[str, Any]:
        """Return what every record of a connection says about who talks to whom."""
        origin, name = self.origin, self.name
        mapped = name != self.host  # an IPv6 socket may take IPv4 too
        return {
            "id": self.id,
            "listener": origin.listener,
            "client_address": name,
            "client_port": self.port,
            "server_address": origin.address,
            "server_port": origin.port,
            "transport": origin.transport,
            "network": "ipv4" if mapped else origin.network,
            "peer_address": self.via[0],
            "peer_port": self.via[1],
            "fault": origin.fault,
        }

    def mark(self) -> dict[str, Any]:
        """Return what even the smallest record of a connection says."""
        return {"id": self.id, "fault": self.origin.fault}
