"""The tests stand as the code does: a file for each module, and none for a module that is not there."""

from __future__ import annotations

from pathlib import Path

import echod

PACKAGE = Path(echod.__file__).parent
TESTS = Path(__file__).parent
ROOMS = ["config", "core", "net", "observe", "process"]
EXTRA = ("_rules", "_fuzz")
"""Endings of test files that look at a module once more, from another side."""


def modules(room: str) -> set[str]:
    """Return the modules of a room."""
    return {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__", "__main__"}


def covered(room: str) -> set[str]:
    """Return the modules for which a room of the tests has a file."""
    found = {path.stem.removeprefix("test_") for path in (TESTS / room).glob("test_*.py")}
    for ending in EXTRA:
        found = {name.removesuffix(ending) for name in found}
    return found


def test_each_module_has_its_tests() -> None:
    """Whoever looks for the tests of a module finds them under its name."""
    assert set() == {f"{room}/{name}" for room in ROOMS for name in modules(room) - covered(room)}


def test_each_test_file_has_its_module() -> None:
    """Whoever renames or removes a module does so with its tests."""
    assert set() == {f"{room}/{name}" for room in ROOMS for name in covered(room) - modules(room)}


def test_each_room_is_mirrored() -> None:
    """A new room of the package is a new room of the tests."""
    assert set(ROOMS) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
