"""The catalogue: one frozen class for each fact that echod reports.

Rule: an event's name and level belong to its class, never to the caller. A field carries the key under which it
appears in the log: OpenTelemetry's attribute names where one exists, `echod.*` for our own. No key is a dot-prefix of
another. A field that is None is left out of the record.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Any, ClassVar, Never, Self, dataclass_transform


class Level(StrEnum):
    """How loud an event is; the values are the words of `log.level`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class CloseReason(StrEnum):
    """Why a connection ended. The first reason wins."""

    PEER_CLOSED = "peer_closed"
    PEER_RESET = "peer_reset"
    IDLE_TIMEOUT = "idle_timeout"
    HALF_CLOSE_TIMEOUT = "half_close_timeout"
    MAX_LIFETIME = "max_lifetime"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    HANDSHAKE_FAILED = "handshake_failed"
    TLS_TRUNCATED = "tls_truncated"
    BAD_PROXY_HEADER = "bad_proxy_header"
    CLIENT_REFUSED = "client_refused"
    DRAINED = "drained"
    DRAIN_TIMEOUT = "drain_timeout"
    STOPPED = "stopped"
    SUPERVISOR_LOST = "supervisor_lost"
    WORKER_LOST = "worker_lost"
    READ_FAILED = "read_failed"
    WRITE_FAILED = "write_failed"
    FAULT_CLOSE = "fault_close"
    FAULT_RESET = "fault_reset"
    INTERNAL_ERROR = "internal_error"


class RefuseReason(StrEnum):
    """Why a connection was closed as soon as it was accepted."""

    OVER_LIMIT = "over_limit"
    OVER_ADDRESS_LIMIT = "over_address_limit"
    OVER_RATE = "over_rate"
    DENIED = "denied"
    UNTRUSTED_PROXY = "untrusted_proxy"


class DropReason(StrEnum):
    """Why a datagram was not answered; each is a field of `datagram.dropped`."""

    SOURCE_PORT = "source_port"
    SOURCE_ADDRESS = "source_address"
    DESTINATION = "destination"
    DENIED = "denied"
    OVER_RATE = "over_rate"
    TRUNCATED = "truncated"
    RECEIVE_FAILED = "receive_failed"
    SEND_FAILED = "send_failed"
    ON_PURPOSE = "on_purpose"
    INTERNAL_ERROR = "internal_error"
    RECEIVE_BUFFER_FULL = "receive_buffer_full"


CHECK_ALL = sys.flags.dev_mode
"""Whether `Event.of` looks for unknown fields too: under `-X dev`, as tests run the daemon."""


class Key(str):
    """The name of a field in the log."""

    __slots__ = ()


def key(name: str) -> Any:
    """Declare a field that appears in the log as `name` and is left out while it is None."""
    return Key(name)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Event:
    """A fact. Subclasses say its name, its level and its fields, none of which has to be given.

    To the type checker a dataclass, all of whose fields have a default, but not made by `dataclass`: to compile the
    methods of forty classes took a tenth of every start, and an `__init__` that makes one call for each field a tenth
    of what a connection costs.
    """

    name: ClassVar[str]
    level: ClassVar[Level] = Level.INFO
    keys: ClassVar[dict[str, str]] = {}
    """The log key of each field, in the order of declaration."""
    _fields: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = {field: str(value) for field, value in vars(cls).items() if isinstance(value, Key)}
        cls.keys = cls.keys | own
        cls._fields = frozenset(cls.keys)
        for field in own:
            setattr(cls, field, None)

    def __init__(self, **facts: Any) -> None:
        """Raise TypeError for a field that the event does not have: its record could not be written."""
        if not self._fields.issuperset(facts):
            raise self._unknown(facts)
        object.__setattr__(self, "__dict__", facts)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Self:
        """Return the event of these facts, which are its own from now on: keywords would be copied three times.

        For the records of every connection. Unknown fields raise TypeError under `-X dev` only: to look for them takes
        half as long again as all the rest.
        """
        if CHECK_ALL and not cls._fields.issuperset(facts):
            raise cls._unknown(facts)
        event = cls.__new__(cls)
        object.__setattr__(event, "__dict__", facts)
        return event

    @classmethod
    def _unknown(cls, facts: dict[str, Any]) -> TypeError:
        return TypeError(f"{cls.__name__} has no field {', '.join(sorted(facts.keys() - cls._fields))}")

    __hash__ = None  # type: ignore[assignment]  # a fact may be a list

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, field) == getattr(other, field) for field in self.keys)

    def __repr__(self) -> str:
        facts = ((field, getattr(self, field)) for field in self.keys)
        given = ", ".join(f"{field}={value!r}" for field, value in facts if value is not None)
        return f"{type(self).__name__}({given})"

    def __setattr__(self, name: str, value: Never) -> None:
        raise AttributeError(f"a fact does not change: {self!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a fact does not change: {self!r}")


