"""Any bytes, read as what happens to a connection and in which order, break none of its rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis.stateful import get_state_machine_test

from tests.core.test_connection_rules import Life
from tests.fuzz import fuzz

if TYPE_CHECKING:
    from pathlib import Path

_LIVE = get_state_machine_test(
    Life, settings=settings(stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
)


def try_life(data: bytes) -> None:
    """Live through what the bytes say."""
    _LIVE.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]  # what @given has made of it


def test_no_life_breaks_a_rule(fuzz_seconds: int, tmp_path: Path) -> None:
    """Whatever peer, kernel and daemon do, what holds for a connection holds.

    Catches a table that lets a closed connection be written to.
    """
    fuzz(try_life, [bytes(range(256)) * 4, bytes(1000), b"\1" * 1000], fuzz_seconds, tmp_path)
