"""Admission: limits that hold over all processes, and unique ids."""

from __future__ import annotations

import mmap
import os
import random
from typing import TYPE_CHECKING

import pytest

from echod.events import RefuseReason
from echod.observe import gate as gate_module
from echod.observe.addresses import AddressTable
from echod.observe.gate import MAX_TRIES, Gate
from echod.observe.scoreboard import REFUSED, Column, Scoreboard
from tests.observe.processes import active, child, rows, status

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from tests.conftest import Size


# -- the gate ---------------------------------------------------------------------------------------------------------


def test_admit_up_to_the_limit(board: Scoreboard) -> None:
    """A gate lets in as many as the limit says, over all workers, and then nobody until somebody leaves."""
    mine, other = active(board, 0, 2)
    gate = Gate(mine, 5)
    admitted = [isinstance(gate.admit(0), int) for _ in range(5)]
    gate.leave(0)
    again = [isinstance(gate.admit(0), int) for _ in range(2)]

    assert ([True, True, True, False, False], [True, False]) == (admitted, again)
    assert (3, 4, 2) == (mine[Column.ACTIVE], mine[Column.ACCEPTED], other[Column.ACTIVE])


def test_a_lower_limit_lets_nobody_in(board: Scoreboard) -> None:
    """A reload that lowers the limit cuts nobody, and admits nobody until enough have left."""
    [row] = active(board, 5)
    gate = Gate(row, 10)
    gate.limit = 3

    assert (RefuseReason.OVER_LIMIT, 5) == (gate.admit(0), row[Column.ACTIVE])

    for _ in range(3):
        gate.leave(0)

    assert isinstance(gate.admit(0), int)


def test_refused_are_counted_apart(board: Scoreboard) -> None:
    """Who is turned away has an id too, and is in no other count."""
    [row] = active(board, 0)
    gate = Gate(row, 1)
    gate.refuse(RefuseReason.DENIED)

    assert (1, 0, 0) == (row[Column.REFUSED], row[Column.ACTIVE], row[Column.ACCEPTED])
    assert {RefuseReason.DENIED: 1} == {reason: row[column] for reason, column in REFUSED.items() if row[column]}


def test_ids_are_unique(board: Scoreboard) -> None:
    """No two connections have the same id: not of two workers, not of two workers of one slot, admitted or not."""
    taken = rows(board, 3)
    ids: list[int | RefuseReason] = []
    for _ in range(2):  # the second gate of a slot is that of the worker's successor
        for row in taken:
            gate = Gate(row, 10**6)
            for _ in range(50):
                ids += [gate.admit(0), gate.refuse(RefuseReason.DENIED)]
            board.settle(row.number)

    assert 600 == len(set(ids))


def test_an_address_has_its_own_limit(board: Scoreboard, stack: ExitStack) -> None:
    """Over all workers, and exactly; a connection that is turned away counts nowhere; a dead worker's count no more."""
    first, second = (Gate(row, 100, per_address=3) for row in rows(board, 2))
    answers = [gate.admit(7) for gate in (first, second, first, second)]

    assert [True, True, True, False] == [isinstance(answer, int) for answer in answers]
    assert RefuseReason.OVER_ADDRESS_LIMIT == answers[-1]
    assert (3, 3) == (board.total(Column.ACTIVE), board.total(Column.ACCEPTED))
    assert isinstance(second.admit(8), int)
    first.leave(7)
    assert isinstance(second.admit(7), int)
    board.settle(2)
    assert [True, True, False] == [isinstance(first.admit(7), int) for _ in range(3)]


# -- races ------------------------------------------------------------------------------------------------------------

RUNNERS = 4


def slow(method: Callable[..., int]) -> Callable[..., int]:
    """Return a sum that takes long: all who may count themselves in before it, and before it is acted on, do so."""

    def wait() -> None:
        for _ in range(1500):
            os.sched_yield()

    def total(*args: int) -> int:
        wait()
        found = method(*args)
        wait()
        return found

    return total


def race(board: Scoreboard, stack: ExitStack, gates: list[Gate], attempts: int, key: int = 0) -> None:
    """Let one process for each gate try so often to admit a connection of `key`, all at the same time."""
    start = memoryview(mmap.mmap(-1, 8)).cast("Q")

    def run(gate: Gate) -> Callable[[], None]:
        def live() -> None:
            # In the child only.
            Scoreboard.total = slow(Scoreboard.total)  # type: ignore[method-assign]
            AddressTable.total = slow(AddressTable.total)  # type: ignore[method-assign]
            while not start[0]:
                os.sched_yield()
            for _ in range(attempts):
                if not isinstance(gate.admit(key), int):
                    gate.refuse(RefuseReason.DENIED)

        return live

    pids = [child(stack, run(gate)) for gate in gates]
    start[0] = 1

    assert [status(pid) for pid in pids] == [0] * len(gates)


