"""A control socket that serves a test, and what its clients get."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from echod.process.control import ControlSocket
from echod.process.control_connection import ControlConnection, Request

if TYPE_CHECKING:
    from pathlib import Path

    from echod.net.reactor import Reactor
    from tests.process.conftest import Recorder


class Server:
    """A control socket in a reactor, and the requests that came in; `status` is answered at once."""

    def __init__(self, path: Path, reactor: Reactor, recorder: Recorder) -> None:
        self.path = path
        self.reactor = reactor
        self.requests: list[tuple[ControlConnection, Request]] = []
        self.control = ControlSocket(self.listen(), reactor, self._on_request, recorder.emit)
        reactor.add(self.control)

    def listen(self) -> socket.socket:
        """Return a new listening socket at the path."""
        self.path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(self.path))
        listening.listen(64)
        listening.setblocking(False)
        return listening

    def client(self, data: bytes = b"") -> socket.socket:
        """Return a client that has sent `data`, which is waited for no longer than a second."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self.path))
        client.settimeout(1)
        client.sendall(data)
        return client

    def received(self) -> int:
        """Return how many requests came in."""
        return len(self.requests)

    def _on_request(self, client: ControlConnection, request: Request) -> None:
        self.requests.append((client, request))
        if request.command == "status":
            client.answer(self.reactor.now, status={"state": "ready"})


def answer(client: socket.socket) -> dict[str, Any]:
    """Return the line that a client gets, and hold that the connection ends after it."""
    with client, client.makefile("rb") as lines:
        line, *rest = lines.readlines()
        assert [] == rest
    found: dict[str, Any] = json.loads(line)
    return found


def open_count(reactor: Reactor) -> int:
    """Return how many control connections are open."""
    return sum(isinstance(handler, ControlConnection) for handler in reactor.handlers)
