"""What can be wrong with a listening socket that was bound well: it is deaf, and only a look at it tells.

Rule: nothing here keeps state; the caller owns the socket.

Fails: OSError from `listen_again` when the socket cannot listen.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING

from echod.net.unix import PathSocket

if TYPE_CHECKING:
    from echod.config.listeners import Listener
    from echod.net.sockets import Address

_SO_BINDTOIFINDEX = 62  # socket(7), Linux 5.0; the socket module does not name it


class Degradation(StrEnum):
    """Why no client reaches a socket that is bound."""

    INTERFACE_CHANGED = "interface_changed"
    INTERFACE_MISSING = "interface_missing"
    PATH_REMOVED = "path_removed"
    SHUT_DOWN = "shut_down"

    @property
    def needs_new_socket(self) -> bool:
        """Whether a socket that is bound now would be reached."""
        return self is not Degradation.INTERFACE_MISSING


def degradation(listener: Listener, sock: socket.socket) -> Degradation | None:
    """Return why no client reaches `sock`, a socket that was bound for `listener`; None when nothing is wrong.

    A socket is bound to the index of an interface: one that is made again under its old name has another.
    """
    if isinstance(sock, PathSocket) and not sock.is_in_place():
        return Degradation.PATH_REMOVED
    if isinstance(sock, PathSocket) and not is_listening(sock):
        return Degradation.SHUT_DOWN
    name, index = _interface(listener, sock)
    if not index:
        return None
    try:
        return None if socket.if_nametoindex(name) == index else Degradation.INTERFACE_CHANGED
    except OSError:
        return Degradation.INTERFACE_MISSING


def _interface(listener: Listener, sock: socket.socket) -> tuple[str, int]:
    """Return the name of the interface that `sock` was bound to, and its index at that time; 0 for none."""
    if listener.interface:
        return listener.interface, sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX)
    zone = listener.parsed.host.partition("%")[2] if listener.parsed else ""
    if not zone or zone.isdigit():
        return "", 0
    return zone, sock.getsockname()[3]


def is_listening(sock: socket.socket) -> bool:
    """Tell whether a stream socket takes connections; true for others."""
    if sock.type != socket.SOCK_STREAM:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)  # what a Unix socket shows that was shut down: it counts as listening
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) and not poll.poll(0)


def listen_again(sock: socket.socket, address: Address, backlog: int) -> None:
    """Make a socket that was bound to `address` and shut down listen again."""
    if sock.family == socket.AF_UNIX:  # which is bound for ever, and only seems to listen
        raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
    try:
        sock.bind(address)  # a port that the kernel had chosen is lost, though getsockname(2) still says it
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EACCES}:  # it is bound still; without the right to do that, too
            raise
    sock.listen(backlog)


def close(sock: socket.socket) -> None:
    """Close a socket that workers had."""
    # A worker may have connected it, with bytes to send and SO_LINGER: the last one to close it would wait for them.
    with suppress(OSError):  # closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    sock.close()
