"""What one worker counts, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from echod.config.models import Limits
from echod.core.connection import Connection
from echod.events import CloseReason, DropReason
from echod.observe.scoreboard import CLOSED, DROPPED, DURATIONS, STALLS, Column, Histogram, Row, Scoreboard
from echod.observe.tally import STALL, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def row() -> Iterator[Row]:
    """Return the row of a worker."""
    board = Scoreboard()
    yield board.take_row(())
    board.close()


def noted(row: Row, histogram: Histogram) -> tuple[int, dict[int, int]]:
    """Return the sum of a histogram, and the count of each bucket that is not empty."""
    counts = [row[column] for column in range(histogram.first + 1, histogram.end)]
    return row[histogram.first], {number: count for number, count in enumerate(counts) if count}


def closed_connection(lifetime: float) -> Connection:
    """Return one that was cut with two bytes received and one sent back."""
    connection = Connection(Limits(), 100.0)
    connection.receive(memoryview(b"ab"), 100.0)
    connection.sent(1, 100.0)
    connection.fail(CloseReason.PEER_RESET, 100.0 + lifetime)
    return connection


def test_an_end_is_counted_by_post(row: Row) -> None:
    """Before its record is written a connection is open, for whoever closes the books of this worker."""
    tally = Tally(row)
    tally.moved(2, 1)
    tally.closed(closed_connection(0.05))

    assert (2, 1, 0) == (row[Column.RECEIVED], row[Column.ECHOED], row[CLOSED[CloseReason.PEER_RESET]])

    tally.post()
    tally.post()

    assert (1, 2, 1) == (
        row[CLOSED[CloseReason.PEER_RESET]],
        row[Column.RECORDED_RECEIVED],
        row[Column.RECORDED_ECHOED],
    )


@pytest.mark.parametrize(("lifetime", "bucket"), [(0.0, 0), (0.001953125, 1), (0.5, 5), (10.5, 9), (100_000, 15)])
def test_durations(row: Row, lifetime: float, bucket: int) -> None:
    """A bucket holds what is at most its bound; the last one takes whatever is longer."""
    tally = Tally(row)
    tally.closed(closed_connection(lifetime))
    tally.post()

    assert (round(lifetime * 1e6), {bucket: 1}) == noted(row, DURATIONS)


def test_stalls(row: Row) -> None:
    """A turn that others can notice is counted by its length."""
    tally = Tally(row)
    tally.stalled(STALL)
    tally.stalled(0.02)

    assert (21_000, {0: 1, 3: 1}) == noted(row, STALLS)


def test_datagrams(row: Row) -> None:
    """Answers and drops are counted at once."""
    tally = Tally(row)
    tally.echoed(7)
    tally.dropped(DropReason.DENIED)

    assert (1, 7, 1) == (row[Column.DATAGRAMS], row[Column.DATAGRAM_BYTES], row[DROPPED[DropReason.DENIED]])
