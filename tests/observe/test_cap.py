"""So many records of each event in a period, and the others counted."""

from __future__ import annotations

import pytest

from echod.observe.cap import PERIOD, Cap


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return what time it is."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Make a clock that stands still."""
    return Clock()


def test_more_than_the_cap_are_counted(clock: Clock) -> None:
    """The first so many are let through, and what came after them is told at the end of the period."""
    cap = Cap(3, clock)

    assert [True, True, True, False, False] == [cap.admits("a") for _ in range(5)]
    assert [("a", 2)] == cap.close()


def test_each_event_has_its_own_share(clock: Clock) -> None:
    """A flood of one event hides no other one, and what stayed within its share is not spoken of."""
    cap = Cap(1, clock)

    assert [True, False, True] == [cap.admits(name) for name in ("a", "a", "b")]
    assert [("a", 1)] == cap.close()


def test_a_period_ends(clock: Clock) -> None:
    """It begins with the first record and is over after its time; then everything is let through again."""
    cap = Cap(1, clock)
    clock.now += 5 * PERIOD
    cap.admits("a")
    clock.now += PERIOD - 0.1

    assert (False, False) == (cap.admits("a"), cap.due())
    clock.now += 0.2
    assert cap.due()
    assert [("a", 1)] == cap.close()
    assert (False, True) == (cap.due(), cap.admits("a"))


def test_nothing_is_due_while_nothing_is_said(clock: Clock) -> None:
    """A silent process has nothing to look at the clock for."""
    cap = Cap(1, clock)
    clock.now += 100 * PERIOD

    assert (False, []) == (cap.due(), cap.close())


def test_no_cap(clock: Clock) -> None:
    """With 0 nothing is counted."""
    cap = Cap(0, clock)
    clock.now += PERIOD

    assert {True} == {cap.admits("a") for _ in range(1000)}
    assert (False, []) == (cap.due(), cap.close())
