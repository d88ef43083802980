"""How durations and sizes are read and printed; what is refused stands in `tests/bad_configs.py`."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from echod.config.quantities import (
    KIB,
    MIB,
    Duration,
    Size,
    duration_text,
    parse_duration,
    parse_size,
    size_text,
)

TEN_YEARS = 3650 * 86_400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("0m", 0.0),
        ("1ms", 0.001),
        ("1000us", 0.001),
        ("1.5s", 1.5),
        ("1m30s", 90.0),
        ("1h", 3600.0),
        ("87600h", TEN_YEARS),
    ],
)
def test_reads_durations_of_go(text: str, expected: float) -> None:
    """A duration is a number of seconds, 0 for off."""
    assert expected == parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "0s"), (0.25, "250ms"), (25.0, "25s"), (90.0, "1m30s"), (600.0, "10m"), (59.123456, "59s123ms456us")],
)
def test_prints_durations_in_the_same_syntax(seconds: float, expected: str) -> None:
    """A duration is printed as one writes it."""
    assert expected == duration_text(seconds)


@given(st.integers(1000, TEN_YEARS * 1_000_000).map(lambda micro: micro / 1_000_000) | st.just(0.0))
def test_a_printed_duration_is_read_back(seconds: float) -> None:
    """Nothing is lost by printing, down to the microsecond."""
    assert seconds == parse_duration(duration_text(seconds))


@given(st.text() | st.text("0123456789.smhuns", max_size=50))
def test_any_text_is_a_duration_or_a_sentence(text: str) -> None:
    """Nothing but ValueError escapes."""
    with contextlib.suppress(ValueError):
        assert 0 <= parse_duration(text) <= TEN_YEARS


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0B", 0), ("512B", 512), ("64KiB", 64 * KIB), ("1MiB", MIB), ("2GiB", 2048 * MIB)],
)
def test_reads_and_prints_sizes(text: str, expected: int) -> None:
    """A size is a number of bytes, printed in the largest unit that divides it."""
    assert expected == parse_size(text)
    assert text == size_text(expected)


@given(st.integers(0, 10**14))
def test_a_printed_size_is_read_back(count: int) -> None:
    """Nothing is lost by printing."""
    assert count == parse_size(size_text(count))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [(Duration, ("0", "30s", "1m30s", "1.5h"), ("30", "5 s", "-5s")), (Size, ("64KiB", "1B"), ("64k", "1.5MiB"))],
)
def test_their_schema_is_a_pattern(kind: Any, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    """An editor refuses what echod would refuse, as far as a pattern goes."""
    schema = TypeAdapter(kind).json_schema()
    pattern = re.compile(schema["pattern"])

    assert "string" == schema["type"]
    assert all(pattern.search(text) for text in good)
    assert not any(pattern.search(text) for text in bad)
    assert json.dumps(schema)
