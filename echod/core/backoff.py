"""How long to wait before a dead worker is replaced.

Rule: the wait doubles while workers keep dying young and starts over once one has lived long enough.
"""

from __future__ import annotations

FIRST = 0.1
"""Seconds before the first replacement: short enough that a crash is hardly noticed."""

LONGEST = 10.0
"""Seconds between replacements of a worker that always dies at once: it costs next to nothing."""

PROVEN = 10.0
"""Seconds of life after which a worker's death counts as the first one again."""


class Backoff:
    """The waiting time of one worker slot."""

    def __init__(self) -> None:
        self._next = FIRST

    def died(self, lifetime: float) -> float:
        """Return the seconds to wait after a worker that lived for `lifetime` seconds."""
        delay = FIRST if lifetime >= PROVEN else self._next
        self._next = min(delay * 2, LONGEST)
        return delay
