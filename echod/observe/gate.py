"""Admits connections for all workers together, by the counts of the scoreboard.

Rules
    `max_connections` holds for the whole daemon. Far from the limit a worker counts itself in and looks whether the sum
    still fits; near it, that decision is made under a lock, so that the last place is given, and given once.
    The lock is a record lock on a memfd (fcntl(2)): the kernel drops it when its holder dies. It is only ever tried,
    never waited for, since its holder may be stopped. A worker shows how often it has tried in vain (`lock_watch`).

Known limit: a worker that the scheduler suspends between its first look and its count, for as long as the others take
to fill the last eighth, can make a sibling refuse one connection too early. The limit itself is never passed.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

from echod.core import admission
from echod.events import RefuseReason
from echod.observe.scoreboard import REFUSED, ROWS, Column

if TYPE_CHECKING:
    from echod.observe.scoreboard import Row, Scoreboard

# By themselves, since every connection asks: before Python 3.12 a member of an enumeration costs a call.
_ACTIVE, _ACCEPTED, _REFUSED, _LOCK_WAITS = Column.ACTIVE, Column.ACCEPTED, Column.REFUSED, Column.LOCK_WAITS

_FLOCK = "hhqqi4x"  # struct flock of fcntl(2)


def lock_holder(board: Scoreboard) -> int | None:
    """Return the other process that has the admission lock, or None (F_GETLK, fcntl(2)).

    -1 stands for a lock of an open file description, and 0 for a process in another pid namespace.
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(board.lock, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else pid


class Gate:
    """Admits connections to one worker, for the whole daemon's limit."""

    def __init__(self, row: Row, limit: int, per_address: int = 0) -> None:
        self.limit = limit
        self.per_address = per_address
        self._row = row
        self._board = row.board
        self._locked = False

    def open(self) -> bool:
        """Prepare to admit; False when another worker is deciding at the limit just now."""
        if not self.per_address and not admission.near(self._board.total(_ACTIVE), self.limit):
            return True
        try:
            fcntl.lockf(self._board.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._row.cells[_LOCK_WAITS] += 1
            return False
        self._row.cells[_LOCK_WAITS] = 0
        self._locked = True
        return True

    def shut(self) -> None:
        """End what `open` began."""
        if self._locked:
            fcntl.lockf(self._board.lock, fcntl.LOCK_UN)
            self._locked = False

    def admit(self, key: int) -> int | RefuseReason:
        """Count one connection in and return its id, or why there are enough; `key` is its address's, 0 for none."""
        cells = self._row.cells
        cells[_ACTIVE] += 1
        if self._board.total(_ACTIVE) > self.limit:
            cells[_ACTIVE] -= 1
            return RefuseReason.OVER_LIMIT
        if key and not self.enter(key):
            cells[_ACTIVE] -= 1
            return RefuseReason.OVER_ADDRESS_LIMIT
        cells[_ACCEPTED] += 1
        return self._number()

    def enter(self, key: int) -> bool:
        """Count one connection of an address in, unless it has enough."""
        table, row = self._board.addresses, self._row.number
        if not table.enter(row, key):
            return False
        if table.total(key, self._board.used) <= self.per_address:
            return True
        table.leave(row, key)
        return False

    def refuse(self, reason: RefuseReason) -> int:
        """Count one connection that was turned away and return an id for it."""
        cells = self._row.cells
        cells[_REFUSED] += 1
        cells[REFUSED[reason]] += 1
        return self._number()

    def leave(self, key: int) -> None:
        """Count one connection out, with the key that it came in with."""
        self._row.cells[_ACTIVE] -= 1
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
