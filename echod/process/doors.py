"""The listening sockets: bound or inherited, kept and closed by the supervisor alone.

Rules
    Opening is a transaction: either everything that was asked for is bound, or nothing new is.
    A socket may belong to two listeners while a reload passes it on: from "0.0.0.0:7" to "*:7", say. It is closed with
    the last one.
    Inherited sockets are never closed before the end, since nobody could ask for them again: a configuration that does
    not use them is refused before it comes here.
    Workers share these sockets, and may be hostile: shutdown(2) by one of them ends the listening of all, and frees the
    port. So the supervisor looks once a second whether each socket still listens, and makes it non-blocking again.

Known limits: a UDP socket that a worker has shut down or connected is not noticed; a restart binds it anew. A Unix
socket that was shut down cannot listen again, only a new one at its path could (unix(7)): its loss is logged, and
reloads are refused until echod is restarted.

Fails: StartError or ConfigError from `open` says which listener and why.
"""

from __future__ import annotations

import errno
import json
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from echod.config import plan
from echod.errors import StartError
from echod.events import (
    BufferClamped,
    DatagramDropped,
    DropReason,
    FaultsEnabled,
    ListenerClosed,
    ListenerDegraded,
    ListenerFailed,
    ListenerOpened,
    ListenerRestored,
    ListenerSkipped,
    MptcpDisabled,
)
from echod.net import binding, socket_health, sockets, udp_options, unix
from echod.net.caller import Origin
from echod.net.socket_health import Degradation
from echod.net.tcp import IPPROTO_MPTCP
from echod.observe.scoreboard import DROPPED
from echod.process.channel import MOST_DESCRIPTORS
from echod.process.status import ListenerStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from echod.config.listeners import Listener
    from echod.config.plan import Identity
    from echod.events import Event
    from echod.net.binding import BindTarget
    from echod.net.sockets import Address
    from echod.observe.scoreboard import Row


