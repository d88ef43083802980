"""The catalogue: names, levels and keys keep their rules."""

from __future__ import annotations

import dataclasses
import re
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import echod
from echod import events

if TYPE_CHECKING:
    from echod.events import Event

ROOT = Path(echod.__file__).parent
ALL = events.catalogue()


@pytest.mark.parametrize("event", ALL, ids=lambda event: event.name)
def test_an_event_keeps_the_rules(event: type[Event]) -> None:
    """It is `subject.participle`, has a docstring of its own, and every field is left out while it is None."""
    assert re.fullmatch(r"[a-z]+\.[a-z]+", event.name)
    assert isinstance(event.level, events.Level)
    assert event.__doc__
    assert {None} >= {getattr(event(), attribute) for attribute, _ in event.layout()}
    assert [field.name for field in dataclasses.fields(event)] == [attribute for attribute, _ in event.layout()]


@pytest.mark.parametrize("event", ALL, ids=lambda event: event.name)
def test_an_event_is_emitted_somewhere(event: type[Event]) -> None:
    """A name in the catalogue that nothing emits would be a promise without a deed."""
    users = [path for path in ROOT.rglob("*.py") if path.name != "events.py"]

    assert any(re.search(rf"\b{event.__name__}\(", path.read_text()) for path in users)


def test_names_are_unique() -> None:
    """No two events share a name."""
    names = [event.name for event in ALL]

    assert sorted(set(names)) == names


def test_no_key_is_a_prefix_of_another() -> None:
    """Log stores that nest dotted names could not hold `a.b` beside `a.b.c`."""
    keys = {key for event in ALL for _, key in event.layout()} | {"timestamp", "level", "event"}

    assert [] == [(one, two) for one, two in permutations(keys, 2) if two.startswith(f"{one}.")]


def test_what_is_not_given_is_none() -> None:
    """A fact is built from what is known; the rest can be asked for all the same, and nothing changes it later."""
    refused = events.ConnectionRefused(id=7)

    assert (7, None) == (refused.id, refused.client_address)
    assert events.ConnectionRefused(id=7) == refused
    assert events.ConnectionRefused(id=8) != refused
    with pytest.raises(dataclasses.FrozenInstanceError):
        refused.id = 8  # type: ignore[misc]
