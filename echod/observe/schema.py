"""Writes echod-events(7), the manual page of the log: every event with its fields, every field with its meaning.

Rule: events, levels and fields are those of the catalogue; what a field means is said once, here, with its unit.
`make man` writes the page to man/echod-events.7.
"""

from __future__ import annotations

import inspect

import echod
from echod.config.manual import escaped
from echod.events import Event, catalogue
from echod.observe import ecs

MEANINGS = {
    "timestamp": "When: RFC 3339, in UTC, to the microsecond.",
    "level": "How loud: debug, info, warning or error. It belongs to the event.",
    "event": "What has happened: one of the names above.",
    "client.address": "Whose connection it is: an IP address, or the path of a Unix socket that has one.",
    "client.port": "The client's port.",
    "echod.close.reason": "Why the connection ended.",
    "echod.config.cause": "What the default, or the value in the file, would not have fitted.",
    "echod.config.default": "The built-in default.",
    "echod.config.errors": "Each fault, with file, line and key.",
    "echod.config.generation": "How many configurations have been in force, this one included.",
    "echod.config.key": "The key whose value is not the one in force.",
    "echod.config.requested": "The value in the file.",
    "echod.config.path": "The configuration file.",
    "echod.config.value": "The value that is in force.",
    "echod.configured_address": "The address in the file, where an inherited socket has another one.",
    "echod.connection.duration": "How long the connection lived, in seconds.",
    "echod.connection.id": "The connection's number: the same in all its records, and no other connection's.",
    "echod.connections.accepted": "Connections let in since the start.",
    "echod.connections.active": "Connections open now.",
    "echod.connections.cut": "Connections that were reset because the daemon stopped.",
    "echod.connections.lost": "Connections that ended with their worker.",
    "echod.connections.refused": "Connections turned away since the start.",
    "echod.control.client.pid": "The client's process id; 0 when it is in another pid namespace.",
    "echod.control.client.uid": "The client's user id.",
    "echod.control.command": "The command: reload, stop or reopen.",
    "echod.control.reason": (
        "Why a client of the control socket was turned away: evicted, incomplete, malformed, permission_denied, "
        "timeout, too_long or too_many_connections."
    ),
    "echod.datagrams.answered": "Datagrams answered since the start.",
    "echod.dropped.denied": "Datagrams from addresses that allow and deny keep out.",
    "echod.dropped.destination": "Datagrams to an address that nobody answers from, such as a broadcast.",
    "echod.dropped.internal_error": "Datagrams that a defect of echod has cost.",
    "echod.dropped.on_purpose": "Datagrams that a fault of the listener has dropped.",
    "echod.dropped.over_rate": "Datagrams beyond the rate of their address.",
    "echod.dropped.receive_buffer_full": "Datagrams that the kernel dropped, since the receive buffer was full.",
    "echod.dropped.receive_failed": "Times that the kernel could not receive.",
    "echod.dropped.send_failed": "Replies that the kernel did not take.",
    "echod.dropped.source_address": "Datagrams from an address that cannot be answered.",
    "echod.dropped.source_port": "Datagrams from a port where another service would answer the answer.",
    "echod.dropped.truncated": "Datagrams that were longer than can be returned.",
    "echod.degradation": (
        "Why no client reaches a socket: interface_changed, interface_missing, path_removed or shut_down."
    ),
    "echod.fault": "True where the listener harms what passes through it, on purpose.",
    "echod.faults": "How it harms.",
    "echod.group": "The group that workers run as.",
    "echod.handler": "The class in which the defect is.",
    "echod.io.count": "Bytes, of this one call.",
    "echod.io.discarded": "Bytes that came in after echod had ended the connection, and were thrown away.",
    "echod.io.receive": "Bytes that came in.",
    "echod.io.transmit": "Bytes that were sent back.",
    "echod.listener": "The name of the listener.",
    "echod.listeners.bound": "Each listener's name and the addresses that it is bound to.",
    "echod.listeners.closed": "The listeners that a reload has closed.",
    "echod.listeners.opened": "The listeners that a reload has opened.",
    "echod.log.dropped": "Lines that the log could not take.",
    "echod.log.event": "The event of which there were too many.",
    "echod.log.suppressed": "How many records of it were not written, of this process, in ten seconds.",
    "echod.pause.duration": "How long nobody was let in, in seconds.",
    "echod.poller": "How sockets are watched.",
    "echod.proxy.alpn": "The protocol that the client and the proxy have agreed on, as the proxy says.",
    "echod.proxy.authority": "The host that the client has asked the proxy for.",
    "echod.proxy.tls.cipher": "The cipher between client and proxy.",
    "echod.proxy.tls.common_name": "The name in the client's certificate, as the proxy says.",
    "echod.proxy.tls.verified": "Whether the proxy has found that certificate to be good.",
    "echod.proxy.tls.version": "The version of TLS between client and proxy.",
    "echod.proxy.unique_id": "The proxy's name for the connection.",
    "echod.proxy.version": "The version of the PROXY protocol.",
    "echod.refuse.reason": "Why the connection was turned away.",
    "echod.reload.duration": "How long the reload took, in seconds.",
    "echod.reload.outcome": "What became of the last reload: none, in_progress, ok or rejected.",
    "echod.restored_files": "The files that were made again.",
    "echod.runtime_directory": "Directory of lock, control socket and pid file.",
    "echod.signal": "The signal's name.",
    "echod.start.duration": "How long the start took, in seconds.",
    "echod.state": "What the daemon does: starting, ready, reloading or stopping.",
    "echod.stop.at_once": "Whether connections are reset rather than finished.",
    "echod.stop.duration": "How long the stop took, in seconds.",
    "echod.tcp.delivery_rate": "How fast the path took what was sent of late, in bytes a second.",
    "echod.tcp.min_rtt": "The shortest round trip of the last minutes, in seconds.",
    "echod.tcp.mptcp": "Whether the connection is one of Multipath TCP; only where its listener accepts that.",
    "echod.tcp.mss": "The largest segment that was sent, in bytes.",
    "echod.tcp.path_mtu": "The largest packet that the path takes, as far as the kernel knows, in bytes.",
    "echod.tcp.retransmits": "Segments that had to be sent again.",
    "echod.tcp.rtt": "The round trip, smoothed, in seconds.",
    "echod.tcp.rttvar": "How much round trips differ, in seconds.",
    "echod.uptime": "Seconds since the start.",
    "echod.user": "The user that workers run as.",
    "echod.worker.delay": "How long the next worker waits, in seconds.",
    "echod.worker.exit_code": "The worker's exit code.",
    "echod.worker.pid": "The worker's process.",
    "echod.worker.pids": "All workers' processes.",
    "echod.worker.silent": "Whether it was killed since it did not answer.",
    "echod.worker.violation": "Which rule it had broken when it was killed for it.",
    "echod.worker.slot": "The worker's place, which its successor takes.",
    "echod.workers": "Workers that the configuration asks for.",
    "error.message": "What went wrong, in a sentence.",
    "error.type": "What went wrong, in a word: the kernel's, such as ECONNRESET, or a short cause.",
    "exception.message": "The exception's text.",
    "exception.stacktrace": "Where it was raised.",
    "http.request.method": "What the client of the admin listener wanted to do.",
    "http.response.status_code": "What it was answered; without one, it had not asked.",
    "log.file.path": "The log file.",
    "network.peer.address": "The proxy through which the client came.",
    "network.peer.port": "The proxy's port.",
    "network.transport": "tcp, udp or unix.",
    "network.type": "ipv4 or ipv6.",
    "process.pid": "The supervisor's process.",
    "process.runtime.version": "The version of Python.",
    "server.address": "Where the listener is bound: an IP address, or the path of a Unix socket.",
    "server.port": "The listener's port.",
    "service.version": "The version of echod.",
    "tls.cipher": "The cipher.",
    "tls.client.hash.sha256": "The fingerprint of the client's certificate, SHA-256 in hexadecimal.",
    "tls.client.server_name": "The host that the client has asked for (SNI).",
    "tls.client.subject": "Whose certificate the client has.",
    "tls.next_protocol": "The protocol that was agreed on (ALPN).",
    "tls.protocol.version": "The version of TLS.",
    "tls.resumed": "Whether the client has continued an earlier session.",
    "tls.server.not_after": "Until when the certificate is good.",
    "tls.server.not_before": "Since when it is.",
    "url.path": "What it asked for.",
}
"""What each key of a record means, with its unit."""

