"""The numbers of all processes, in memory that they share.

Rules
    Shared memory of 64-bit cells: a row for each process, a column for each number. Each row has one writer, its
    process, or the supervisor once that is dead; all may read. No locks, since a worker may be stopped or killed at
    any moment. A worker cannot write to the row of another process (`shared_rows`).
    A worker may write anything to its own row. So every sum is at most MAX_TOTAL, which a log record and a page of
    metrics can hold, and `settle` leaves a row that its next owner can count on from. Wrong counts stay wrong: a worker
    that claims many connections makes its siblings refuse theirs.
    Rows outlive workers: what is counted up never goes back, so that ids and sums stay true.
    What a connection was is counted as closed once its record was handed to the log (`tally`): what a killed worker had
    not come to say is lost, and the books of its row are closed with that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import TYPE_CHECKING

from echod.events import CloseReason, DropReason, RefuseReason
from echod.observe.addresses import AddressTable
from echod.observe.shared_rows import SharedRows

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

ROWS = 256
"""The supervisor has row 0; of 128 workers, retiring ones among them, each has one, and a connection's id needs eight
bits for it."""

MAX_TOTAL = 2**63 - 1
"""The largest sum of a column."""

MAX_SERIAL = 2**54 - 1
"""Connections that a row may have counted when its next owner takes it: their ids must fit 64 bits."""


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
    ROWS_USED = auto()
    """How many rows were ever used, so that sums need not read all of them."""


# By themselves, since every connection asks: before Python 3.12 a member of an enumeration costs a call.
_ACTIVE, _ACCEPTED, _REFUSED = Column.ACTIVE, Column.ACCEPTED, Column.REFUSED
_ROWS_USED = Column.ROWS_USED


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
        self.memory = SharedRows("echod-scoreboard", ROWS, COLUMNS)
        self.cells = self.memory.cells
        self.cells[_ROWS_USED] = 1
        self.stride = self.memory.stride
        self.addresses = AddressTable(ROWS)

    @property
    def used(self) -> int:
        """How many rows were ever used: the first so many."""
        return self.cells[_ROWS_USED]

    def filenos(self) -> tuple[int, int]:
        """Return the descriptors that a daemon keeps when it detaches."""
        return self.memory.fd, self.addresses.memory.fd

    def close(self) -> None:
        """Close all descriptors; what is mapped stays."""
        for fd in self.filenos():
            os.close(fd)

    def column(self, column: int) -> memoryview:
        """Return one number of all rows that were ever used."""
        return self.cells[column :: self.stride][: self.used]

    def total(self, column: int) -> int:
        """Return the sum of one number over all rows, MAX_TOTAL at most."""
        found = sum(self.column(column))
        return found if found <= MAX_TOTAL else MAX_TOTAL  # noqa: FURB136  # a call less, for each connection

    def row(self, number: int) -> Row:
        """Return the row of slot `number`."""
        start = number * self.stride
        return Row(self, number, self.cells[start : start + COLUMNS])

    def keep_from_children(self) -> None:
        """Let forked processes have no row but that which they `own`."""
        self.memory.keep_from_children()
        self.addresses.memory.keep_from_children()

    def own(self, number: int) -> Row:
        """Return the row of slot `number` in the process that was forked for it; see `SharedRows.own`."""
        row = Row(self, number, self.memory.own(number)[:COLUMNS])
        self.cells = self.memory.cells
        self.addresses.own(number)
        return row

    def settle(self, number: int) -> Lost:
        """Close the books of a dead worker: what it had open, or had not said to be closed, is lost."""
        row = self.row(number)
        for column in range(COLUMNS):
            row[column] = min(row[column], MAX_SERIAL if column in {_ACCEPTED, _REFUSED} else MAX_TOTAL)
        lost = Lost(
            max(0, row[Column.ACCEPTED] - sum(row[column] for column in CLOSED.values())),
            max(0, row[Column.RECEIVED] - row[Column.RECORDED_RECEIVED]),
            max(0, row[Column.ECHOED] - row[Column.RECORDED_ECHOED]),
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
        self.cells[_ROWS_USED] = max(self.used, number + 1)
        return self.row(number)


class Row:
    """One worker's numbers."""

    def __init__(self, board: Scoreboard, number: int, cells: memoryview) -> None:
        self.number = number
        self.board = board
        self.cells = cells
        """The numbers by column: for those who count often, a third of what an item of the row costs."""

    def __getitem__(self, column: int) -> int:
        return self.cells[column]

    def __setitem__(self, column: int, value: int) -> None:
        self.cells[column] = value