@pytest.mark.parametrize(("limit", "places"), [(1, 1), (2, 1), (8, 1), (24, 3), (1000, 3)])
def test_admit_gives_the_last_places_exactly(board: Scoreboard, stack: ExitStack, limit: int, places: int) -> None:
    """Of processes that race for the last places as many get in as there are places, no more and no less."""
    board.row(0)[Column.ACTIVE] = limit - places
    race(board, stack, [Gate(row, limit) for row in rows(board, RUNNERS)], 1)

    assert board.total(Column.ACTIVE) == limit
    assert board.total(Column.ACCEPTED) == places
    assert board.total(Column.REFUSED) == RUNNERS - places


@pytest.mark.parametrize(("limit", "places"), [(1, 1), (2, 1), (8, 1), (24, 3), (1000, 3)])
def test_admit_gives_the_last_places_of_an_address_exactly(
    board: Scoreboard, stack: ExitStack, limit: int, places: int
) -> None:
    """The same for the places that one address has."""
    taken = rows(board, RUNNERS + 1)
    for _ in range(limit - places):
        board.addresses.enter(taken[0].number, 7)
    race(board, stack, [Gate(row, 10**6, limit) for row in taken[1:]], 1, key=7)

    assert board.addresses.total(7, board.used) == limit
    assert board.total(Column.ACTIVE) == places
    assert board.total(Column.REFUSED) == RUNNERS - places


@pytest.mark.parametrize("per_address", [False, True])
def test_admit_never_passes_a_limit(board: Scoreboard, stack: ExitStack, size: Size, per_address: bool) -> None:
    """Nor does it when they start from nothing; half of them get in."""
    attempts = size(25, 100)
    half = RUNNERS * attempts // 2
    limits = (10**6, half) if per_address else (half, 0)
    race(board, stack, [Gate(row, *limits) for row in rows(board, RUNNERS)], attempts, key=7 * per_address)

    assert board.total(Column.ACTIVE) == half
    assert board.total(Column.REFUSED) == half


def test_admit_gives_the_last_place_to_workers_that_go_in_step(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, size: Size
) -> None:
    """Two that count each other out again and again get the place after few tries, and not only by good luck."""
    monkeypatch.setattr(gate_module, "MAX_TRIES", 12)
    for _ in range(size(60, 600)):
        board = Scoreboard()
        race(board, stack, [Gate(row, 10**6, 1) for row in rows(board, 2)], 1, key=7)

        assert board.addresses.total(7, board.used) == 1
        board.close()


def test_admit_ends_when_a_sibling_lies(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker stops after MAX_TRIES when the count of a sibling changes all the time."""
    [row] = active(board, 0)
    sums = 0

    def total(self: Scoreboard, column: int) -> int:
        nonlocal sums
        sums += 1
        return 2 * row[Column.ACTIVE]

    monkeypatch.setattr(Scoreboard, "total", total)
    monkeypatch.setattr(random, "randint", lambda low, high: low)

    assert Gate(row, 1).admit(0) == RefuseReason.OVER_LIMIT
    assert sums == 3 * MAX_TRIES
    assert row[Column.ACTIVE] == 0


# -- fairness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "crowded"),
    [((0,), False), ((1000,), False), ((50, 50), False), ((100, 0), True), ((60, 30, 30), True), ((30, 60, 30), False)],
)
def test_crowded(board: Scoreboard, counts: tuple[int, ...], crowded: bool) -> None:
    """A worker is crowded when it has many more connections than the mean."""
    mine = active(board, *counts)[0]

    assert crowded is Gate(mine, 10**6).crowded()


def test_only_who_accepts_counts(board: Scoreboard) -> None:
    """Connections of workers that retire, and rows that nobody has, are no reason to step aside or not to."""
    mine, idle, retiring = active(board, 40, 40, 0)
    retiring[Column.ACTIVE] = 10_000
    retiring[Column.ACCEPTING] = 0
    before = Gate(mine, 10**6).crowded()
    idle[Column.ACTIVE] = 0

    assert (False, True) == (before, Gate(mine, 10**6).crowded())


def test_crowded_while_a_row_is_added(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor may take a row for another worker at any moment, also while one looks whether it is crowded."""
    mine, _ = active(board, 100, 0)
    original = Scoreboard.column

    def column(self: Scoreboard, which: Column) -> memoryview:
        found = original(self, which)
        board.take_row(range(1, len(found)))
        return found

    monkeypatch.setattr(Scoreboard, "column", column)

    assert Gate(mine, 10**6).crowded()
