"""One client of the control socket: its request, and the answer to it.

Rule: whatever the client does, its connection takes bounded time and memory, and nothing of what it sent is logged.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import orjson

import echod
from echod.config.wording import printable
from echod.errors import UsageError
from echod.events import ControlReceived, ControlRejected
from echod.net.poller import READABLE, WRITABLE
from echod.net.reactor import Handler
from echod.process.control_endpoint import peer_credentials

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from echod.errors import EchodError
    from echod.events import Event
    from echod.net.reactor import Reactor

FORMAT = 1
"""Number of the format of requests and answers; it changes when old clients would misread a new answer."""

COMMANDS = ("status", "reload", "stop", "reopen")

MAX_REQUEST = 4096
"""Bytes."""

REQUEST_TIMEOUT = 5.0
"""Seconds for the client to send its request, and once more to read the answer."""


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    command: str
    wait: bool
    now: bool

    @property
    def waits(self) -> bool:
        """Whether the answer may come late."""
        return self.wait or self.command == "reopen"


class ControlConnection(Handler):
    """One client: its request, and the answer to it."""

    __slots__ = ("_emit", "_keep_open", "_on_request", "_reactor", "_received", "_socket", "_unsent", "requested")

    def __init__(
        self,
        connection: socket.socket,
        reactor: Reactor,
        on_request: Callable[[ControlConnection, Request], None],
        emit: Callable[[Event], None],
        deadline: float,
    ) -> None:
        super().__init__(connection.fileno(), READABLE, deadline)
        connection.setblocking(False)
        self._socket = connection
        self._reactor = reactor
        self._on_request = on_request
        self._emit = emit
        self._received = bytearray()
        self._unsent = b""
        self._keep_open = False
        self.requested = False
        """Whether a whole request has arrived."""

    def on_readable(self, now: float) -> None:
        """Receive the request and pass it on."""
        try:
            data = self._socket.recv(MAX_REQUEST + 1 - len(self._received))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if newline:
            self._take(bytes(line), now)
        elif len(self._received) > MAX_REQUEST:
            self._reject("too_long", now)
        elif not data:
            self.drop("incomplete" if self._received else None)

    def on_writable(self, now: float) -> None:
        """Send the rest of the answer."""
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.retire()
            return
        self._unsent = self._unsent[sent:]
        if self._unsent:
            self.interest = WRITABLE
            return
        self.interest = 0
        self.deadline = inf
        if not self._keep_open:
            self.retire()

    def on_exceptional(self, now: float) -> None:
        """Find the end of the connection by reading it."""
        self.on_readable(now)

    def on_deadline(self, now: float) -> None:
        """Give up a client that does not send its request or does not read its answer."""
        if now >= self.deadline:
            self.drop("timeout")

    def on_crash(self, error: Exception, now: float) -> None:
        """Close the connection; it has been logged."""
        self.retire()

    def answer(self, now: float, **fields: Any) -> None:
        """Send the answer to the request: done, with `fields`."""
        self._answer({"ok": True} | fields, now)

    def refuse(self, error: EchodError, now: float) -> None:
        """Send the answer to the request: not done, with the reason and the exit code of the command."""
        lines = [printable(line, len(line)) for line in error.lines]
        self._answer({"ok": False, "errors": lines, "exit_code": error.exit_code}, now)

    def keep_open(self) -> None:
        """Leave the connection open after the answer, until the process ends."""
        self._keep_open = True

    def drop(self, reason: str | None) -> None:
        """Close the connection without an answer, and log the reason where there is one."""
        if reason:
            self._log_rejected(reason)
        self.retire()
        self._reactor.touch(self)

    def peer_is_gone(self) -> bool:
        """Tell whether the client has closed its end for good."""
        poll = select.poll()
        poll.register(self._socket, 0)
        return any(ready & select.POLLHUP for _, ready in poll.poll(0))

    def detach(self) -> None:
        """Leave the descriptor open for the kernel to close."""
        self._socket.detach()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _take(self, line: bytes, now: float) -> None:
        request = _parse(line)
        if request is None:
            self._reject("malformed", now)
            return
        self.requested = True
        self.interest = 0  # a client that half-closes is still there; one that is gone is found by the answer
        self.deadline = inf
        if request.command != "status":
            pid, uid = peer_credentials(self._socket)
            self._emit(ControlReceived(command=request.command, now=request.now or None, pid=pid, uid=uid))
        self._on_request(self, request)

    def _reject(self, reason: str, now: float) -> None:
        self._log_rejected(reason)
        self.refuse(
            UsageError(f"request {reason}: must be one line of JSON with a command of {', '.join(COMMANDS)}"), now
        )

    def _log_rejected(self, reason: str) -> None:
        pid, uid = peer_credentials(self._socket)
        self._emit(ControlRejected(reason=reason, pid=pid, uid=uid))

    def _answer(self, fields: dict[str, Any], now: float) -> None:
        if self.done:
            return
        self._unsent = encode(fields)
        self.deadline = now + REQUEST_TIMEOUT
        self.on_writable(now)
        self._reactor.touch(self)


def encode(fields: dict[str, Any]) -> bytes:
    """Return the line of an answer."""
    about = {"format": FORMAT, "pid": os.getpid(), "version": echod.__version__}
    return orjson.dumps(about | fields, option=orjson.OPT_APPEND_NEWLINE)


def _parse(line: bytes) -> Request | None:
    """Return the request that `line` holds, None when it holds none."""
    with suppress(ValueError):
        fields = orjson.loads(line)
        if isinstance(fields, dict) and fields.get("command") in COMMANDS:
            return Request(fields["command"], fields.get("wait") is True, fields.get("now") is True)
    return None
