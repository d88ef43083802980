"""The numbers of all processes, in memory that they share.

Rules
    One anonymous shared mapping of 64-bit cells: a row for each process, a column for each number. Each row has one
    writer, its process, or the supervisor once that is dead; all may read. No locks, since a worker may be stopped
    or killed at any moment.
    Rows outlive workers: what is counted up never goes back, so that ids and sums stay true.
    What a connection was is counted as closed once its record was handed to the log (`tally`): what a killed worker had
    not come to say is lost, and the books of its row are closed with that.
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
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import TYPE_CHECKING

from echod.core import admission
from echod.events import CloseReason, DropReason, RefuseReason
from echod.observe.addresses import AddressTable

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

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
    RECEIVED = auto()
    """Bytes that came in, those of open connections up to the last ping."""
    ECHOED = auto()
    """Bytes that went back, likewise."""
    RECORDED_RECEIVED = auto()
    """Those of the bytes that came in which a record has said: of connections that were closed, or lost."""
    RECORDED_ECHOED = auto()
    """The same of those that went back."""
    DISCARDED = auto()
    """Bytes that were read and thrown away by connections that were ending."""
    CUT = auto()
    """Connections that a stop has reset."""
    LOG_DROPPED = auto()
    """Lines that the log could not take."""
    CRASHED = auto()
    """Exceptions that a handler has let out."""
    DATAGRAMS = auto()
    """Datagrams ever answered."""
    DATAGRAM_BYTES = auto()
    """Their bytes, the same out as in."""
    PID = auto()
    """The process that has the row; 0 when none does."""
    READY = auto()
    """1 while the daemon serves and does not stop; this and those below stand in the supervisor's row only."""
    LIMIT = auto()
    """Connections that may be open."""
    WORKERS = auto()
    """Workers that the configuration asks for."""
    DIED = auto()
    """Workers that ended although nobody had asked them to."""
    RELOADED = auto()
    """1 unless the last reload was refused."""
    RELOADED_AT = auto()
    """When the configuration came into force, in seconds of the wall clock."""


# By themselves, since every connection asks: before Python 3.12 a member of an enumeration costs a call.
_ACTIVE, _ACCEPTED, _REFUSED = Column.ACTIVE, Column.ACCEPTED, Column.REFUSED


@dataclass(frozen=True)
class Histogram:
    """Columns that say how often something took how long: the sum in microseconds, then a count for each bucket."""

    first: int
    bounds: tuple[float, ...]
    """The upper bound of each bucket in seconds; what is above all of them has one more."""

    @property
    def end(self) -> int:
        """The first column after those of the histogram."""
        return self.first + len(self.bounds) + 2


def _each(first: int, reasons: Iterable[str]) -> dict[str, int]:
    return {reason: first + number for number, reason in enumerate(reasons)}


REFUSED = _each(len(Column), RefuseReason)
"""Where connections that were turned away are counted by reason."""

CLOSED = _each(len(Column) + len(REFUSED), CloseReason)
"""Where connections that have ended are counted by reason."""

DROPPED = _each(len(Column) + len(REFUSED) + len(CLOSED), DropReason)
"""Where datagrams that were not answered are counted by reason."""

DURATIONS = Histogram(
    len(Column) + len(REFUSED) + len(CLOSED) + len(DROPPED),
    (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 600, 3600, 14400, 86400),
)
"""How long connections lived."""

STALLS = Histogram(DURATIONS.end, (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))
"""How long a turn of the loop kept all connections waiting."""

COLUMNS = STALLS.end


@dataclass(frozen=True)
class Lost:
    """What a dead worker took with it: connections, and the bytes of theirs that were counted."""

    connections: int
    received: int
    echoed: int


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
        return self.cells[column::COLUMNS][: self.used]

    def total(self, column: int) -> int:
        """Return the sum of one number over all rows."""
        return sum(self.column(column))

    def row(self, number: int) -> Row:
        """Return the row of slot `number`."""
        return Row(self, number)

    def settle(self, number: int) -> Lost:
        """Close the books of a dead worker: what it had open, or had not said to be closed, is lost."""
        row = self.row(number)
        open_still = row[Column.ACCEPTED] - sum(row[column] for column in CLOSED.values())
        lost = Lost(
            open_still,
            row[Column.RECEIVED] - row[Column.RECORDED_RECEIVED],
            row[Column.ECHOED] - row[Column.RECORDED_ECHOED],
        )
        row[CLOSED[CloseReason.WORKER_LOST]] += lost.connections
        row[Column.RECORDED_RECEIVED] = row[Column.RECEIVED]
        row[Column.RECORDED_ECHOED] = row[Column.ECHOED]
        row[Column.ACTIVE] = row[Column.ACCEPTING] = row[Column.PID] = 0
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
        self.cells = board.cells[number * COLUMNS : (number + 1) * COLUMNS]
        """The numbers by column: for those who count often, a third of what an item of the row costs."""

    def __getitem__(self, column: int) -> int:
        return self.cells[column]

    def __setitem__(self, column: int, value: int) -> None:
        self.cells[column] = value


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
