"""How what a file holds is shown inside a sentence."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.config.wording import LONGEST, printable, shown, type_of


@given(st.text(st.characters()))
def test_shows_any_text_on_one_line(text: str) -> None:
    """Nothing that is shown can break, disguise or fill a line."""
    assert printable(text).isprintable()
    assert printable(text).startswith(printable(text[:1]))
    assert len(printable(text)) <= len(r"\U00000000") * LONGEST + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é", "plain é"),
        ("a\x1b[2J\n", r"a\x1b[2J\n"),
        ("\u202e", r"\u202e"),
        ("\udcff", r"\udcff"),
        ("x" * 41, "x" * 40 + "…"),
    ],
)
def test_escapes_and_cuts(text: str, expected: str) -> None:
    """What cannot be printed is escaped, what is long is cut."""
    assert expected == printable(text)


def test_escapes_without_another_module() -> None:
    """A worker can import nothing: its user need not be able to read Python's library, nor have a descriptor left."""
    script = "import sys; from echod.config.wording import printable; sys.meta_path.clear(); print(printable('\\x1b'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert "\\x1b\n" == done.stdout, done.stderr


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "a boolean"),
        (1, "an integer"),
        (1.0, "a float"),
        ("", "a string"),
        ([], "an array"),
        ({}, "a table"),
        (time(7), "a date or time"),
        (date(2026, 1, 1), "a date or time"),
    ],
)
def test_names_types_in_the_words_of_toml(value: object, expected: str) -> None:
    """An operator writes TOML, not Python."""
    assert expected == type_of(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a\n", r'"a\n"'), (-7, "-7"), (10**30, "an integer"), (True, "a boolean"), ([1], "an array")],
)
def test_shows_short_values_and_the_type_of_others(value: object, expected: str) -> None:
    """What is long is no help to anyone."""
    assert expected == shown(value)


def test_shows_a_number_that_python_refuses_to_print() -> None:
    """A hexadecimal number may have any length, its decimal digits may not."""
    assert "an integer" == shown(16**50_000)  # not a parameter above, since pytest prints those
