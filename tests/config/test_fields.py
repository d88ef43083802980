"""What tables are made of: bounds that cost no time, and texts that hold nothing odd."""

from __future__ import annotations

import time
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from echod.config.fields import OptionalPath, Table, at_most


class Sample(Table):
    """A table with one key of each type."""

    path: OptionalPath = ""
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
