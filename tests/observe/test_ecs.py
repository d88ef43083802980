"""The records in Elastic's words: exact documents, no clash of names, and the same facts as before."""

from __future__ import annotations

import os
from itertools import permutations
from typing import Any

import pytest

import echod
from echod.events import Event, catalogue
from echod.observe import ecs

NOW = "2026-01-02T03:04:05.678901Z"

ALWAYS = {
    "event.kind": "event",
    "event.dataset": "echod",
    "service.name": "echod",
    "service.version": echod.__version__,
    "process.pid": os.getpid(),
    "ecs.version": "9.0.0",
}


def test_a_connection() -> None:
    """Every field has its name there; durations are nanoseconds, and an address is one for range queries too."""
    found = ecs.document(
        {
            "timestamp": NOW,
            "level": "info",
            "event": "connection.closed",
            "echod.connection.id": 257,
            "client.address": "fe80::1%eth0",
            "client.port": 4711,
            "network.type": "ipv6",
            "network.peer.address": "::1",
            "network.peer.port": 5,
            "echod.close.reason": "peer_closed",
            "echod.connection.duration": 0.001143,
            "echod.io.receive": 3,
            "echod.io.transmit": 2,
            "tls.protocol.version": "1.3",
        }
    )

    assert {
        "@timestamp": NOW,
        "log.level": "info",
        "message": "connection.closed",
        "event.action": "connection.closed",
        "event.category": ["network"],
        "echod.connection.id": 257,
        "client.address": "fe80::1%eth0",
        "client.ip": "fe80::1",
        "client.port": 4711,
        "network.type": "ipv6",
        "source.address": "::1",
        "source.port": 5,
        "event.reason": "peer_closed",
        "event.duration": 1_143_000,
        "client.bytes": 3,
        "server.bytes": 2,
        "tls.version": "1.3",
    } | ALWAYS == found


@pytest.mark.parametrize(
    ("event", "category"),
    [("reload.refused", "configuration"), ("worker.died", "process"), ("datagram.dropped", "network")],
)
def test_the_category(event: str, category: str) -> None:
    """It is one of the words that the schema allows."""
    assert [category] == ecs.document({"event": event})["event.category"]


def test_the_path_of_a_unix_socket_is_no_ip() -> None:
    """A field of type ip takes nothing else, and a store refuses the whole document otherwise."""
    assert "client.ip" not in ecs.document({"event": "connection.closed", "client.address": "/run/x"})


def keys(event: type[Event]) -> list[str]:
    """Return the names that a full record of an event has."""
    return ["timestamp", "level", "event", *event.keys.values()]


def full(event: type[Event]) -> dict[str, Any]:
    """Return a document of an event that says everything it can."""
    values = {"echod.connection.duration": 0.5, "client.address": "::1"}
    return ecs.document({key: values.get(key, key) for key in keys(event)} | {"event": event.name})


def test_no_key_is_a_dot_prefix_of_another() -> None:
    """`event` and `error` are objects there: none of our names is a value where another one has a branch."""
    found = {key for event in catalogue() for key in full(event)}

    assert {"event.action", "client.bytes", "log.level"} <= found
    assert [] == [(short, long) for short, long in permutations(found, 2) if long.startswith(f"{short}.")]


@pytest.mark.parametrize("event", catalogue(), ids=lambda event: event.name)
def test_nothing_is_lost(event: type[Event]) -> None:
    """No two fields of an event fall together under one name, and none is left out."""
    renamed = [ecs.NAMES.get(key, key) for key in keys(event)]
    document = full(event)

    assert len(set(renamed)) == len(renamed)
    assert set(renamed) <= set(document)
