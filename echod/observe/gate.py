"""Admits connections for all workers together, by the counts of the scoreboard.

Rules
    `max_connections` and `max_connections_per_address` hold for the whole daemon, exactly, and without a lock: a worker
    counts the connection in first and then looks whether the sum fits. Of those that race for the last places the
    last one to look sees all others, so that no limit is ever passed.
    One that does not fit is counted out again, and refused if the sum then is at the limit. If it is below, others did
    not fit either, and it tries again: the last one that is counted out finds the place that none of them has got.
    Before it tries again it looks a random number of times, so that two workers do not meet again and again.

Known limit: a worker that is stopped between its count and its look holds a place meanwhile that no connection has.
"""

from __future__ import annotations

import os
import random
from functools import partial
from typing import TYPE_CHECKING

from echod.core import admission
from echod.events import RefuseReason
from echod.observe.scoreboard import REFUSED, ROWS, Column

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.observe.scoreboard import Row

MAX_BACKOFF = 5
"""After so many tries the looks between two of them, up to twice as many each time, become no more."""

MAX_TRIES = 30
"""How often a connection is counted in that meets others each time: workers that lie about their counts must not keep
a worker busy."""

# By themselves, since every connection asks: before Python 3.12 a member of an enumeration costs a call.
_ACTIVE, _ACCEPTED, _REFUSED = Column.ACTIVE, Column.ACCEPTED, Column.REFUSED


class Gate:
    """Admits connections to one worker, for the whole daemon's limit."""

    def __init__(self, row: Row, limit: int, per_address: int = 0) -> None:
        self.limit = limit
        self.per_address = per_address
        self._row = row
        self._board = row.board

    def admit(self, key: int) -> int | RefuseReason:
        """Count one connection in and return its id, or why there are enough; `key` is its address's, 0 for none."""
        if key and not self.enter(key):
            return RefuseReason.OVER_ADDRESS_LIMIT
        if self._claim(self._count_in, self._count_out, self._active, self.limit):
            self._row.cells[_ACCEPTED] += 1
            return self._number()
        if key:
            self._board.addresses.leave(self._row.number, key)
        return RefuseReason.OVER_LIMIT

    def enter(self, key: int) -> bool:
        """Count one connection of an address in, unless it has enough."""
        table, row = self._board.addresses, self._row.number
        return self._claim(
            partial(table.enter, row, key),
            partial(table.leave, row, key),
            lambda: table.total(key, self._board.used),
            self.per_address,
        )

    def _claim(
        self, count_in: Callable[[], bool], count_out: Callable[[], None], total: Callable[[], int], limit: int
    ) -> bool:
        """Count one in, unless the total of all workers would pass `limit` or `count_in` finds no place for it."""
        for tries in range(MAX_TRIES):
            if not count_in():
                return False
            if self._fits(total, limit):
                return True
            count_out()
            # Two workers that go on in step would count each other out for ever: each looks a random number of times.
            for _ in range(random.randint(1, 2 ** min(tries, MAX_BACKOFF))):  # noqa: S311  # no secret
                os.sched_yield()
                if total() >= limit:
                    return False
        return False

    def _fits(self, total: Callable[[], int], limit: int) -> bool:
        """Tell whether the sum fits that holds what this worker has just counted in."""
        if total() <= limit - self._board.used:  # even if all others count one in at this moment
            return True
        # A full memory barrier, as every call of the scheduler: the others see this count before theirs are read.
        os.sched_yield()
        return total() <= limit

    def _count_in(self) -> bool:
        self._row.cells[_ACTIVE] += 1
        return True

    def _count_out(self) -> None:
        self._row.cells[_ACTIVE] -= 1

    def _active(self) -> int:
        return self._board.total(_ACTIVE)

    def refuse(self, reason: RefuseReason) -> int:
        """Count one connection that was turned away and return an id for it."""
        cells = self._row.cells
        cells[_REFUSED] += 1
        cells[REFUSED[reason]] += 1
        return self._number()

    def leave(self, key: int) -> None:
        """Count one connection out, with the key that it came in with."""
        self._count_out()
        if key:
            self._board.addresses.leave(self._row.number, key)

    def crowded(self) -> bool:
        """Tell whether this worker has many more connections than the mean of those that accept."""
        accepting = self._board.column(Column.ACCEPTING)
        active = self._board.column(_ACTIVE)
        # A row may be added between the two looks; it has nothing to count yet.
        total = sum(count for count, takes in zip(active, accepting, strict=False) if takes)
        return admission.steps_aside(self._row[_ACTIVE], total, sum(accepting))

    def _number(self) -> int:
        row = self._row
        serial = row.cells[_ACCEPTED] + row.cells[_REFUSED]
        return serial * ROWS + row.number  # unique over all workers, and over the workers of a slot
