"""A worker: one poller, one loop, its row of the scoreboard; speaks to the network and has no rights.

Rules
    It does what the channel says: configure, drain, stop, reopen, heartbeat. Signals mean nothing to it.
    Its first act is to close every descriptor that is not its own; a sibling's end of a channel would keep that sibling
    from ever seeing the supervisor's death.
    Descriptors that the channel brings must not find all taken: when they do, it gives up its own copies of the
    listening sockets, and a spare one, and has all of them sent again. Without descriptors it could let nobody in.
    It leaves by `os._exit`: what its parent registered to run at exit is not its to run.

Fails: whatever ends the loop is one `service.failed` line and exit code 1; the supervisor starts another.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, NoReturn

from echod.config.listeners import ADMIN
from echod.core.access import Networks
from echod.core.connection import RECEIVE
from echod.events import CloseReason, ServiceFailed
from echod.net import sockets
from echod.net.admin import AdminListener, AdminStream
from echod.net.datagram import Datagrams
from echod.net.listener import Listener
from echod.net.poller import POLLERS
from echod.net.reactor import Handler, Reactor
from echod.net.setting import Setting
from echod.net.stream import Stream
from echod.observe import sink
from echod.observe.gate import Gate
from echod.observe.pages import Pages
from echod.observe.scoreboard import Column
from echod.observe.tally import STALL, Tally
from echod.process import certificates, descriptors, privileges, signals
from echod.process import channel as messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from echod.config import listeners as models
    from echod.config.models import Config
    from echod.observe.log import Log
    from echod.observe.scoreboard import Row
    from echod.process.channel import WorkerChannel
    from echod.process.privileges import RunAs

LOST_TIMEOUT = 1.8
"""Seconds that a worker without a supervisor sends what it holds: it is gone two seconds after the supervisor."""

LOG_INTERVAL = 0.05
"""Seconds between attempts to write lines that the log did not take at once."""

LAST_WORDS = 0.5
"""Seconds that a leaving process gives a slow reader of its log."""


def live(channel: WorkerChannel, row: Row, log: Log, poller: str, who: RunAs | None) -> NoReturn:
    """Be a worker from the fork to the end of the process."""
    status = 1
    try:
        signals.become_worker()
        log.sink.forget()  # the supervisor's lines
        row = row.board.own(row.number)
        log.move_to(row)
        log.sink.replace(sink.open_again(log.sink.fd))
        row[Column.PID] = os.getpid()
        descriptors.close_all_but({0, 1, 2, *channel.filenos(), log.sink.fd})
        privileges.drop_to(who)
        Worker(channel, row, log, poller).run()
        status = 0
    except Exception as error:  # noqa: BLE001  # no traceback ever reaches a user
        log.emit(ServiceFailed(error=f"worker: {type(error).__name__}: {error}"))
    finally:
        log.drain(LAST_WORDS)
        os._exit(status)


class Worker(Handler):
    """The end of the channel that obeys."""

    __slots__ = (
        "_channel",
        "_leaving",
        "_listeners",
        "_log",
        "_pages",
        "_reactor",
        "_row",
        "_setting",
        "_spare",
        "_tally",
        "_unsaid",
    )

    def __init__(self, channel: WorkerChannel, row: Row, log: Log, poller: str) -> None:
        super().__init__(channel.fileno())
        self._channel = channel
        self._row = row
        self._tally = Tally(row)
        self._pages = Pages(row.board)
        self._log = log
        self._reactor = Reactor(POLLERS[poller](), log.crashed)
        self._listeners: dict[tuple[int, int], Listener | Datagrams] = {}
        self._setting: Setting | None = None
        self._leaving: CloseReason | None = None
        self._spare: int | None = os.dup(0)
        self._unsaid: deque[messages.Answer] = deque()

    def run(self) -> None:
        """Turn the loop until there is nothing left to do."""
        reactor, tally, log = self._reactor, self._tally, self._log
        reactor.add(self)
        while True:
            reactor.turn(LOG_INTERVAL if log.waiting else inf)
            if log.waiting:
                log.flush()
            if tally.ended:
                tally.post()
            took = time.monotonic() - reactor.now
            if took >= STALL:
                tally.stalled(took)
            if self._leaving and not self._row[Column.ACTIVE] and not self._has_guests():
                return

    def _has_guests(self) -> bool:
        """Tell whether somebody is to be answered first, by a worker that only retires; each has little time."""
        retires = self._leaving is CloseReason.DRAINED
        return retires and any(isinstance(handler, AdminStream) for handler in self._reactor.handlers)

    def on_readable(self, now: float) -> None:
        """Obey each message; without a supervisor, send what is held and leave."""
        while True:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self._abandoned(now)
                return
            if received.whole:
                self._obey(received, now)
            else:
                self._miss()

    def on_exceptional(self, now: float) -> None:
        """Read: the end of the channel says the same."""
        self.on_readable(now)

    def on_deadline(self, now: float) -> None:
        """Cut what the drain, or the end of the supervisor, has left."""
        self.deadline = inf
        if self._leaving:
            self._cut(self._leaving, now)

    def _obey(self, received: messages.Received, now: float) -> None:
        match received.message:
            case messages.Configure() as assignment:
                self._assign(assignment, received.descriptors, now)
            case messages.Drain(timeout):
                self._drain(timeout, now)
            case messages.Stop():
                self._leaving = CloseReason.STOPPED
                self._cut(CloseReason.STOPPED, now)
            case messages.ReopenLog(serial):
                self._log.sink.replace(received.descriptors[0])
                self._say(messages.LogReopened(serial))
            case messages.Heartbeat():
                self._say(messages.HeartbeatReply())
                self._log.tick()
                for stream in self._streams():
                    stream.account()
                # EPOLLEXCLUSIVE may have woken a sibling that is stopped: its client must not wait for its end.
                for listener in self._listeners.values():
                    self._reactor.renew(listener)

    def _assign(self, assignment: messages.Configure, received: list[int], now: float) -> None:
        config, materials = messages.from_memfd(received[0])
        try:
            contexts = certificates.contexts(config.listener, materials)
        except OSError:  # OpenSSL needs two descriptors to read them
            for fd in received[1:]:
                os.close(fd)
            self._miss()
            return
        self._log.configure(config.log)
        setting = self._settle(config)
        self._reactor.busy_poll = config.daemon.busy_poll
        setting.contexts = contexts
        named = {listener.name: listener for listener in config.doors}
        listed = {}
        for name, fd in zip(assignment.listeners, received[1:], strict=True):
            sock = sockets.Door(fd)
            listed[_identity(sock)] = (name, sock)
        udp = (sock for _, sock in listed.values() if sock.type == socket.SOCK_DGRAM)
        setting.udp_ports = frozenset(sock.getsockname()[1] for sock in udp)
        for identity in self._listeners.keys() - listed.keys():
            self._release(self._listeners.pop(identity), now)
        for identity, (name, sock) in listed.items():
            if identity in self._listeners:
                self._listeners[identity].configure(named[name])
                sock.close()
            else:
                self._listeners[identity] = self._listener(named[name], sock, setting)
                self._reactor.adopt(self._listeners[identity])
        # A worker without listeners retires: it leaves with its last connection, unless it is recalled before.
        self._row[Column.ACCEPTING] = bool(listed)
        self._leaving = None if listed else CloseReason.DRAINED
        if self._spare is None:
            with suppress(OSError):
                self._spare = os.dup(0)
        self._say(messages.Configured(assignment.generation))

    def _miss(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        self._shut_doors()  # the sockets live on in the supervisor
        self._say(messages.DescriptorsLost())

    def _listener(self, config: models.Listener, sock: socket.socket, setting: Setting) -> Listener | Datagrams:
        if config.name == ADMIN:
            return AdminListener(config, sock, self._reactor, setting, self._pages)
        kind = Datagrams if sock.type == socket.SOCK_DGRAM else Listener
        return kind(config, sock, self._reactor, setting)

    def _settle(self, config: Config) -> Setting:
        limits, workers, quiet = config.limits, config.daemon.worker_count, Networks(config.log.quiet)
        if self._setting is None:
            gate = Gate(self._row, limits.max_connections, limits.max_connections_per_address)
            buffer = memoryview(bytearray(RECEIVE))
            self._setting = Setting(
                limits,
                buffer,
                gate,
                self._log.emit,
                self._log.verbose,
                workers,
                self._tally,
                frozenset(),
                quiet,
                {},
            )
            return self._setting
        setting = self._setting
        setting.limits = limits
        setting.verbose = self._log.verbose
        setting.workers = workers
        setting.quiet = quiet
        setting.gate.limit = limits.max_connections
        setting.gate.per_address = limits.max_connections_per_address
        return setting

    def _drain(self, timeout: float, now: float) -> None:
        self._leaving = CloseReason.DRAIN_TIMEOUT
        self.deadline = now + timeout if timeout else inf
        self._row[Column.ACCEPTING] = 0
        for identity, listener in list(self._listeners.items()):
            if not isinstance(listener, AdminListener):  # which says to the end that echod is not ready
                self._release(self._listeners.pop(identity), now)
        self._say(messages.ListenersClosed())
        for stream in self._streams():
            stream.drain(now)
            self._reactor.touch(stream)

    def _abandoned(self, now: float) -> None:
        self._leaving = CloseReason.SUPERVISOR_LOST
        self.interest = 0
        self.deadline = now + LOST_TIMEOUT
        self._shut_doors()  # this first: while any process listens, the address cannot be bound again
        for stream in self._streams():
            stream.finish(CloseReason.SUPERVISOR_LOST, now)
            self._reactor.touch(stream)

    def _cut(self, reason: CloseReason, now: float) -> None:
        self._shut_doors()
        for stream in self._streams():
            stream.fail(reason, now)
            self._reactor.touch(stream)
            self._row[Column.CUT] += stream.connection.wants_reset  # who only lingered has lost nothing

    def _shut_doors(self) -> None:
        self._row[Column.ACCEPTING] = 0
        for listener in self._listeners.values():
            listener.retire()
            self._reactor.touch(listener)
        self._listeners.clear()

    def _release(self, listener: Listener | Datagrams, now: float) -> None:
        listener.release(now)
        self._reactor.touch(listener)

    def _streams(self) -> Iterable[Stream]:
        """Return the open connections of echo."""
        streams = (handler for handler in self._reactor.handlers if isinstance(handler, Stream) and not handler.done)
        return (stream for stream in streams if not isinstance(stream, AdminStream))

    def _say(self, message: messages.Answer) -> None:
        self._unsaid.append(message)
        # When memory is short, or the supervisor is stopped, it is said with the next answer to a ping.
        with suppress(OSError):
            while self._unsaid:
                self._channel.send(self._unsaid[0])
                self._unsaid.popleft()


def _identity(sock: socket.socket) -> tuple[int, int]:
    """Return what tells whether two descriptors are the same socket."""
    found = os.fstat(sock.fileno())
    return found.st_dev, found.st_ino
