"""The events: how they are called, that no two clash, and that each of them is a fact that somebody reports."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import ClassVar, get_origin, get_type_hints

import pytest

import echod
from echod.events import CloseReason, Event, Level, RefuseReason, catalogue

ROOT = Path(echod.__file__).parent
SOURCES = [path for path in ROOT.rglob("*.py") if path != ROOT / "events.py"]

each_event = pytest.mark.parametrize("event", catalogue(), ids=lambda event: event.name)
IRREGULAR = {"lost", "sent", "ready", "stopping", "exceptional"}
"""Words at the end of a name that do not end in "ed": an old participle, one that goes on, and two adjectives."""


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return all nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def used(name: str) -> set[str]:
    """Return the files that make a `name`, by calling it or its `of`."""
    found = set()
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.Call):
                called = node.func
                if isinstance(called, ast.Attribute) and called.attr == "of":
                    called = called.value
                if name == (called.id if isinstance(called, ast.Name) else getattr(called, "attr", None)):
                    found.add(path.name)
    return found


def mentioned(enum: str) -> set[str]:
    """Return the members of an enum that the package mentions."""
    found = set()
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.Attribute):
                owner = node.value
                if enum == (owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", None)):
                    found.add(node.attr)
    return found


@each_event
def test_a_name_is_a_subject_and_a_participle(event: type[Event]) -> None:
    """A name says who, and what has happened to it."""
    participle = event.name.partition(".")[2]

    assert re.fullmatch(r"[a-z]+\.[a-z]+", event.name)
    assert participle.endswith("ed") or participle in IRREGULAR


def test_names_are_unique() -> None:
    """No two events share a name."""
    names = [event.name for event in catalogue()]

    assert sorted(set(names)) == names


@each_event
def test_a_class_is_called_as_its_event(event: type[Event]) -> None:
    """The class of `service.started` is ServiceStarted: who greps for one finds the other."""
    assert "".join(word.capitalize() for word in event.name.split(".")) == event.__name__


@each_event
def test_each_event_is_reported_somewhere(event: type[Event]) -> None:
    """An event stands in the catalogue together with the code that reports it."""
    assert used(event.__name__)


@each_event
def test_an_event_is_a_frozen_record(event: type[Event]) -> None:
    """Every event is frozen and has a docstring, a level, and a key for each field, none of them required."""
    fields = [field for field, hint in get_type_hints(event).items() if get_origin(hint) is not ClassVar]
    made = event()

    assert event.__doc__
    assert event.level in Level
    assert fields == list(event.keys)
    assert {None} >= {getattr(made, field) for field in fields}

    with pytest.raises(AttributeError):
        made.anything = 1  # type: ignore[assignment]


@each_event
def test_keys_of_an_event_are_unique(event: type[Event]) -> None:
    """No record says one key twice, and none is a word that every record has."""
    keys = list(event.keys.values())

    assert len(keys) == len(set(keys))
    assert not {"timestamp", "level", "event"} & set(keys)
    assert all(re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)+", key) for key in keys)


def test_no_key_is_a_dot_prefix_of_another() -> None:
    """A store that takes dots for paths has no field that is a value here and a branch there."""
    keys = {key for event in catalogue() for key in event.keys.values()}

    assert [] == [(short, long) for short, long in permutations(keys, 2) if long.startswith(f"{short}.")]


def test_one_key_one_type() -> None:
    """A key has the same type in all events that have it."""
    types: dict[str, set[object]] = {}
    for event in catalogue():
        hints = get_type_hints(event)
        for field, key in event.keys.items():
            types.setdefault(key, set()).add(hints[field])

    assert {} == {key: found for key, found in types.items() if len(found) > 1}


@pytest.mark.parametrize("enum", [CloseReason, RefuseReason])
def test_each_reason_is_given_somewhere(enum: type[CloseReason | RefuseReason]) -> None:
    """A reason stands in the enum together with the code that gives it."""
    assert set() == {reason.name for reason in enum} - mentioned(enum.__name__)
    assert all(reason.value == reason.name.lower() for reason in enum)
