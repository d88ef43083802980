"""A listening socket: lets connections in, or turns them away, and survives having no descriptors left.

Rules
    The socket is shared by all workers and belongs to the supervisor; a worker closes only its own descriptor of it.
    Whatever fails between admission and the stream that owns the slot gives the slot back and closes the connection.

A worker that was woken accepts first and steps aside afterwards: EPOLLEXCLUSIVE wakes one, and if that one turned away
instead, the client would wait although others idle.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from socket import SO_OOBINLINE, SOL_SOCKET
from typing import TYPE_CHECKING

from echod.core.access import Access, Networks, address_key, unmap
from echod.core.admission import Bucket
from echod.core.connection import Connection
from echod.core.injection import FaultyConnection, dice
from echod.events import CloseReason, ConnectionRefused, ListenerPaused, ListenerResumed, RefuseReason
from echod.net import sockets
from echod.net.caller import Caller, Origin
from echod.net.poller import READABLE
from echod.net.proxied import ProxiedStream, Terms
from echod.net.reactor import Handler, Reactor
from echod.net.secured import SecuredStream
from echod.net.stream import QuietStream, Stream
from echod.net.tcp import IPPROTO_MPTCP

if TYPE_CHECKING:
    import socket

    from echod.config import listeners as models
    from echod.net.setting import Setting
    from echod.net.sockets import Address

ACCEPTS_PER_TURN = 16
"""A flood of connects must not keep the loop from those who are in; HAProxy's tune.maxaccept is 4, Redis takes 10."""

STEP_ASIDE = 0.02
"""Seconds that a worker with too many connections leaves the next ones to its siblings."""

PAUSE = 0.1
"""Seconds between attempts while descriptors or memory are used up; HAProxy and sshd wait as long."""