# -- the service ------------------------------------------------------------------------------------------------------


class ServiceStarted(Event):
    """The supervisor holds its lock and its listening sockets."""

    name = "service.started"
    version: str | None = key("service.version")
    pid: int | None = key("process.pid")
    python: str | None = key("process.runtime.version")
    config: str | None = key("echod.config.path")
    workers: int | None = key("echod.workers")
    poller: str | None = key("echod.poller")
    directory: str | None = key("echod.runtime_directory")


class ServiceReady(Event):
    """Every worker has answered: the next connect works."""

    name = "service.ready"
    duration: float | None = key("echod.start.duration")


class ServiceStopping(Event):
    """A stop was asked for; connections are drained."""

    name = "service.stopping"
    signal: str | None = key("echod.signal")
    active: int | None = key("echod.connections.active")
    at_once: bool | None = key("echod.stop.at_once")


class ServiceStopped(Event):
    """The last worker is gone."""

    name = "service.stopped"
    duration: float | None = key("echod.stop.duration")
    cut: int | None = key("echod.connections.cut")


class ServiceFailed(Event):
    """A process cannot go on and leaves with exit code 1."""

    name = "service.failed"
    level = Level.ERROR
    error: str | None = key("error.message")


class StatusReported(Event):
    """A snapshot of the state, asked for by SIGUSR2."""

    name = "status.reported"
    state: str | None = key("echod.state")
    generation: int | None = key("echod.config.generation")
    uptime: float | None = key("echod.uptime")
    listeners: list[str] | None = key("echod.listeners.bound")
    workers: list[int] | None = key("echod.worker.pids")
    active: int | None = key("echod.connections.active")
    accepted: int | None = key("echod.connections.accepted")
    refused: int | None = key("echod.connections.refused")
    received: int | None = key("echod.io.receive")
    echoed: int | None = key("echod.io.transmit")
    datagrams: int | None = key("echod.datagrams.answered")
    reload: str | None = key("echod.reload.outcome")
    errors: list[str] | None = key("echod.config.errors")
    log_dropped: int | None = key("echod.log.dropped")


class SignalReceived(Event):
    """A signal that the supervisor acts on has arrived."""

    name = "signal.received"
    signal: str | None = key("echod.signal")


class ControlReceived(Event):
    """A command that changes the daemon has arrived at the control socket; the client's pid is 0 if it is hidden."""

    name = "control.received"
    command: str | None = key("echod.control.command")
    now: bool | None = key("echod.stop.at_once")
    pid: int | None = key("echod.control.client.pid")
    uid: int | None = key("echod.control.client.uid")


class ControlRejected(Event):
    """A client of the control socket was turned away, or sent no valid request in time."""

    name = "control.rejected"
    level = Level.WARNING
    reason: str | None = key("echod.control.reason")
    pid: int | None = key("echod.control.client.pid")
    uid: int | None = key("echod.control.client.uid")


class RuntimeRestored(Event):
    """Files of the runtime directory had been removed by another program, and were made again."""

    name = "runtime.restored"
    level = Level.WARNING
    directory: str | None = key("echod.runtime_directory")
    files: list[str] | None = key("echod.restored_files")


class RuntimeLost(Event):
    """The files of the runtime directory cannot be made again: commands do not reach this daemon, which goes on."""

    name = "runtime.lost"
    level = Level.ERROR
    directory: str | None = key("echod.runtime_directory")
    error: str | None = key("error.message")


class PrivilegesDropped(Event):
    """Workers run as this user, since the daemon was started as root."""

    name = "privileges.dropped"
    user: str | None = key("echod.user")
    group: str | None = key("echod.group")


