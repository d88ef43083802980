"""When a worker leaves the next connection to its siblings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.core.admission import SMALL_CHANGE, Bucket, steps_aside


@pytest.mark.parametrize(
    ("own", "total", "workers", "expected"),
    [
        (0, 0, 1, False),
        (10_000, 10_000, 1, False),
        (SMALL_CHANGE, SMALL_CHANGE, 4, False),
        (SMALL_CHANGE + 2, SMALL_CHANGE + 2, 4, True),
        (30, 100, 4, False),
        (32, 100, 4, True),
        (25, 100, 4, False),
        (5, 5, 0, False),
    ],
)
def test_steps_aside_well_above_the_mean(own: int, total: int, workers: int, expected: bool) -> None:
    """A worker steps aside more than a tenth and a few connections above the mean; a lone one never does."""
    assert expected is steps_aside(own, total, workers)


@given(st.lists(st.integers(min_value=0, max_value=10**6), min_size=1, max_size=128))
def test_someone_always_stays(counts: list[int]) -> None:
    """However the connections are spread, at least one worker does not step aside."""
    assert not all(steps_aside(own, sum(counts), len(counts)) for own in counts)


def test_a_bucket_lets_through_what_its_rate_says() -> None:
    """At once as many as a second brings, then one for each part of a second; quiet time is not saved up for ever."""
    bucket = Bucket(4.0, now=10.0)

    assert [True] * 4 + [False] == [bucket.take(10.0) for _ in range(5)]
    assert [False, True, False] == [bucket.take(now) for now in (10.2, 10.25, 10.25)]
    assert 4 == sum(bucket.take(1000.0) for _ in range(10))


def test_a_slow_bucket_lets_one_through_at_a_time() -> None:
    """Less than one a second is possible too, for a worker's share of a small rate."""
    bucket = Bucket(0.25, now=0.0)

    assert [True, False, False, True, False] == [bucket.take(now) for now in (0.0, 1.0, 3.9, 4.1, 5.0)]


@given(st.lists(st.floats(0, 1, allow_nan=False), max_size=100), st.floats(0.1, 100))
def test_a_bucket_is_never_more_generous_than_its_rate(pauses: list[float], rate: float) -> None:
    """Over any time: what that time brings, and one burst."""
    now, passed = 0.0, 0
    bucket = Bucket(rate, now)
    for pause in pauses:
        now += pause
        passed += bucket.take(now)

    assert passed <= now * rate + max(rate, 1.0) + 1e-6


def test_bucket_keeps_its_fill_when_the_rate_changes() -> None:
    """What is left stays, as many as the new burst allows, and comes back at the new rate."""
    bucket = Bucket(10.0, now=0.0)
    for _ in range(7):
        assert bucket.take(0.0)
    bucket.adjust(100.0, 0.0)
    left = [bucket.take(0.0) for _ in range(4)]
    bucket.adjust(2.0, 1.0)
    after = [bucket.take(1.0) for _ in range(3)]

    assert [True, True, True, False] == left
    assert [True, True, False] == after