class Listener(Handler):
    """One worker's share of a listening socket."""

    __slots__ = (
        "_access",
        "_backlog",
        "_bucket",
        "_context",
        "_faults",
        "_is_mptcp",
        "_paused_at",
        "_proxied",
        "_proxies",
        "_reactor",
        "_setting",
        "_terms",
        "origin",
        "socket",
    )

    shared = True

    def __init__(self, config: models.Listener, sock: socket.socket, reactor: Reactor, setting: Setting) -> None:
        super().__init__(sock.fileno())
        self.socket = sock
        self._reactor = reactor
        self._setting = setting
        self._paused_at: float | None = None
        self._is_mptcp = sock.proto == IPPROTO_MPTCP
        self._bucket: Bucket | None = None
        self.configure(config)

    def configure(self, config: models.Listener) -> None:
        """Use this configuration from now on; open connections keep what they came in under."""
        self.origin = Origin.of(config, self.socket)
        self._faults = config.faults if config.faults.active else None
        self._backlog = config.backlog
        access = Access(config.allow, config.deny)
        self._access = access or None
        self._proxied = config.proxy_protocol.enabled
        self._proxies = Networks(config.proxy_protocol.trusted)
        self._context = self._setting.contexts.get(config.name)
        self._terms = Terms(
            access,
            self._proxied * config.proxy_protocol.timeout,
            config.tls.enabled * config.tls.timeout,
            frozenset(name.encode() for name in config.tls.alpn),
        )
        share = config.accept_rate / self._setting.workers
        if self._bucket and share:
            self._bucket.adjust(share, self._reactor.now)
        else:
            self._bucket = Bucket(share, self._reactor.now) if share else None

    def on_readable(self, now: float) -> None:
        """Accept some of those who wait, then see whether siblings should take the next ones."""
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accept(now):
                break
        if self.interest and self._setting.gate.crowded():
            self._rest(now + STEP_ASIDE)
        elif self.interest and self._paused_at is not None:
            self.deadline = now + PAUSE  # perhaps that was the last one: ask, since the socket will not tell

    def on_exceptional(self, now: float) -> None:
        """Try to accept: if something is wrong with the socket, accept says what."""
        self.on_readable(now)

    def on_deadline(self, now: float) -> None:
        """Watch the socket again, and after a pause see at once whether it is over."""
        self.interest = READABLE
        self.deadline = inf
        if self._paused_at is not None:
            self.on_readable(now)

    def on_crash(self, error: Exception, now: float) -> None:
        """Go on after a pause: one connection may be lost to a defect, or memory be short; the door stays."""
        if isinstance(error, OSError):
            self._pause(error, now)
        else:
            self._rest(now + PAUSE)

    def release(self, now: float) -> None:
        """Accept all who wait already, and be done."""
        try:
            for _ in range(self._backlog + 1):  # as many as can wait, not as many as keep coming
                if not self._accept(now):
                    break
        finally:
            self.retire()

    def close(self) -> None:
        """Close this worker's descriptor; the supervisor's keeps the socket alive."""
        self.socket.close()

    def _accept(self, now: float) -> bool:
        """Accept one connection; False when no other can be accepted now."""
        try:
            sock, peer = self.socket.accept()
        except BlockingIOError:
            self._recover(now)
            return False
        except ConnectionError:
            return True  # this client has gone again (ECONNABORTED, accept(2)), the next one may be there
        except OSError as error:
            self._pause(error, now)
            return False
        try:
            self._admit(sock, peer, now)
        except Exception as error:  # noqa: BLE001  # it costs this connection; those that wait are accepted
            sockets.reset(sock)
            self._reactor.report(self, error)
        return True

    def _admit(self, sock: socket.socket, peer: Address, now: float) -> None:
        sock.setblocking(False)
        if self._is_mptcp:  # a client without multipath has a plain TCP socket, and may send urgent data
            with suppress(OSError):
                sock.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
        setting, host = self._setting, _host(peer)
        key = address_key(host) if setting.gate.per_address and host and not self._proxied else 0
        number = self._objection(host, now) or setting.gate.admit(key)
        if isinstance(number, RefuseReason):
            self._refuse(sock, peer, number)
            return
        try:
            stream = self._stream(sock, Caller.of(number, self.origin, peer, key), host, now)
        except Exception:
            self._give_back(key, now)
            raise
        try:
            self._reactor.add(stream)
        except Exception as error:
            stream.on_crash(error, now)
            stream.close()
            if not isinstance(error, OSError):  # which says that the kernel has no memory to watch one more
                raise

    def _give_back(self, key: int, now: float) -> None:
        """Count an admitted connection as closed that no stream has become the owner of."""
        self._setting.gate.leave(key)
        connection = Connection(self._setting.limits, now)
        connection.fail(CloseReason.INTERNAL_ERROR, now)
        self._setting.tally.closed(connection)

    def _stream(self, sock: socket.socket, caller: Caller, host: str, now: float) -> Stream:
        setting = self._setting
        connection = self._connection(caller.id, now)
        if self._context:
            return SecuredStream(sock, caller, setting, connection, self._terms, self._context)
        if self._proxied:
            return ProxiedStream(sock, caller, setting, connection, self._terms)
        kind = QuietStream if host in setting.quiet else Stream
        return kind(sock, caller, setting, connection)

    def _connection(self, number: int, now: float) -> Connection:
        limits, timeout, faults = self._setting.limits, self._terms.timeout, self._faults
        if faults:
            return FaultyConnection(limits, now, timeout, faults, dice(faults, number))
        return Connection(limits, now, timeout)

    def _objection(self, host: str, now: float) -> RefuseReason | None:
        if self._proxied:
            if host and host not in self._proxies:
                return RefuseReason.UNTRUSTED_PROXY
        elif self._access is not None and not self._access.admits(host):
            return RefuseReason.DENIED
        if self._bucket and not self._bucket.take(now):
            return RefuseReason.OVER_RATE
        return None

    def _refuse(self, sock: socket.socket, peer: Address, reason: RefuseReason) -> None:
        # No lingering here: under a flood that would let the refused ones use up what the limit protects.
        sock.close()
        caller = Caller.of(self._setting.gate.refuse(reason), self.origin, peer)
        self._setting.emit(ConnectionRefused(**caller.facts(), reason=reason))

    def _pause(self, error: OSError, now: float) -> None:
        # Whatever accept says, the socket stays: asking ten times a second is no spin, and most errors pass.
        if self._paused_at is None:
            self._paused_at = now
            self._setting.emit(ListenerPaused(**self.origin.facts(), error=sockets.error_name(error)))
        self._rest(now + PAUSE)

    def _recover(self, now: float) -> None:
        if self._paused_at is not None:
            self._setting.emit(ListenerResumed(**self.origin.facts(), duration=round(now - self._paused_at, 3)))
            self._paused_at = None

    def _rest(self, until: float) -> None:
        self.interest = 0
        self.deadline = until


def _host(peer: Address) -> str:
    """Return the address of a TCP peer, an IPv4 one as such; "" for a Unix one."""
    return unmap(peer[0]) if isinstance(peer, tuple) else ""