class CommandFailed(Event):
    """A command of echod could not do its work; said so where standard error is systemd's journal."""

    name = "command.failed"
    level = Level.ERROR
    error: str | None = key("error.message")


# -- configuration ----------------------------------------------------------------------------------------------------


class ConfigLoaded(Event):
    """A configuration was read and is in force. No path means the built-in defaults."""

    name = "config.loaded"
    path: str | None = key("echod.config.path")
    generation: int | None = key("echod.config.generation")


class ConfigAdjusted(Event):
    """A built-in default was made smaller, so that it fits this machine."""

    name = "config.adjusted"
    config_key: str | None = key("echod.config.key")
    configured: int | None = key("echod.config.default")
    value: int | None = key("echod.config.value")
    cause: str | None = key("echod.config.cause")


class ReloadCompleted(Event):
    """Every worker serves the new configuration."""

    name = "reload.completed"
    generation: int | None = key("echod.config.generation")
    duration: float | None = key("echod.reload.duration")
    opened: list[str] | None = key("echod.listeners.opened")
    closed: list[str] | None = key("echod.listeners.closed")
    workers: int | None = key("echod.workers")


class ReloadRefused(Event):
    """The new configuration was not taken; the old one goes on unchanged."""

    name = "reload.refused"
    level = Level.ERROR
    generation: int | None = key("echod.config.generation")
    errors: list[str] | None = key("echod.config.errors")


# -- listeners --------------------------------------------------------------------------------------------------------


class ListenerEvent(Event):
    """What the events of a listening socket have in common."""

    listener: str | None = key("echod.listener")
    address: str | None = key("server.address")
    port: int | None = key("server.port")
    transport: str | None = key("network.transport")
    network: str | None = key("network.type")
    fault: bool | None = key("echod.fault")


class ListenerOpened(ListenerEvent):
    """A listening socket is bound, or was inherited: then its address wins over the configured one."""

    name = "listener.opened"
    configured: str | None = key("echod.configured_address")


class BufferClamped(ListenerEvent):
    """A socket has a smaller buffer than configured; the kernel's limit or the socket unit says so."""

    name = "buffer.clamped"
    level = Level.WARNING
    config_key: str | None = key("echod.config.key")
    configured: int | None = key("echod.config.requested")
    value: int | None = key("echod.config.value")
    cause: str | None = key("echod.config.cause")


class MptcpDisabled(ListenerEvent):
    """A listener with mptcp = true serves TCP only: the kernel has no Multipath TCP, or the socket unit passed TCP."""

    name = "mptcp.disabled"
    level = Level.WARNING


class CertificateLoaded(Event):
    """A listener speaks TLS with these certificates from now on."""

    name = "certificate.loaded"
    listener: str | None = key("echod.listener")
    not_before: str | None = key("tls.server.not_before")
    not_after: str | None = key("tls.server.not_after")


class CertificateDistrusted(CertificateLoaded):
    """A listener's certificates are not valid at this time, expired or not yet begun: clients will turn away."""

    name = "certificate.distrusted"
    level = Level.WARNING


class ListenerClosed(ListenerEvent):
    """A listening socket is closed."""

    name = "listener.closed"


class ListenerDegraded(ListenerEvent):
    """No client reaches a socket any more: its interface or path was removed or replaced. A reload binds it anew."""

    name = "listener.degraded"
    level = Level.WARNING
    degradation: str | None = key("echod.degradation")


class ListenerRestored(ListenerEvent):
    """A listening socket had been shut down, which only a compromised worker does. It listens again."""

    name = "listener.restored"
    level = Level.WARNING


class ListenerFailed(ListenerEvent):
    """A listening socket was shut down and cannot listen again. It is tried once a second, without another record."""

    name = "listener.failed"
    level = Level.ERROR
    error: str | None = key("error.type")


class ListenerSkipped(ListenerEvent):
    """A name resolves to an address that this machine does not have; its others are bound."""

    name = "listener.skipped"
    error: str | None = key("error.type")


class ListenerPaused(ListenerEvent):
    """Accepting fails for want of descriptors or memory; it is tried again ten times a second."""

    name = "listener.paused"
    level = Level.WARNING
    error: str | None = key("error.type")


class ListenerResumed(ListenerEvent):
    """Everything that had queued up meanwhile is accepted."""

    name = "listener.resumed"
    duration: float | None = key("echod.pause.duration")