class Doors:
    """The sockets of each listener, by the listener's identity."""

    def __init__(self, inherited: Mapping[str, list[socket.socket]]) -> None:
        """Take over the sockets that were passed to this process, by name; a listener of that name uses them."""
        self._inherited = inherited
        self._sockets: dict[Identity, list[socket.socket]] = {}
        self._skipped: dict[Identity, list[binding.Skipped]] = {}
        self._addresses: dict[socket.socket, Address] = {}
        """What each socket was bound to: one that is shut down may lose its port."""
        self._lost: set[socket.socket] = set()
        """Those that cannot listen again."""
        self._degraded: dict[socket.socket, Degradation] = {}
        """Those that no client reaches, as of the last look."""
        self._replaced: dict[Identity, tuple[Listener, list[socket.socket]]] = {}
        """Sockets in whose place `open` has bound new ones, until `close_replaced`."""
        self._drops: dict[socket.socket, int | None] = {}
        """What the kernel had dropped of each UDP socket when it was last asked."""

    def open(
        self,
        listeners: Iterable[Listener],
        targets: Mapping[str, BindTarget],
        keep: Iterable[Listener] = (),
        release: Iterable[Listener] = (),
    ) -> None:
        """Bind `listeners`, all that have no inherited sockets; on failure close what this call has bound.

        A listener that is open already gets new sockets; the old ones stay open until `close_replaced`.
        `targets` holds what the names of each of them stand for, by the listener's name. With those of the listeners
        to `keep`, all sockets must fit into one message to a worker. Each of those must listen, or be able to do so
        again. Sockets of the listeners to `release` are used again where they fit.
        """
        opened: dict[Identity, list[socket.socket]] = {}
        bound: list[tuple[str, socket.socket]] = []
        skipped: dict[Identity, list[binding.Skipped]] = {}
        with ExitStack() as undo:
            for listener in listeners:
                same = self._identity(listener)
                if listener.name in self._inherited:
                    opened[same] = binding.adopt(listener, self._inherited[listener.name])
                else:
                    opened[same], skipped[same] = self._bind(
                        listener, targets[listener.name], release, (*self.of(keep), *bound)
                    )
                bound += [(listener.name, sock) for sock in opened[same]]
                for sock in opened[same]:
                    if sock not in self._addresses:
                        undo.enter_context(sock)
            count = len(self.of(keep)) + len(bound)
            if count >= MOST_DESCRIPTORS:
                raise StartError(f"the listeners need {count} sockets, and {MOST_DESCRIPTORS - 1} is the most")
            for name, sock in (*self.of(keep), *((name, sock) for name, sock in bound if sock in self._addresses)):
                self._require_listening(name, sock)
            undo.pop_all()
        self._drops = {sock: udp_options.drops(sock) for _, sock in bound if _is_udp(sock)} | self._drops
        for listener in listeners:
            if replaced := self._sockets.get(self._identity(listener)):
                self._replaced[self._identity(listener)] = (listener, replaced)
        self._sockets |= opened
        self._skipped |= skipped
        self._addresses = {sock: sock.getsockname() for _, sock in bound} | self._addresses

    def _bind(
        self,
        listener: Listener,
        target: BindTarget,
        release: Iterable[Listener],
        others: Iterable[tuple[str, socket.socket]],
    ) -> tuple[list[socket.socket], list[binding.Skipped]]:
        usable = self.of(old for old in release if plan.can_share(old, listener))
        try:
            return binding.bind(listener, target, {self._addresses[sock]: sock for _, sock in usable})
        except StartError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            for name, sock in (*self.of(release), *others):
                if binding.collides(sock, listener, target):
                    raise _own_collision(listener, name, sock) from None
            raise

    def adjust(self, listeners: Iterable[Listener]) -> None:
        """Let the sockets of `listeners`, which are open, have the options that they now have."""
        for listener in listeners:
            for _, sock in self.of([listener]):
                with suppress(OSError):  # a worker has shut it down or changed it: `check_listening` says so
                    binding.tune(sock, listener)
                    if listener.kind != "udp" and listener.name not in self._inherited:
                        sock.listen(listener.backlog)

    def stale(self, listeners: Iterable[Listener]) -> list[Listener]:
        """Return those of `listeners` that clients would reach again if they were bound anew."""
        return [
            listener
            for listener in listeners
            if listener.name not in self._inherited
            for found in [{socket_health.degradation(listener, sock) for _, sock in self.of([listener])}]
            if any(each and each.needs_new_socket for each in found)
        ]

    def close(self, listeners: Iterable[Listener]) -> None:
        """Close the sockets of `listeners`, and use those again that were replaced by them."""
        for listener in listeners:
            same = self._identity(listener)
            self._skipped.pop(same, None)
            ending = self._sockets.pop(same, [])
            self._close(sock for sock in ending if not self._holders(sock))
            if same in self._replaced:
                self._sockets[same] = self._replaced.pop(same)[1]

    def close_replaced(self, row: Row, emit: Callable[[Event], None]) -> None:
        """Close the sockets that `open` has replaced; no worker uses them any more."""
        for listener, opened in self._replaced.values():
            for sock in opened:
                self._count_drops(listener, sock, row, emit)
                emit(ListenerClosed(**Origin.of(listener, sock).facts()))
            self._close(opened)
        self._replaced.clear()

    def _close(self, opened: Iterable[socket.socket]) -> None:
        for sock in opened:
            self._addresses.pop(sock)
            self._lost.discard(sock)
            self._degraded.pop(sock, None)
            self._drops.pop(sock, None)
            socket_health.close(sock)

    def count_drops(self, listeners: Iterable[Listener], row: Row, emit: Callable[[Event], None]) -> None:
        """Count in `row`, and emit, the datagrams that the kernel has dropped since the last time.

        Call it once a second, which is long before the kernel's 32 bits wrap twice, and before `close`.
        """
        for listener in listeners:
            for _, sock in self.of([listener]):
                self._count_drops(listener, sock, row, emit)

    def _count_drops(self, listener: Listener, sock: socket.socket, row: Row, emit: Callable[[Event], None]) -> None:
        before, now = self._drops.get(sock), udp_options.drops(sock) if _is_udp(sock) else None
        if before is None or now is None or before == now:
            return
        self._drops[sock] = now
        count = (now - before) % 2**32
        row[DROPPED[DropReason.RECEIVE_BUFFER_FULL]] += count
        emit(DatagramDropped(**Origin.of(listener, sock).facts(), receive_buffer_full=count))

    def retire(self, listeners: Iterable[Listener], row: Row, emit: Callable[[Event], None]) -> None:
        """Count the last drops of `listeners`, emit that they are closed, and close them."""
        self.count_drops(listeners, row, emit)
        self.say_closed(listeners, emit)
        self.close(listeners)

    def close_all(self) -> None:
        """Close whatever is left, at the end of the process."""
        for opened in (*self._sockets.values(), *(old for _, old in self._replaced.values())):
            for sock in opened:
                socket_health.close(sock)

    def check_reachable(self, listeners: Iterable[Listener], emit: Callable[[Event], None]) -> None:
        """Emit once for each socket of `listeners` that no client reaches any more; a reload may bind it anew."""
        for listener in listeners:
            for _, sock in self.of([listener]) if listener.name not in self._inherited else ():
                found = socket_health.degradation(listener, sock)
                if found is None:
                    self._degraded.pop(sock, None)
                elif self._degraded.get(sock) != found:
                    self._degraded[sock] = found
                    if found is not Degradation.SHUT_DOWN:  # which `check_listening` has told
                        emit(ListenerDegraded(**Origin.of(listener, sock).facts(), degradation=found))

    def check_listening(self, listeners: Iterable[Listener], emit: Callable[[Event], None]) -> None:
        """Make each socket of `listeners` that was shut down listen again, or emit once that it cannot."""
        for listener in listeners:
            for _, sock in self.of([listener]):
                sock.setblocking(False)  # a flag that all share: one worker could make all others wait in accept(2)
                if socket_health.is_listening(sock):
                    continue
                address, port = sockets.place(self._addresses[sock])
                where = Origin(listener.name, address, port, sockets.network(sock.family), listener.kind).facts()
                try:
                    socket_health.listen_again(sock, self._addresses[sock], listener.backlog)
                except OSError as error:
                    if sock not in self._lost:
                        emit(ListenerFailed(**where, error=sockets.error_name(error)))
                    self._lost.add(sock)
                else:
                    self._lost.discard(sock)
                    emit(ListenerRestored(**where))

    def of(self, listeners: Iterable[Listener]) -> list[tuple[str, socket.socket]]:
        """Return (name, socket) of every socket of `listeners`."""
        return [
            (listener.name, sock) for listener in listeners for sock in self._sockets.get(self._identity(listener), [])
        ]

    def _holders(self, sock: socket.socket) -> list[Identity]:
        """Return the identities of the listeners that a socket belongs to."""
        return [same for same, found in self._sockets.items() if sock in found]

    def filenos(self) -> list[int]:
        """Return every descriptor."""
        return [sock.fileno() for opened in self._sockets.values() for sock in opened]

    def status(self, listeners: Iterable[Listener]) -> list[ListenerStatus]:
        """Return what `echod status` shows of `listeners`."""
        return [
            ListenerStatus(
                name=listener.name,
                transport=listener.kind,
                address=listener.address,
                inherited=listener.name in self._inherited,
                bound=[sockets.text(unix.bound_address(listener, sock)) for _, sock in self.of([listener])],
                degraded=sorted({self._degraded[sock] for _, sock in self.of([listener]) if sock in self._degraded}),
            )
            for listener in listeners
        ]

    def say_opened(self, listeners: Iterable[Listener], emit: Callable[[Event], None]) -> None:
        """Emit what became of each address of `listeners`."""
        for listener in listeners:
            configured = listener.address if listener.name in self._inherited else None
            for _, sock in self.of([listener]):
                if len(self._holders(sock)) > 1:
                    continue  # it was open before
                emit(ListenerOpened(**Origin.of(listener, sock).facts(), configured=configured))
                for event in self._clamped(listener, sock):
                    emit(event)
                if listener.mptcp and sock.proto != IPPROTO_MPTCP:
                    emit(MptcpDisabled(**Origin.of(listener, sock).facts()))
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
        """Emit that the sockets of `listeners` are about to be closed, those that no other listener has."""
        ending = {self._identity(listener): listener for listener in listeners}
        spared = {sock for same, found in self._sockets.items() if same not in ending for sock in found}
        for listener in ending.values():
            for _, sock in self.of([listener]):
                if sock not in spared:
                    spared.add(sock)  # it may belong to two of them
                    emit(ListenerClosed(**Origin.of(listener, sock).facts()))

    def _clamped(self, listener: Listener, sock: socket.socket) -> Iterator[Event]:
        """Return an event for each buffer of `sock` that is smaller than its key says."""
        inherited = listener.name in self._inherited
        keys = (("receive_buffer", "net.core.rmem_max", "Receive"), ("send_buffer", "net.core.wmem_max", "Send"))
        for (key, limit, option), value in zip(keys, sockets.buffer_sizes(sock), strict=True):
            wanted = getattr(listener, key)
            if value < wanted:
                cause = f"{option}Buffer= of the socket unit" if inherited else limit
                yield BufferClamped(
                    **Origin.of(listener, sock).facts(),
                    config_key=f"listener.{key}",
                    configured=wanted,
                    value=value,
                    cause=cause,
                )

    def _identity(self, listener: Listener) -> Identity:
        return plan.identity(listener, self._inherited)

    def _require_listening(self, name: str, sock: socket.socket) -> None:
        if socket_health.is_listening(sock):
            return
        address = self._addresses[sock]
        try:
            socket_health.listen_again(sock, address, socket.SOMAXCONN)
        except OSError as error:
            raise StartError(
                f'listener "{name}": {sockets.text(address)}: the socket was shut down and cannot listen again: '
                f"{error.strerror}; free the address or restart echod",
                errno=error.errno,
            ) from None


def _own_collision(listener: Listener, name: str, sock: socket.socket) -> StartError:
    address = sockets.text(sock.getsockname())
    return StartError(
        f'listener "{listener.name}": {listener.address}: echod itself listens on {address}, as listener "{name}"; '
        "choose another address, or take that listener out, reload, and then put this one in",
        errno=errno.EADDRINUSE,
    )


def _is_udp(sock: socket.socket) -> bool:
    return sockets.transport(sock) == "udp"
