"""Counts what one worker does, into its row of the scoreboard.

Rules
    Nothing is counted per message: a stream says what has moved when it ends, and while it is open with each ping.
    That a connection has ended is counted by `post`, once its record was handed to the log, so that of what a kill
    interrupts log and counters say the same: the connection was lost with its worker, and there is no record of it.

Known limit: of a killed worker's open connections neither knows the bytes since its last ping, a second at most. A kill
between a turn's write to the log and its `post`, some microseconds, leaves a record of what is counted as lost; and the
records that a slow reader of the log had not taken by then are lost, of connections that are counted as closed.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from echod.observe.scoreboard import CLOSED, DROPPED, DURATIONS, STALLS, Column

if TYPE_CHECKING:
    from echod.core.connection import Connection
    from echod.events import DropReason
    from echod.observe.scoreboard import Histogram, Row

# By themselves, since every connection asks: before Python 3.12 a member of an enumeration costs a call.
_RECEIVED, _ECHOED, _DISCARDED = Column.RECEIVED, Column.ECHOED, Column.DISCARDED
_RECORDED_RECEIVED, _RECORDED_ECHOED = Column.RECORDED_RECEIVED, Column.RECORDED_ECHOED

STALL = 0.001
"""Seconds from which on a turn of the loop is counted among those that made others wait."""


class Tally:
    """The counts of one worker."""

    def __init__(self, row: Row) -> None:
        self._cells = row.cells
        self.ended: list[Connection] = []
        """Those that `post` is to count."""

    def moved(self, received: int, echoed: int) -> None:
        """Count bytes that a connection has taken and given."""
        self._cells[_RECEIVED] += received
        self._cells[_ECHOED] += echoed

    def closed(self, connection: Connection) -> None:
        """Count one connection that has ended, with the next `post`."""
        self.ended.append(connection)

    def post(self) -> None:
        """Count those that have ended since the last time; the log has their records by now."""
        cells = self._cells
        for connection in self.ended:
            assert connection.reason is not None  # noqa: S101  # whoever is closed has one
            cells[CLOSED[connection.reason]] += 1
            cells[_RECORDED_RECEIVED] += connection.received
            cells[_RECORDED_ECHOED] += connection.echoed
            cells[_DISCARDED] += connection.discarded
            self._note(DURATIONS, connection.lifetime)
        self.ended.clear()

    def stalled(self, seconds: float) -> None:
        """Count a turn of the loop that took STALL or more."""
        self._note(STALLS, seconds)

    def echoed(self, count: int) -> None:
        """Count one datagram that was sent back, of `count` bytes."""
        self._cells[Column.DATAGRAMS] += 1
        self._cells[Column.DATAGRAM_BYTES] += count

    def dropped(self, reason: DropReason) -> None:
        """Count one that was not."""
        self._cells[DROPPED[reason]] += 1

    def _note(self, histogram: Histogram, seconds: float) -> None:
        self._cells[histogram.first] += round(seconds * 1_000_000)
        self._cells[histogram.first + 1 + bisect_left(histogram.bounds, seconds)] += 1
