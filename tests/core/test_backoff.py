"""Waits double while workers die young, and start over once one has lived."""

from __future__ import annotations

import pytest

from echod.core.backoff import FIRST, LONGEST, PROVEN, Backoff


def test_doubles_up_to_the_longest() -> None:
    """A worker that always dies at once is replaced after 0.1 s, then twice as long each time, but 10 s at most."""
    backoff = Backoff()

    assert [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0] == pytest.approx([backoff.died(0.0) for _ in range(9)])


@pytest.mark.parametrize("deaths", [1, 3, 20])
def test_a_long_life_starts_over(deaths: int) -> None:
    """Once a worker has lived for PROVEN seconds its death is the first one again, and the next is the second."""
    backoff = Backoff()
    for _ in range(deaths):
        backoff.died(PROVEN - 0.001)

    assert (FIRST, FIRST * 2) == (backoff.died(PROVEN), backoff.died(0.0))


def test_slots_wait_on_their_own() -> None:
    """The deaths in one slot do not delay the replacement in another."""
    restless, calm = Backoff(), Backoff()
    for _ in range(9):
        restless.died(0.0)

    assert (LONGEST, FIRST) == (restless.died(0.0), calm.died(0.0))
