"""The same record in the words of the Elastic Common Schema, for stores whose index templates know those.

Rule: a record says here what it says as `json`, no more and no less, with the fields that the schema wants of every
document; its names are ECS's where it has one. `event` is an object there, so none of ours may be called so.
"""

from __future__ import annotations

import os
from typing import Any

import echod

VERSION = "9.0.0"
"""The release of the schema (https://www.elastic.co/docs/reference/ecs); later ones only add to it."""

NAMES = {
    "timestamp": "@timestamp",
    "level": "log.level",
    "event": "event.action",
    "echod.close.reason": "event.reason",
    "echod.refuse.reason": "event.reason",
    "echod.connection.duration": "event.duration",
    "echod.io.receive": "client.bytes",
    "echod.io.transmit": "server.bytes",
    "network.peer.address": "source.address",
    "network.peer.port": "source.port",
    "tls.protocol.version": "tls.version",
    "exception.message": "error.message",
    "exception.stacktrace": "error.stack_trace",
}
"""What is called otherwise there. All other names are ECS's too, or, as those of `echod.*`, nobody's."""

_NANOSECONDS = 1_000_000_000

_CATEGORIES = {
    "connection": "network",
    "datagram": "network",
    "listener": "network",
    "config": "configuration",
    "reload": "configuration",
}
"""By the subject of an event; all others are what a process does."""


def document(record: dict[str, Any]) -> dict[str, Any]:
    """Return `record` as a document of the schema, flat as before."""
    event = record["event"]
    found = {NAMES.get(key, key): value for key, value in record.items()}
    if "event.duration" in found:
        found["event.duration"] = round(found["event.duration"] * _NANOSECONDS)
    if "client.address" in found and "network.type" in found:
        found["client.ip"] = found["client.address"].partition("%")[0]  # a zone is none of an address's, there
    return found | {
        "message": event,
        "event.kind": "event",
        "event.category": [_CATEGORIES.get(event.partition(".")[0], "process")],
        "event.dataset": "echod",
        "service.name": "echod",
        "service.version": echod.__version__,
        "process.pid": os.getpid(),
        "ecs.version": VERSION,
    }
