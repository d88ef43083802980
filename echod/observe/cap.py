"""How many records of one event a process writes, so that a scanner's visit does not fill a disk.

Rule: each event has a share of its own: a flood of one hides no other. What is not written is counted, and said once
the time is over. A process counts for itself, since all of them together could not without locks.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD = 10.0
"""Seconds that the cap is counted over: clients who come all at once are no flood yet. journald takes 30."""


class Cap:
    """Lets `most` records of each event through in a period; 0 for any number."""

    def __init__(self, most: int, clock: Callable[[], float] = monotonic) -> None:
        self._most = most
        self._clock = clock
        self._ends = 0.0
        self._counts: dict[str, int] = {}

    def admits(self, name: str) -> bool:
        """Count one record of the event `name`, and tell whether it is to be written."""
        if not self._most:
            return True
        count = self._counts.get(name, 0) + 1
        if not self._counts:
            self._ends = self._clock() + PERIOD
        self._counts[name] = count
        return count <= self._most

    def due(self) -> bool:
        """Tell whether a period is over; then call `close`."""
        return bool(self._counts) and self._clock() >= self._ends

    def close(self) -> list[tuple[str, int]]:
        """End the period: return how many records of which events were not written in it."""
        over = [(name, count - self._most) for name, count in self._counts.items() if count > self._most]
        self._counts.clear()
        return over