_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "list[str]": "strings", "list[int]": "integers"}

_HEAD = rf""".\" Written by `make man` from the catalogue of events: change that.
.TH ECHOD\-EVENTS 7 "" "echod {echod.__version__}" "Miscellaneous Information Manual"
.nh
.SH NAME
echod\-events \- what the echo daemon writes into its log
.SH DESCRIPTION
Each record is one JSON object on a line of its own, at most 4096 bytes long.
Its keys are flat; where OpenTelemetry has a name it is that one, and
.I echod.*
are our own.
No key is another one up to a dot, so that stores may take dots for paths.
A field that has nothing to say is left out; what is cut ends in an ellipsis.
Bytes of the payload are never logged.
What peers supply is escaped: no text of theirs has a control character in it, nor begins a line.
.PP
With
.B log.format = \(dqecs\(dq
the names are those of the Elastic Common Schema {ecs.VERSION}, which are given below where they differ, and each record
has also
.IR message ,
.IR event.kind ,
.IR event.category ,
.IR event.dataset ,
.IR service.name ,
.IR service.version ,
.I process.pid
and
.IR ecs.version .
.SH EVENTS
"""

_TAIL = """.SH SEE ALSO
.BR echod (8),
.BR echod.toml (5)
"""


def page() -> str:
    """Return the manual page."""
    fields = {key: kind for event in catalogue() for key, kind in _kinds(event).items()}
    common = dict.fromkeys(("timestamp", "level", "event"), "string")
    return (
        _HEAD
        + "".join(map(_event, catalogue()))
        + ".SH FIELDS\n"
        + "".join(_field(key, kind) for key, kind in (common | dict(sorted(fields.items()))).items())
        + _TAIL
    )


def _kinds(event: type[Event]) -> dict[str, str]:
    """Return what kind of value each key has, by the annotations of the fields."""
    written = {field: text for base in reversed(event.__mro__) for field, text in inspect.get_annotations(base).items()}
    return {key: _TYPES.get(written[field].removesuffix(" | None"), "string") for field, key in event.keys.items()}


def _event(event: type[Event]) -> str:
    keys = ", ".join(event.keys.values()) or "none"
    text = " ".join((event.__doc__ or "").split())
    return f'.TP\n.BR {escaped(event.name)} " ({event.level})"\n{escaped(text)}\n.br\nFields: {escaped(keys)}.\n'


def _field(key: str, kind: str) -> str:
    there = ecs.NAMES.get(key)
    name = f"; ECS: {escaped(there)}" if there else ""
    return f'.TP\n.BR {escaped(key)} " ({kind}{name})"\n{escaped(MEANINGS[key])}\n'
