"""The listening sockets: bound or inherited, kept and closed by the supervisor alone.

Rules
    Opening is a transaction: either everything that was asked for is bound, or nothing new is.
    Inherited sockets are never closed before the end, since nobody could ask for them again: a configuration that does
    not use them is refused before it comes here.

Fails: StartError or ConfigError from `open` says which listener and why.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from echod.config import plan
from echod.errors import StartError
from echod.events import FaultsEnabled, ListenerClosed, ListenerOpened, ListenerSkipped
from echod.net import sockets
from echod.net.caller import Origin
from echod.process.channel import MOST_DESCRIPTORS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from echod.config.listeners import Listener
    from echod.config.plan import Identity
    from echod.events import Event
    from echod.net.sockets import BindTarget


class Doors:
    """The sockets of each listener, by the listener's identity."""

    def __init__(self, inherited: Mapping[str, list[socket.socket]]) -> None:
        """Take over the sockets that were passed to this process, by name; a listener of that name uses them."""
        self._inherited = inherited
        self._sockets: dict[Identity, list[socket.socket]] = {}
        self._skipped: dict[Identity, list[sockets.Skipped]] = {}

    def open(
        self, listeners: Iterable[Listener], targets: Mapping[str, BindTarget], keep: Iterable[Listener] = ()
    ) -> None:
        """Bind `listeners`, all that have no inherited sockets; on failure close what this call has bound.

        `targets` holds what the names of each of them stand for, by the listener's name. With those of the listeners
        to `keep`, all sockets must fit into one message to a worker.
        """
        opened: dict[Identity, list[socket.socket]] = {}
        skipped: dict[Identity, list[sockets.Skipped]] = {}
        with ExitStack() as undo:
            for listener in listeners:
                same = self._identity(listener)
                if listener.name in self._inherited:
                    opened[same] = sockets.adopt(listener, self._inherited[listener.name])
                else:
                    opened[same], skipped[same] = sockets.bind(listener, targets[listener.name])
                for sock in opened[same]:
                    undo.enter_context(sock)
            count = len(self.of(keep)) + sum(map(len, opened.values()))
            if count >= MOST_DESCRIPTORS:
                raise StartError(f"the listeners need {count} sockets, and {MOST_DESCRIPTORS - 1} is the most")
            undo.pop_all()
        self._sockets |= opened
        self._skipped |= skipped

    def adjust(self, listeners: Iterable[Listener]) -> None:
        """Let the sockets of `listeners`, which are open, have the options that they now have."""
        for listener in listeners:
            for _, sock in self.of([listener]):
                sockets.tune(sock, listener)
                if listener.kind != "udp" and listener.name not in self._inherited:
                    sock.listen(listener.backlog)

    def close(self, listeners: Iterable[Listener]) -> None:
        """Close the sockets of `listeners`."""
        for listener in listeners:
            same = self._identity(listener)
            self._skipped.pop(same, None)
            for sock in self._sockets.pop(same, []):
                sock.close()

    def close_all(self) -> None:
        """Close whatever is left, at the end of the process."""
        for opened in self._sockets.values():
            for sock in opened:
                sock.close()

    def of(self, listeners: Iterable[Listener]) -> list[tuple[str, socket.socket]]:
        """Return (name, socket) of every socket of `listeners`."""
        return [
            (listener.name, sock) for listener in listeners for sock in self._sockets.get(self._identity(listener), [])
        ]

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
                "inherited": listener.name in self._inherited,
                "bound": [sockets.text(sock.getsockname()) for _, sock in self.of([listener])],
            }
            for listener in listeners
        ]

    def say_opened(self, listeners: Iterable[Listener], emit: Callable[[Event], None]) -> None:
        """Emit what became of each address of `listeners`."""
        for listener in listeners:
            configured = listener.address if listener.name in self._inherited else None
            for _, sock in self.of([listener]):
                emit(ListenerOpened(**Origin.of(listener, sock).facts(), configured=configured))
            for skipped in self._skipped.get(self._identity(listener), []):
                address, port = sockets.place(skipped.address)
                where = Origin(listener.name, address, port, sockets.network(skipped.family), listener.kind)
                emit(ListenerSkipped(**where.facts(), error=skipped.error))
        self.say_faults(listeners, emit)

    def say_faults(self, listeners: Iterable[Listener], emit: Callable[[Event], None]) -> None:
        """Emit a warning for each address of `listeners` at which faults happen on purpose."""
        for listener in listeners:
            faults = [f"{key} = {json.dumps(value)}" for key, value in listener.faults.active.items()]
            for _, sock in self.of([listener]) if faults else ():
                emit(FaultsEnabled(**Origin.of(listener, sock).facts(), faults=faults))

    def say_closed(self, listeners: Iterable[Listener], emit: Callable[[Event], None]) -> None:
        """Emit that the sockets of `listeners` are about to be closed."""
        for listener in listeners:
            for _, sock in self.of([listener]):
                emit(ListenerClosed(**Origin.of(listener, sock).facts()))

    def _identity(self, listener: Listener) -> Identity:
        return plan.identity(listener, self._inherited)
