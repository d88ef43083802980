"""Admission: a limit that holds over all processes, unique ids, and a lock that only one has."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from echod.events import RefuseReason
from echod.observe.gate import Gate
from echod.observe.scoreboard import REFUSED, Column, Scoreboard
from tests.observe.processes import active, child, rows, status

if TYPE_CHECKING:
    from collections.abc import Callable

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


def test_with_a_limit_for_addresses_every_decision_is_alone(board: Scoreboard, stack: ExitStack) -> None:
    """Else two workers could each turn away the one who still fitted: only one decides at a time."""
    mine, theirs = rows(board, 2)
    hold(board, stack, Gate(theirs, 10**6, per_address=1))
    gate = Gate(mine, 10**6, per_address=1)

    assert not gate.open()


# -- the lock ---------------------------------------------------------------------------------------------------------


def is_locked(board: Scoreboard, stack: ExitStack) -> bool:
    """Tell whether this process has the lock, by the eyes of another one."""

    def try_it() -> None:
        fcntl.lockf(board.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def quietly() -> None:
        with suppress(OSError):
            try_it()
            os._exit(7)

    return status(child(stack, quietly)) != 7


@pytest.mark.parametrize(("count", "locked"), [(0, False), (6, False), (7, True), (8, True), (9, True)])
def test_the_lock_is_taken_near_the_limit_only(board: Scoreboard, stack: ExitStack, count: int, locked: bool) -> None:
    """Far from the limit nobody takes a lock; near it one worker at a time decides, and gives the lock back."""
    mine, _ = active(board, 0, count)
    gate = Gate(mine, 8)
    opened = gate.open()
    during = is_locked(board, stack)
    gate.shut()
    gate.shut()  # once more does no harm

    assert (True, locked, False) == (opened, during, is_locked(board, stack))


def hold(board: Scoreboard, stack: ExitStack, gate: Gate) -> int:
    """Return the process that has opened `gate` and sleeps on it."""
    told, tell = os.pipe()

    def sleep() -> None:
        gate.open()
        os.write(tell, b"!")
        signal.pause()

    pid = child(stack, sleep)
    os.read(told, 1)
    os.close(told)
    os.close(tell)
    return pid


def test_another_has_the_lock(board: Scoreboard, stack: ExitStack) -> None:
    """The lock is tried and not waited for, even if its holder is stopped; when the holder dies it is free."""
    mine, theirs = active(board, 4, 4)
    holder = hold(board, stack, Gate(theirs, 8))
    os.kill(holder, signal.SIGSTOP)
    gate = Gate(mine, 8)
    during = gate.open()
    gate.shut()
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    after = gate.open()
    gate.shut()

    assert (False, True) == (during, after)


def test_shut_without_the_lock_leaves_it_to_its_holder(board: Scoreboard, stack: ExitStack) -> None:
    """A gate that could not be opened does not unlock anything when it is shut."""
    mine, theirs = active(board, 4, 4)
    hold(board, stack, Gate(theirs, 8))
    gate = Gate(mine, 8)
    gate.open()
    gate.shut()

    assert not gate.open()


RUNNERS = 4


def race(board: Scoreboard, stack: ExitStack, limit: int, attempts: int) -> None:
    """Let so many processes try so often each to let somebody in, all at the same time, as listeners do."""
    start = memoryview(mmap.mmap(-1, 8)).cast("Q")
    original = Scoreboard.total

    def wait() -> None:
        for _ in range(1500):
            os.sched_yield()

    def slow_total(self: Scoreboard, column: int) -> int:
        wait()  # after the count and before the sum everybody who may come in between does
        found = original(self, column)
        wait()  # and so they do before a sum is acted on
        return found

    def run(gate: Gate) -> Callable[[], None]:
        def live() -> None:
            Scoreboard.total = slow_total  # type: ignore[method-assign]  # in the child only
            while not start[0]:
                os.sched_yield()
            left = attempts
            while left:
                if not gate.open():
                    continue
                left -= 1
                if not isinstance(gate.admit(0), int):
                    gate.refuse(RefuseReason.DENIED)
                gate.shut()

        return live

    pids = [child(stack, run(Gate(row, limit))) for row in rows(board, RUNNERS)]
    start[0] = 1

    assert [status(pid) for pid in pids] == [0] * RUNNERS


@pytest.mark.parametrize(("limit", "places"), [(1, 1), (2, 1), (8, 1), (24, 3), (1000, 3)])
def test_the_last_places_are_given_exactly(board: Scoreboard, stack: ExitStack, limit: int, places: int) -> None:
    """Of processes that race for the last places as many get in as there are places: none twice, none to nobody."""
    board.row(0)[Column.ACTIVE] = limit - places
    race(board, stack, limit, 1)

    assert (limit, places, RUNNERS - places) == (
        board.total(Column.ACTIVE),
        board.total(Column.ACCEPTED),
        board.total(Column.REFUSED),
    )


def test_the_limit_is_never_passed(board: Scoreboard, stack: ExitStack, size: Size) -> None:
    """So it is when they start from nothing, most of the way without the lock; half of them get in."""
    attempts = size(25, 100)
    half = RUNNERS * attempts // 2
    race(board, stack, half, attempts)

    assert (half, half) == (board.total(Column.ACTIVE), board.total(Column.REFUSED))


def test_the_limit_holds_without_the_lock(board: Scoreboard, stack: ExitStack) -> None:
    """Who was far from it when the door was opened, and comes to it together with others, is counted first."""
    race(board, stack, 3, 1)

    assert board.total(Column.ACTIVE) <= 3 < RUNNERS
    assert board.total(Column.ACTIVE) + board.total(Column.REFUSED) == RUNNERS


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
