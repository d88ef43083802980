"""The control socket: how `status`, `reload`, `stop` and `reopen` reach the daemon.

    {"format": 1, "command": "reload", "wait": true}          one line from the client
    {"format": 1, "ok": true, "pid": 4711, "version": …}      one line back; "errors" and "exit_code" if not ok

A connection carries one request. The supervisor decides what it means and when it is answered; a client that hangs up
cancels nothing. The connection of `stop` with "wait" stays open until the process has ended.

Rules
    The kernel decides who connects: the socket has mode 0600. SO_PEERCRED is the second look: root, or the user that
    the supervisor runs as. Workers of a daemon started as root run as another user and have no access.
    Nothing that a client does takes much: at most 16 connections, of which a new one replaces the oldest that has not
    sent its request, and of which 12 may wait; a request has 4 KiB and 5 s, and the answer 5 s to be read.
    Unknown keys are ignored, so that commands of another version work.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from echod.errors import StartError
from echod.events import ControlRejected
from echod.net.poller import READABLE
from echod.net.reactor import Handler
from echod.process import control_connection
from echod.process.control_connection import ControlConnection, encode
from echod.process.control_endpoint import peer_credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.events import Event
    from echod.net.reactor import Reactor
    from echod.process.control_connection import Request

MAX_CONNECTIONS = 16

MAX_WAITING = 12
"""Connections whose requests wait for an answer, or for the end of the process: the others stay for `stop --now`."""

ACCEPTS_PER_TURN = 32
"""A flood of connections must not keep the supervisor from its workers."""

ACCEPT_BACKOFF = 0.1
"""Seconds between attempts to accept while descriptors or memory are used up."""


class ControlSocket(Handler):
    """Accepts control connections."""

    __slots__ = ("_connections", "_emit", "_handle", "_reactor", "socket")

    def __init__(
        self,
        listening: socket.socket,
        reactor: Reactor,
        on_request: Callable[[ControlConnection, Request], None],
        emit: Callable[[Event], None],
    ) -> None:
        """Serve `listening`, and close it at the end; `on_request` answers each request, at once or later."""
        super().__init__(listening.fileno())
        self.socket = listening
        self._reactor = reactor
        self._handle = on_request
        self._emit = emit
        self._connections: list[ControlConnection] = []

    def on_crash(self, error: Exception, now: float) -> None:
        """Go on after a pause, when the kernel has no memory to watch the socket, say."""
        self._pause(now)

    def on_readable(self, now: float) -> None:
        """Accept the clients that wait."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, _ = self.socket.accept()
            except BlockingIOError:
                return
            except OSError:
                self._pause(now)
                return
            self._admit(connection, now)

    def on_exceptional(self, now: float) -> None:
        """Accept: that tells what is wrong."""
        self.on_readable(now)

    def on_deadline(self, now: float) -> None:
        """Accept again."""
        self.interest = READABLE
        self.deadline = inf

    def close(self) -> None:
        """Close the listening socket."""
        self.socket.close()

    def move_to(self, listening: socket.socket) -> ControlSocket:
        """Return a handler for `listening`, with the connections of this one, which ends."""
        moved = ControlSocket(listening, self._reactor, self._handle, self._emit)
        moved._connections = self._connections  # of the same class
        self.retire()
        self._reactor.touch(self)
        self._reactor.adopt(moved)
        return moved

    def end(self) -> None:
        """Leave the connections to the kernel, which closes them when the process has ended: `stop` waits for that."""
        self.close()
        for connection in self._live():
            connection.detach()

    def _pause(self, now: float) -> None:
        self.interest = 0
        self.deadline = now + ACCEPT_BACKOFF

    def _admit(self, connection: socket.socket, now: float) -> None:
        pid, uid = peer_credentials(connection)
        if not _may_command(uid):
            self._reject(connection, "permission_denied", pid, uid)
            return
        if len(self._live()) >= MAX_CONNECTIONS and not self._evict(now):
            self._reject(connection, "too_many_connections", pid, uid)
            return
        deadline = now + control_connection.REQUEST_TIMEOUT
        accepted = ControlConnection(connection, self._reactor, self._on_request, self._emit, deadline)
        self._connections.append(accepted)
        self._reactor.adopt(accepted)

    def _on_request(self, connection: ControlConnection, request: Request) -> None:
        waiting = sum(other.requested and not other.peer_is_gone() for other in self._live())
        if request.waits and waiting > MAX_WAITING:
            connection.refuse(StartError("too many commands wait already; try without --wait"), self._reactor.now)
        else:
            self._handle(connection, request)

    def _reject(self, connection: socket.socket, reason: str, pid: int, uid: int) -> None:
        with connection, suppress(OSError):
            error = f"the daemon has refused the connection: {reason.replace('_', ' ')} (user {uid})"
            connection.send(encode({"ok": False, "errors": [error], "exit_code": 1}), socket.MSG_DONTWAIT)
        self._emit(ControlRejected(reason=reason, pid=pid, uid=uid))

    def _live(self) -> list[ControlConnection]:
        self._connections[:] = [connection for connection in self._connections if not connection.done]
        return self._connections

    def _evict(self, now: float) -> bool:
        """Close the oldest connection without a request, or one whose client has gone; False when there is none."""
        for connection in self._connections:
            if not connection.requested:
                connection.on_readable(now)  # many may be accepted in one turn, before any request is read
            if connection.done:
                return True
            if not connection.requested or connection.peer_is_gone():
                connection.drop("evicted")
                return True
        return False


def _may_command(uid: int) -> bool:
    """Tell whether a client of this user may give commands.

    In a user namespace the overflow uid stands for every user that is not mapped (user_namespaces(7)).
    """
    if uid not in {0, os.geteuid()}:
        return False
    return not (uid == _overflow_uid() and _in_user_namespace())


def _overflow_uid() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534


def _in_user_namespace() -> bool:
    with suppress(OSError):
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    return True
