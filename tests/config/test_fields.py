"""What tables are made of: bounds that cost no time, and texts that hold nothing odd."""

from __future__ import annotations

import time
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from echod.config.fields import Networks, OptionalPath, Table, at_most


class Sample(Table):
    """A table with one key of each type."""

    path: OptionalPath = ""
    networks: Networks = Field(default=(), strict=False)
    numbers: Annotated[tuple[int, ...], at_most(3)] = Field(default=(), strict=False)


def test_an_array_is_counted_before_it_is_checked() -> None:
    """A million items cost no more than one look at their number."""
    started = time.process_time()
    with pytest.raises(ValidationError, match="must hold at most 3 items, got 1000000"):
        Sample.model_validate({"numbers": [None] * 1_000_000})

    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("path", "reason"), [("x", "must be an absolute path"), ("/x\x1b", "control characters"), ("/x\x7f", "control")]
)
def test_a_path_is_absolute_and_plain(path: str, reason: str) -> None:
    """Nothing relative, since a daemon changes its directory; nothing that a terminal could act on."""
    with pytest.raises(ValidationError, match=reason):
        Sample.model_validate({"path": path})


def test_a_table_is_strict_and_cannot_be_changed() -> None:
    """No unknown key, no lax type, no later change."""
    for data in ({"pth": "/x"}, {"path": 7}, {"numbers": ["7"]}):
        with pytest.raises(ValidationError):
            Sample.model_validate(data)
    with pytest.raises(ValidationError, match="frozen"):
        Sample().path = "/x"


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_a_network_has_one_spelling(network: str, expected: str) -> None:
    """IPv4 within IPv6 is IPv4, as it is for peers: else a list would be held against nobody."""
    assert (expected,) == Sample.model_validate({"networks": [network]}).networks
