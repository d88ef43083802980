"""The listening sockets: bound, kept and closed by the supervisor alone.

Rule: opening is a transaction: either everything that was asked for is bound, or nothing new is.

Fails: StartError from `open` says which address and why.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from echod.errors import StartError
from echod.events import ListenerClosed, ListenerOpened, ListenerSkipped
from echod.net import sockets
from echod.process.channel import MOST_DESCRIPTORS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from echod.config.models import Listener
    from echod.events import Event

Identity = tuple[str, str, str]


class Doors:
    """The sockets of each listener, by the listener's identity."""

    def __init__(self) -> None:
        self._sockets: dict[Identity, list[socket.socket]] = {}
        self._skipped: dict[Identity, list[sockets.Skipped]] = {}

    def open(self, listeners: Iterable[Listener]) -> None:
        """Bind `listeners`; on failure close what this call has bound."""
        opened: dict[Identity, list[socket.socket]] = {}
        skipped: dict[Identity, list[sockets.Skipped]] = {}
        with ExitStack() as undo:
            for listener in listeners:
                opened[listener.identity], skipped[listener.identity] = sockets.bind(listener)
                for sock in opened[listener.identity]:
                    undo.enter_context(sock)
            count = sum(map(len, [*self._sockets.values(), *opened.values()]))
            if count >= MOST_DESCRIPTORS:
                raise StartError(f"the listeners need {count} sockets, and {MOST_DESCRIPTORS - 1} is the most")
            undo.pop_all()
        self._sockets |= opened
        self._skipped |= skipped

    def close(self, listeners: Iterable[Listener]) -> None:
        """Close the sockets of `listeners`."""
        for listener in listeners:
            self._skipped.pop(listener.identity, None)
            for sock in self._sockets.pop(listener.identity, []):
                sock.close()

    def of(self, listeners: Iterable[Listener]) -> list[tuple[str, socket.socket]]:
        """Return (name, socket) of every socket of `listeners`."""
        return [(listener.name, sock) for listener in listeners for sock in self._sockets.get(listener.identity, [])]

    def filenos(self) -> list[int]:
        """Return every descriptor."""
        return [sock.fileno() for opened in self._sockets.values() for sock in opened]

    def state(self, listeners: Iterable[Listener]) -> list[dict[str, Any]]:
        """Return what the state file says of `listeners`."""
        return [
            {
                "name": listener.name,
                "kind": listener.kind,
                "address": listener.address,
                "bound": [sockets.text(sock.getsockname()) for _, sock in self.of([listener])],
            }
            for listener in listeners
        ]

    def say_opened(self, listeners: Iterable[Listener], emit: Callable[[Event], None]) -> None:
        """Emit what became of each address of `listeners`."""
        for listener in listeners:
            for _, sock in self.of([listener]):
                emit(ListenerOpened(**_facts(listener, sock.getsockname(), sock.family)))
            for skipped in self._skipped[listener.identity]:
                facts = _facts(listener, skipped.address, skipped.family)
                emit(ListenerSkipped(**facts, error=skipped.error))

    def say_closed(self, listeners: Iterable[Listener], emit: Callable[[Event], None]) -> None:
        """Emit that the sockets of `listeners` are about to be closed."""
        for listener in listeners:
            for _, sock in self.of([listener]):
                emit(ListenerClosed(**_facts(listener, sock.getsockname(), sock.family)))


def _facts(listener: Listener, address: sockets.Address, family: int) -> dict[str, Any]:
    return {
        "listener": listener.name,
        "address": address[0],
        "port": address[1],
        "transport": listener.kind,
        "network": sockets.network(family),
    }
