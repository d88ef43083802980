"""Durations and sizes: text in the file, numbers in the program.

Rule: every quantity carries its unit. A bare number is refused, since nobody can tell what was meant, and what is
printed is read back as the same number.
"""

import re
from datetime import timedelta
from typing import Annotated

import durationpy
from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

KIB = 1024
MIB = 1024 * KIB

_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": 1024 * MIB}
_SIZE = r"[0-9]{1,15}(?:B|KiB|MiB|GiB)"

# Go's syntax without its sign. durationpy alone also takes days, months and years, and whatever stands between units.
_DURATION = r"(?:0|(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|µs|ms|s|m|h)){1,8})"
_LONGEST = timedelta(days=3650)
_SHORTEST = timedelta(milliseconds=1)  # less is below what a poller can wait for, and would round to 0, which means off


def parse_duration(value: object) -> float:
    """Read a duration into seconds, or raise ValueError with a sentence that shows one."""
    if not isinstance(value, str) or not re.fullmatch(_DURATION, value):
        raise ValueError('must be a duration such as "30s" or "1m30s"')
    delta: timedelta = durationpy.from_str(value)
    if delta > _LONGEST:
        raise ValueError('must be a duration of at most ten years, such as "30s" or "1m30s"')
    if delta < _SHORTEST and re.search("[1-9]", value):
        raise ValueError('must be a duration of at least "1ms", or "0s" for off')
    return delta.total_seconds()


def duration_text(seconds: float) -> str:
    """Print a duration in the same syntax."""
    delta = timedelta(seconds=seconds)
    fraction = timedelta(microseconds=delta.microseconds)
    # Apart, since durationpy prints seconds to six digits only: 59.1234567 would lose its end.
    return "".join(durationpy.to_str(part) for part in (delta - fraction, fraction) if part) or "0s"


def parse_size(value: object) -> int:
    """Read a size into bytes, or raise ValueError with a sentence that shows one."""
    if not isinstance(value, str) or not re.fullmatch(_SIZE, value):
        raise ValueError('must be a size in B, KiB, MiB or GiB, such as "64KiB" or "1MiB"')
    digits = value.rstrip("BKMGi")
    return int(digits) * _UNITS[value.removeprefix(digits)]


def size_text(count: int) -> str:
    """Print a size in the largest unit that divides it."""
    unit = max((name for name, size in _UNITS.items() if count % size == 0), key=_UNITS.__getitem__) if count else "B"
    return f"{count // _UNITS[unit]}{unit}"


def within(low: int, high: int) -> AfterValidator:
    """Bound a size, in a sentence that prints the bounds as sizes."""

    def check(count: int) -> int:
        if not low <= count <= high:
            raise ValueError(f"must be a size from {size_text(low)} to {size_text(high)}")
        return count

    return AfterValidator(check)


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(duration_text),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION}$"}),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(size_text),
    WithJsonSchema({"type": "string", "pattern": f"^{_SIZE}$"}),
]