class FaultsEnabled(ListenerEvent):
    """What passes here is harmed on purpose, as `[listener.faults]` asks; every record of it says `echod.fault`."""

    name = "faults.enabled"
    level = Level.WARNING
    faults: list[str] | None = key("echod.faults")


# -- workers ----------------------------------------------------------------------------------------------------------


class WorkerStarted(Event):
    """A worker was forked."""

    name = "worker.started"
    slot: int | None = key("echod.worker.slot")
    pid: int | None = key("echod.worker.pid")


class WorkerExited(Event):
    """A worker has left as it was asked to."""

    name = "worker.exited"
    slot: int | None = key("echod.worker.slot")
    pid: int | None = key("echod.worker.pid")


class WorkerDied(Event):
    """A worker ended although nobody asked it to; its connections are lost, these bytes of theirs were counted."""

    name = "worker.died"
    level = Level.ERROR
    slot: int | None = key("echod.worker.slot")
    pid: int | None = key("echod.worker.pid")
    status: int | None = key("echod.worker.exit_code")
    signal: str | None = key("echod.signal")
    silent: bool | None = key("echod.worker.silent")
    violation: str | None = key("echod.worker.violation")
    lost: int | None = key("echod.connections.lost")
    received: int | None = key("echod.io.receive")
    echoed: int | None = key("echod.io.transmit")


class WorkerRefused(Event):
    """The system did not let a worker start, for want of processes, descriptors or memory; it is tried again."""

    name = "worker.refused"
    level = Level.ERROR
    slot: int | None = key("echod.worker.slot")
    error: str | None = key("error.type")


class WorkerThrottled(Event):
    """A slot's workers keep dying: the next one waits."""

    name = "worker.throttled"
    level = Level.WARNING
    delay: float | None = key("echod.worker.delay")
    workers: int | None = key("echod.workers")


# -- connections ------------------------------------------------------------------------------------------------------


class ConnectionEvent(Event):
    """What the events of a connection have in common."""

    id: int | None = key("echod.connection.id")
    listener: str | None = key("echod.listener")
    client_address: str | None = key("client.address")
    client_port: int | None = key("client.port")
    server_address: str | None = key("server.address")
    server_port: int | None = key("server.port")
    transport: str | None = key("network.transport")
    network: str | None = key("network.type")
    peer_address: str | None = key("network.peer.address")
    peer_port: int | None = key("network.peer.port")
    fault: bool | None = key("echod.fault")


class ConnectionOpened(ConnectionEvent):
    """A connection was accepted."""

    name = "connection.opened"


class ConnectionClosed(ConnectionEvent):
    """A connection has ended: the canonical record, one for each that was opened."""

    name = "connection.closed"
    reason: CloseReason | None = key("echod.close.reason")
    duration: float | None = key("echod.connection.duration")
    received: int | None = key("echod.io.receive")
    echoed: int | None = key("echod.io.transmit")
    discarded: int | None = key("echod.io.discarded")
    error: str | None = key("error.type")
    rtt: float | None = key("echod.tcp.rtt")
    rttvar: float | None = key("echod.tcp.rttvar")
    min_rtt: float | None = key("echod.tcp.min_rtt")
    retransmits: int | None = key("echod.tcp.retransmits")
    mss: int | None = key("echod.tcp.mss")
    path_mtu: int | None = key("echod.tcp.path_mtu")
    delivery_rate: int | None = key("echod.tcp.delivery_rate")
    mptcp: bool | None = key("echod.tcp.mptcp")
    proxy_version: int | None = key("echod.proxy.version")
    proxy_authority: str | None = key("echod.proxy.authority")
    proxy_alpn: str | None = key("echod.proxy.alpn")
    proxy_unique_id: str | None = key("echod.proxy.unique_id")
    proxy_tls_version: str | None = key("echod.proxy.tls.version")
    proxy_tls_cipher: str | None = key("echod.proxy.tls.cipher")
    proxy_tls_name: str | None = key("echod.proxy.tls.common_name")
    proxy_tls_verified: bool | None = key("echod.proxy.tls.verified")
    tls_server_name: str | None = key("tls.client.server_name")
    tls_version: str | None = key("tls.protocol.version")
    tls_cipher: str | None = key("tls.cipher")
    tls_alpn: str | None = key("tls.next_protocol")
    tls_resumed: bool | None = key("tls.resumed")
    tls_client_subject: str | None = key("tls.client.subject")
    tls_client_sha256: str | None = key("tls.client.hash.sha256")


