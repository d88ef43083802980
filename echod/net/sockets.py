"""Every call on a socket that is more than one line, with the kernel's answers turned into words.

Rule: nothing here keeps state; whoever asks owns what is returned.

Fails: OSError as the kernel gave it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
from contextlib import suppress
from typing import Any

from echod.net import unix

RESET = frozenset({errno.ECONNABORTED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE})
"""The peer has cut the connection; ENOTCONN says so to who shuts it down (shutdown(2))."""

FAMILIES = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
"""OpenTelemetry's `network.type` of each address family that has one."""

_SIOCOUTQ = termios.TIOCOUTQ  # the same number, tcp(7)

Address = tuple[Any, ...] | str | bytes
"""What the socket module calls an address: (host, port), (host, port, flow info, scope), or what Unix sockets have."""


class Door(socket.socket):
    """A socket that others come to, which remembers its family and type. It has no `dup`.

    `accept` asks for both, and each time they are made into enumerations: a twentieth of what a connection costs.
    """

    __slots__ = ("family", "type")

    family: socket.AddressFamily
    type: socket.SocketKind

    def __init__(self, fd: int) -> None:
        """Take over the descriptor `fd`."""
        super().__init__(fileno=fd)
        self.setblocking(False)  # a flag that all workers share: a hostile one may have cleared it
        self.family = super().family
        self.type = super().type


def text(address: Address) -> str:
    """Return `address` as host:port, with an IPv6 host in brackets, or the path of a Unix socket."""
    host, port = place(address)
    if port is None:
        return host or ""
    return f"[{host}]:{port}" if host and ":" in host else f"{host}:{port}"


def place(address: Address) -> tuple[str | None, int | None]:
    """Return host and port, or the path of a Unix socket, if it has one, and None.

    A link-local address has its zone, which is the name of its interface (RFC 4007 §11).
    """
    if not isinstance(address, tuple):
        return unix.text(address) or None, None
    host, port, *rest = address
    return (f"{host}%{_zone(rest[1])}" if rest and rest[1] else host), port


def _zone(index: int) -> str:
    try:
        return os.fsencode(socket.if_indextoname(index)).decode("utf-8", "backslashreplace")
    except OSError:
        return str(index)  # the interface is gone


def network(family: int) -> str | None:
    """Return OpenTelemetry's `network.type` for an address family, None for Unix sockets, which have none."""
    return FAMILIES.get(socket.AddressFamily(family))


def transport(sock: socket.socket) -> str:
    """Return OpenTelemetry's `network.transport` of a socket, which is also the kind of listener that has it."""
    if sock.family not in FAMILIES:
        return "unix"
    return "udp" if sock.type == socket.SOCK_DGRAM else "tcp"


def error_name(error: OSError) -> str:
    """Return the error's symbol, ECONNRESET say."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def pending_error(sock: socket.socket) -> OSError | None:
    """Take the error that is pending on `sock`, if any (SO_ERROR, socket(7))."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(code, os.strerror(code)) if code else None


def buffer_sizes(sock: socket.socket) -> tuple[int, int]:
    """Return the bytes of the receive and the send buffer as they were asked for: the kernel doubles (socket(7))."""
    received, sent = (sock.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_RCVBUF, socket.SO_SNDBUF))
    return received // 2, sent // 2


def in_flight(sock: socket.socket) -> bool:
    """Tell whether the kernel holds bytes of `sock`: received and unread, or sent and not acknowledged (tcp(7))."""
    return any(_queued(sock, request) for request in (termios.FIONREAD, _SIOCOUTQ))


def reset(sock: socket.socket) -> None:
    """Close `sock` by RST, so that the peer cannot take a cut stream for a whole one (SO_LINGER, socket(7))."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _queued(sock: socket.socket, request: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))
    return int(count)
