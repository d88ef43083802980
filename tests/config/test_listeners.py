"""Listeners: which can stand beside each other, and which keys are whose."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from echod.config.listeners import Listener
from echod.config.models import Config


def faults(data: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """List (path, type of error) of a configuration that must be refused."""
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(data)
    return [(fault["loc"], fault["type"]) for fault in caught.value.errors()]


def listeners(*addresses: str) -> dict[str, Any]:
    """Make a configuration of these listeners."""
    return {"listener": [{"name": f"l{n}", "address": address} for n, address in enumerate(addresses)]}


@pytest.mark.parametrize(
    "addresses",
    [
        ("0.0.0.0:7", "[::]:7"),
        ("0.0.0.0:7", "127.0.0.1:8"),
        ("0.0.0.0:7", "[::1]:7"),
        ("127.0.0.1:7", "127.0.0.2:7"),
        ("localhost:7", "localhost:8"),
        ("localhost:7", "0.0.0.0:7"),  # what a name resolves to is not known here
        ("0.0.0.0:0", "127.0.0.1:0", "127.0.0.1:0"),
    ],
)
def test_takes_listeners_that_can_be_bound_together(addresses: tuple[str, ...]) -> None:
    """Different families, ports or addresses do not collide, and port 0 never does."""
    assert len(addresses) == len(Config.model_validate(listeners(*addresses)).listener)


def test_tells_each_clash_once() -> None:
    """A listener that clashes with many is one fault."""
    data = listeners("[::]:7", "[::1]:7", "[::]:7")
    data["listener"][2]["name"] = "l0"

    assert [
        (("listener", 1, "address"), "rule"),
        (("listener", 2, "name"), "rule"),
        (("listener", 2, "address"), "rule"),
    ] == faults(data)


@pytest.mark.parametrize("other", ["127.0.0.1:7", "[::1]:7", "[::]:7", "localhost:7"])
@pytest.mark.parametrize("is_first", [True, False])
def test_wildcard_overlaps_with_every_address_of_its_port(other: str, is_first: bool) -> None:
    """Whichever comes first; another port is another matter."""
    addresses = ["*:7", other] if is_first else [other, "*:7"]

    assert faults(listeners(*addresses)) == [(("listener", 1, "address"), "rule")]
    assert len(Config.model_validate(listeners("*:8", other)).listener) == 2


def test_wildcard_takes_no_ipv6_only() -> None:
    """Each family has a socket of its own."""
    data = listeners("*:7")
    data["listener"][0]["ipv6_only"] = False

    assert faults(data) == [(("listener", 0, "ipv6_only"), "rule")]


def test_two_listeners_of_the_same_name_on_port_0_clash_by_name_only() -> None:
    """The kernel gives each of them a port of its own."""
    address = {"address": "localhost:0"}

    assert [(("listener", 1, "name"), "rule")] == faults({"listener": [address, address]})


def test_unix_listeners_clash_by_address_only() -> None:
    """Two of them cannot have one path; a port means nothing to them."""
    unix = {"kind": "unix", "address": "/run/x"}
    tcp = {"name": "c", "address": "0.0.0.0:7"}

    config = Config.model_validate({"listener": [unix, tcp, {"name": "d", "kind": "unix", "address": "@x"}]})

    assert 3 == len(config.listener)
    assert [(("listener", 1, "address"), "rule")] == faults({"listener": [unix, {**unix, "name": "b"}]})


def test_networks_are_spelled_in_one_way() -> None:
    """An address is a network of its own; equal networks are equal texts."""
    listener = Listener.model_validate({"allow": ["10.0.0.7", "2001:DB8:0::/32", "0.0.0.0/0"]})

    assert ("10.0.0.7/32", "2001:db8::/32", "0.0.0.0/0") == listener.allow


@pytest.mark.parametrize("key", [key for key in Listener.model_fields if key not in {"name", "kind", "address"}])
def test_every_kind_takes_every_key_at_its_default(key: str) -> None:
    """What is printed of a listener has all keys, and is read back."""
    default = Listener().model_dump(mode="json")[key]

    for kind in ({"kind": "tcp"}, {"kind": "unix", "address": "@x"}):
        assert default == Listener.model_validate(kind | {key: default}).model_dump(mode="json")[key]