class ConnectionRefused(ConnectionEvent):
    """A connection was accepted and closed at once."""

    name = "connection.refused"
    reason: RefuseReason | None = key("echod.refuse.reason")


class ConnectionReceived(Event):
    """Bytes came in."""

    name = "connection.received"
    level = Level.DEBUG
    id: int | None = key("echod.connection.id")
    fault: bool | None = key("echod.fault")
    count: int | None = key("echod.io.count")


class ConnectionSent(Event):
    """The kernel took bytes to send."""

    name = "connection.sent"
    level = Level.DEBUG
    id: int | None = key("echod.connection.id")
    fault: bool | None = key("echod.fault")
    count: int | None = key("echod.io.count")


class ConnectionExceptional(Event):
    """The third list spoke: urgent data, or an error pending on the socket."""

    name = "connection.exceptional"
    level = Level.DEBUG
    id: int | None = key("echod.connection.id")
    fault: bool | None = key("echod.fault")
    error: str | None = key("error.type")


# -- datagrams --------------------------------------------------------------------------------------------------------


class DatagramDropped(ListenerEvent):
    """Datagrams of the last second were not answered; how many, by reason."""

    name = "datagram.dropped"
    source_port: int | None = key("echod.dropped.source_port")
    source_address: int | None = key("echod.dropped.source_address")
    destination: int | None = key("echod.dropped.destination")
    denied: int | None = key("echod.dropped.denied")
    over_rate: int | None = key("echod.dropped.over_rate")
    truncated: int | None = key("echod.dropped.truncated")
    receive_failed: int | None = key("echod.dropped.receive_failed")
    send_failed: int | None = key("echod.dropped.send_failed")
    on_purpose: int | None = key("echod.dropped.on_purpose")
    internal_error: int | None = key("echod.dropped.internal_error")
    receive_buffer_full: int | None = key("echod.dropped.receive_buffer_full")


class DatagramThrottled(ListenerEvent):
    """An address sends more than its rate, as an echo service would; said once, until a minute of peace."""

    name = "datagram.throttled"
    level = Level.WARNING
    config_key: str | None = key("echod.config.key")


# -- those who look after it ------------------------------------------------------------------------------------------


class AdminAnswered(Event):
    """A connection to the admin listener has ended; without a status, before there was anything to answer."""

    name = "admin.answered"
    level = Level.DEBUG
    client_address: str | None = key("client.address")
    client_port: int | None = key("client.port")
    method: str | None = key("http.request.method")
    path: str | None = key("url.path")
    status: int | None = key("http.response.status_code")
    error: str | None = key("error.type")


# -- the log itself, and what should never happen ---------------------------------------------------------------------


class LogReopened(Event):
    """The log file was opened anew."""

    name = "log.reopened"
    path: str | None = key("log.file.path")


class LogFailed(Event):
    """The log file could not be opened anew; the log goes on where it was."""

    name = "log.failed"
    level = Level.ERROR
    path: str | None = key("log.file.path")
    error: str | None = key("error.message")


class LogDropped(Event):
    """Lines of this process were lost, since the log could not take them."""

    name = "log.dropped"
    level = Level.WARNING
    count: int | None = key("echod.log.dropped")


class LogSuppressed(Event):
    """So many records of one event were not written, since there were more than `log.cap`."""

    name = "log.suppressed"
    level = Level.WARNING
    event: str | None = key("echod.log.event")
    count: int | None = key("echod.log.suppressed")


class HandlerCrashed(Event):
    """A defect of echod: one connection or listener pays for it, the process goes on."""

    name = "handler.crashed"
    level = Level.ERROR
    handler: str | None = key("echod.handler")
    error: str | None = key("error.type")
    message: str | None = key("exception.message")
    stacktrace: str | None = key("exception.stacktrace")


def catalogue() -> list[type[Event]]:
    """Every event that has a name, by name."""
    found: list[type[Event]] = []
    pending = Event.__subclasses__()
    while pending:
        event = pending.pop()
        pending += event.__subclasses__()
        if hasattr(event, "name"):
            found.append(event)
    return sorted(found, key=lambda event: event.name)
