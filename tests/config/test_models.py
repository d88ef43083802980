"""What the models take and hold; what they refuse stands in `tests/bad_configs.py`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from echod.config.address import Address
from echod.config.fields import RESTART
from echod.config.listeners import Listener
from echod.config.models import MOST_WORKERS, Config, Daemon, Limits, Log
from echod.events import Level

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def faults(data: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """List (path, type of error) of a configuration that must be refused."""
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(data)
    return [(fault["loc"], fault["type"]) for fault in caught.value.errors()]


def test_the_defaults_are_those_of_the_design() -> None:
    """Without a file, one listener answers on localhost:10000."""
    config = Config()

    assert (Listener(),) == config.listener
    assert ("echo", "tcp", Address("localhost", 10000, literal=False), "0660", "") == (
        config.listener[0].name,
        config.listener[0].kind,
        config.listener[0].parsed,
        config.listener[0].mode,
        config.listener[0].owner,
    )
    assert (1, "auto", "", "", "", 0.0, 0.0, 25.0) == tuple(dict(config.daemon).values())
    assert (Level.INFO, "auto", "", (), 10_000, ()) == tuple(dict(config.log).values())
    assert (10_000, 0, 600.0, 60.0, 0.0, 262_144) == tuple(dict(config.limits).values())


def test_takes_every_key() -> None:
    """What the file says arrives in the program's own types."""
    data = {
        "daemon": {
            "workers": "auto",
            "poller": "poll",
            "runtime_directory": "/run/x",
            "user": "u",
            "group": "g",
            "busy_poll": "1ms",
        },
        "log": {
            "level": "debug",
            "format": "json",
            "file": "/var/log/é",
            "suppress": ["connection.opened"],
            "quiet": ["::1"],
        },
        "limits": {"max_connections": 5, "idle_timeout": "0s", "max_lifetime": "1h", "buffer": "4KiB"},
        "listener": [
            {"name": "v6", "kind": "tcp", "address": "[fe80::1%eth0]:7"},
            {"name": "path", "kind": "unix", "address": "/run/é", "mode": "0600", "owner": "u:g"},
            {"name": "abstract", "kind": "unix", "address": "@echo"},
        ],
    }
    config = Config.model_validate(data)

    assert ("auto", "poll", "/run/x", "u", "g", 0.001, 0.0, 25.0) == tuple(dict(config.daemon).values())
    assert (Level.DEBUG, "json", "/var/log/é", ("connection.opened",), 10_000, ("::1/128",)) == tuple(
        dict(config.log).values()
    )
    assert (5, 0, 0.0, 60.0, 3600.0, 4096) == tuple(dict(config.limits).values())
    v6, path, abstract = config.listener
    assert (Address("fe80::1%eth0", 7, literal=True), 1, False) == (v6.parsed, v6.most_sockets, v6.ephemeral)
    assert ("/run/é", "0600", "u:g", None, 1, False) == (
        path.address,
        path.mode,
        path.owner,
        path.parsed,
        path.most_sockets,
        path.ephemeral,
    )
    assert ("@echo", "0660", "") == (abstract.address, abstract.mode, abstract.owner)


def test_a_config_cannot_be_changed() -> None:
    """It is shared by all who read it, so nobody writes to it; it can be a key of a dict."""
    config = Config()
    with pytest.raises(ValidationError):
        config.limits.max_connections = 5

    assert hash(Config()) == hash(config)


@pytest.mark.parametrize(
    ("workers", "usable", "expected"),
    [(3, 8, 3), ("auto", 8, 8), ("auto", 1, 1), ("auto", 1000, MOST_WORKERS)],
)
def test_auto_workers_are_one_per_usable_cpu(
    monkeypatch: pytest.MonkeyPatch, workers: object, usable: int, expected: int
) -> None:
    """The CPUs that count are those this process may run on, up to the most workers there can be."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))

    assert expected == Daemon.model_validate({"workers": workers}).worker_count


def test_a_group_without_a_user_is_refused_once() -> None:
    """A bad user is reported by itself, not as a missing one too."""
    assert [(("daemon", "group"), "rule")] == faults({"daemon": {"group": "g"}})
    assert [(("daemon", "user"), "string_type")] == faults({"daemon": {"user": 1, "group": "g"}})
    assert "" == Config.model_validate({"daemon": {"user": "u", "group": ""}}).daemon.group


def fields() -> list[tuple[str, FieldInfo]]:
    """List every key with the name of its table."""
    tables = (Daemon, Log, Limits, Listener)
    return [(f"{table.__name__}.{name}", field) for table in tables for name, field in table.model_fields.items()]


@pytest.mark.parametrize(("name", "field"), fields(), ids=[name for name, _ in fields()])
def test_every_key_is_described_in_one_line(name: str, field: FieldInfo) -> None:
    """The description is the comment in the reference file and the help in an editor."""
    description = field.description or ""

    assert description.endswith(".")
    assert description.isprintable()
    assert len(description) < 100


def test_the_keys_that_need_a_restart_are_marked() -> None:
    """The mark stands on the field and nowhere else."""
    daemon = {f"Daemon.{key}" for key in ("poller", "runtime_directory", "user", "group")}
    sockets = ("mptcp", "receive_buffer", "send_buffer", "ipv6_only", "interface", "free_bind", "mode", "owner")
    expected = daemon | {f"Listener.{key}" for key in sockets}

    assert expected == {name for name, field in fields() if field.json_schema_extra == RESTART}


def test_pydantic_itself_prints_no_values() -> None:
    """What pydantic prints itself holds nothing of the file."""
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"daemon": {"user": 123456789}})

    assert "123456789" not in str(caught.value)
