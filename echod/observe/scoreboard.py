"""The numbers of all processes, in memory that they share.

Rules
    One anonymous shared mapping of 64-bit cells: a row for each process, a column for each number. Each row has one
    writer, its process, or the supervisor once that is dead; all may read. No locks, since a worker may be stopped
    or killed at any moment.
    Rows outlive workers: what is counted up never goes back, so that ids and sums stay true.
    `max_connections` holds for the whole daemon. Far from the limit a worker counts itself in and looks whether the sum
    still fits; near it, that decision is made under a lock, so that the last place is given, and given once.
    The lock is a record lock on a memfd (fcntl(2)): the kernel drops it when its holder dies. It is only ever tried,
    never waited for, since its holder may be stopped.

Known limit: a worker that the scheduler suspends between its first look and its count, for as long as the others take
to fill the last eighth, can make a sibling refuse one connection too early. The limit itself is never passed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from enum import IntEnum, auto
from typing import TYPE_CHECKING

from echod.core import admission
from echod.events import DropReason, RefuseReason
from echod.observe.addresses import AddressTable

if TYPE_CHECKING:
    from collections.abc import Container

ROWS = 256
"""The supervisor has row 0; of 128 workers, retiring ones among them, each has one, and a connection's id needs eight
bits for it."""


class Column(IntEnum):
    """What is counted."""

    ACCEPTING = 0
    """1 while the worker takes connections."""
    ACTIVE = auto()
    """Connections open now."""
    ACCEPTED = auto()
    """Connections ever opened."""
    REFUSED = auto()
    """Connections ever turned away."""
    LOST = auto()
    """Connections that ended with the death of their worker."""
    CUT = auto()
    """Connections that a stop has reset."""
    LOG_DROPPED = auto()
    """Lines that the log could not take."""
    DATAGRAMS = auto()
    """Datagrams ever answered."""
    DATAGRAM_BYTES = auto()
    """Their bytes, the same out as in."""
    DROPPED = auto()
    """Datagrams ever dropped, a column for each reason in the order of DropReason: this is the first."""


COLUMNS = len(Column) - 1 + len(DropReason)


class Scoreboard:
    """All rows. Made by the supervisor before it forks."""

    def __init__(self) -> None:
        # One cell more than the rows need says how many rows were ever used, so that sums need not read all of them.
        self.cells = memoryview(mmap.mmap(-1, (COLUMNS * ROWS + 1) * 8)).cast("Q")
        self.cells[-1] = 1
        self.lock = os.memfd_create("echod-admission")
        self.addresses = AddressTable(ROWS)

    @property
    def used(self) -> int:
        """How many rows were ever used: the first so many."""
        return self.cells[-1]

    def column(self, column: int) -> memoryview:
        """Return one number of all rows that were ever used."""
        start = column * ROWS
        return self.cells[start : start + self.used]

    def total(self, column: int) -> int:
        """Return the sum of one number over all rows."""
        return sum(self.column(column))

    def row(self, number: int) -> Row:
        """Return the row of slot `number`."""
        return Row(self, number)

    def settle(self, number: int) -> int:
        """Close the books of a dead worker: what it had open is lost. Return how many connections that were."""
        row = self.row(number)
        lost = row[Column.ACTIVE]
        row[Column.ACTIVE] = 0
        row[Column.LOST] += lost
        row[Column.ACCEPTING] = 0
        self.addresses.clear(number)
        return lost

    def take_row(self, taken: Container[int]) -> Row:
        """Return the lowest row that is not `taken`; raise StopIteration when there is none."""
        number = next(number for number in range(1, ROWS) if number not in taken)
        self.cells[-1] = max(self.cells[-1], number + 1)
        return Row(self, number)


class Row:
    """One worker's numbers."""

    def __init__(self, board: Scoreboard, number: int) -> None:
        self.number = number
        self.board = board
        self._cells = board.cells

    def __getitem__(self, column: int) -> int:
        return self._cells[column * ROWS + self.number]

    def __setitem__(self, column: int, value: int) -> None:
        self._cells[column * ROWS + self.number] = value


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
        if not self.per_address and not admission.near(self._board.total(Column.ACTIVE), self.limit):
            return True
        try:
            fcntl.lockf(self._board.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        self._locked = True
        return True

    def shut(self) -> None:
        """End what `open` began."""
        if self._locked:
            fcntl.lockf(self._board.lock, fcntl.LOCK_UN)
            self._locked = False

    def admit(self, key: int) -> int | RefuseReason:
        """Count one connection in and return its id, or why there are enough; `key` is its address's, 0 for none."""
        row = self._row
        row[Column.ACTIVE] += 1
        if self._board.total(Column.ACTIVE) > self.limit:
            row[Column.ACTIVE] -= 1
            return RefuseReason.OVER_LIMIT
        if key and not self.enter(key):
            row[Column.ACTIVE] -= 1
            return RefuseReason.OVER_ADDRESS_LIMIT
        row[Column.ACCEPTED] += 1
        return self._number(row[Column.ACCEPTED] + row[Column.REFUSED])

    def enter(self, key: int) -> bool:
        """Count one connection of an address in, unless it has enough."""
        table, row = self._board.addresses, self._row.number
        if not table.enter(row, key):
            return False
        if table.total(key, self._board.used) <= self.per_address:
            return True
        table.leave(row, key)
        return False

    def refuse(self) -> int:
        """Count one connection that was turned away and return an id for it."""
        row = self._row
        row[Column.REFUSED] += 1
        return self._number(row[Column.ACCEPTED] + row[Column.REFUSED])

    def leave(self, key: int) -> None:
        """Count one connection out, with the key that it came in with."""
        self._row[Column.ACTIVE] -= 1
        if key:
            self._board.addresses.leave(self._row.number, key)

    def crowded(self) -> bool:
        """Tell whether this worker has many more connections than the mean of those that accept."""
        accepting = self._board.column(Column.ACCEPTING)
        active = self._board.column(Column.ACTIVE)
        # A row may be added between the two looks; it has nothing to count yet.
        total = sum(count for count, takes in zip(active, accepting, strict=False) if takes)
        return admission.steps_aside(self._row[Column.ACTIVE], total, sum(accepting))

    def _number(self, serial: int) -> int:
        return serial * ROWS + self._row.number  # unique over all workers, and over the workers of a slot


class Tally:
    """Counts the datagrams of one worker."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._columns = {reason: Column.DROPPED + number for number, reason in enumerate(DropReason)}

    def echoed(self, count: int) -> None:
        """Count one that was sent back, of `count` bytes."""
        self._row[Column.DATAGRAMS] += 1
        self._row[Column.DATAGRAM_BYTES] += count

    def dropped(self, reason: DropReason) -> None:
        """Count one that was not."""
        self._row[self._columns[reason]] += 1
