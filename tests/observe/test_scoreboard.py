"""Numbers in shared memory: rows, sums, and the books of a dead worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from echod.events import CloseReason
from echod.observe.gate import Gate
from echod.observe.scoreboard import (
    CLOSED,
    COLUMNS,
    DROPPED,
    DURATIONS,
    MAX_TOTAL,
    REFUSED,
    ROWS,
    STALLS,
    Column,
    Lost,
    Scoreboard,
)
from tests.observe.processes import active, child, rows, status

if TYPE_CHECKING:
    from contextlib import ExitStack


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a_fresh_scoreboard_is_all_zero(board: Scoreboard) -> None:
    """Nothing is counted yet, and only the supervisor's row is in use."""
    assert {Column.ROWS_USED: 1} == {column: board.total(column) for column in Column if board.total(column)}
    assert {1} == {len(board.column(column)) for column in Column}


def test_each_cell_is_one_number(board: Scoreboard) -> None:
    """What is written to one column of one row is in that cell and in no other."""
    taken = rows(board, ROWS - 1)
    for row in taken:
        for column in Column:
            row[column] = 1000 * row.number + column

    assert [[1000 * row.number + column for row in taken] for column in Column] == [
        list(board.column(column))[1:] for column in Column
    ]
    assert {Column.ROWS_USED: ROWS} == {column: board.row(0)[column] for column in Column if board.row(0)[column]}


def test_numbers_are_of_64_bits(board: Scoreboard) -> None:
    """Counters do not overflow in the life of a machine."""
    row = board.row(0)
    row[Column.ACCEPTED] = 2**64 - 1

    assert 2**64 - 1 == row[Column.ACCEPTED]


def test_the_sum_is_over_all_rows(board: Scoreboard) -> None:
    """Totals count the supervisor and every row that was ever used."""
    active(board, 1, 2, 3)
    board.row(0)[Column.ACTIVE] = 10

    assert (16, 4) == (board.total(Column.ACTIVE), len(board.column(Column.ACTIVE)))


def test_the_lowest_row_is_taken(board: Scoreboard) -> None:
    """A new worker gets the lowest row that no other has, never the supervisor's."""
    numbers = [board.take_row(taken).number for taken in ((), (1,), (1, 2), (1, 3), (2, 3))]

    assert [1, 2, 3, 2, 1] == numbers
    assert 4 == len(board.column(Column.ACTIVE))


def test_no_row_is_left(board: Scoreboard) -> None:
    """When all rows are taken, that is said."""
    last = board.take_row(range(1, ROWS - 1))

    assert ROWS - 1 == last.number
    with pytest.raises(StopIteration):
        board.take_row(range(1, ROWS))


def test_memory_is_shared(board: Scoreboard, stack: ExitStack) -> None:
    """What another process counts is seen here at once, and what is counted here is seen there."""
    [row] = rows(board, 1)
    row[Column.ACCEPTED] = 41

    def count() -> None:
        row[Column.ACCEPTED] += 1

    code = status(child(stack, count))

    assert (0, 42) == (code, row[Column.ACCEPTED])


def test_settle(board: Scoreboard) -> None:
    """What a dead worker had not said to be closed is lost, once; what it had counted up stays; nobody is there."""
    first, second = active(board, 3, 4)
    first[Column.ACCEPTED] = 10
    first[CLOSED[CloseReason.PEER_CLOSED]] = 5
    first[CLOSED[CloseReason.WORKER_LOST]] = 1
    first[Column.RECEIVED], first[Column.ECHOED] = 100, 90
    first[Column.RECORDED_RECEIVED], first[Column.RECORDED_ECHOED] = 70, 65
    first[Column.PID] = 7
    before = {column: first[column] for column in range(COLUMNS)}
    lost = board.settle(first.number)
    changed = {column: first[column] for column in range(COLUMNS) if first[column] != before[column]}

    assert (Lost(4, 30, 25), 4) == (lost, board.total(Column.ACTIVE))
    assert changed == {
        Column.ACCEPTING: 0,
        Column.ACTIVE: 0,
        Column.PID: 0,
        Column.RECORDED_RECEIVED: 100,
        Column.RECORDED_ECHOED: 90,
        CLOSED[CloseReason.WORKER_LOST]: 5,
    }
    assert 4 == second[Column.ACTIVE]
    assert Lost(0, 0, 0) == board.settle(first.number)


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_sum_of_garbage_fits_a_record(board: Scoreboard, value: int) -> None:
    """A worker may write anything to its row: no sum is more than a log record or the state can say."""
    for row in active(board, 1, 1):
        for column in range(COLUMNS):
            row[column] = value
    totals = {board.total(column) for column in range(COLUMNS)}

    assert {MAX_TOTAL} == totals
    orjson.dumps([*totals])


def test_books_of_a_dead_worker_that_wrote_garbage_are_closed(board: Scoreboard) -> None:
    """More closed than accepted, or numbers of 64 bits, raise nothing, and nothing negative is lost."""
    [row] = active(board, 1)
    for values in ([2**64 - 1] * COLUMNS, [2**63] * COLUMNS, list(range(COLUMNS)), list(range(COLUMNS, 0, -1))):
        for column, value in enumerate(values):
            row[column] = value
        lost = board.settle(row.number)

        assert min(lost.connections, lost.received, lost.echoed) >= 0
        assert 0 == board.total(Column.ACTIVE)
        orjson.dumps([lost.connections, lost.received, lost.echoed])


def test_row_of_a_dead_worker_that_wrote_garbage_can_be_counted_on(board: Scoreboard) -> None:
    """Its next owner can add to every number, and the ids of its connections fit a log record."""
    [row] = active(board, 1)
    for column in range(COLUMNS):
        row[column] = 2**64 - 1
    board.settle(row.number)
    number = Gate(row, 10).admit(0)
    for column in range(COLUMNS):
        row[column] += 2**40

    assert isinstance(number, int)
    assert number < 2**63


def test_no_two_numbers_share_a_column() -> None:
    """Every number has a column of its own, and no column is without one."""
    histograms = [column for kind in (DURATIONS, STALLS) for column in range(kind.first, kind.end)]
    columns = [*Column, *REFUSED.values(), *CLOSED.values(), *DROPPED.values(), *histograms]

    assert list(range(COLUMNS)) == sorted(columns)
