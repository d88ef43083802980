"""Who may come in, and which worker should open the door.

Rule: pure arithmetic over counts; the scoreboard supplies them, the listener acts.
"""

from __future__ import annotations

EVEN_ENOUGH = 1.1
"""How far above the mean a worker's connections may be before it steps aside."""

SMALL_CHANGE = 4
"""Connections that are never worth stepping aside for."""


def steps_aside(own: int, total: int, workers: int) -> bool:
    """Tell whether a worker with `own` of `total` connections should leave the next ones to its siblings.

    Never true for all of them: someone is always at or below the mean.
    """
    return own * workers > total * EVEN_ENOUGH + SMALL_CHANGE * workers


class Bucket:
    """Lets so many through a second on the average, and a burst at once after a quiet time (a token bucket).

    Without a `burst` that is what a second brings.
    """

    __slots__ = ("_burst", "_filled", "_rate", "_tokens")

    def __init__(self, rate: float, now: float, burst: float = 0.0) -> None:
        self._rate = rate
        self._burst = max(burst or rate, 1.0)
        self._tokens = self._burst
        self._filled = now

    def adjust(self, rate: float, now: float, burst: float = 0.0) -> None:
        """Use another rate and burst from now on; the tokens that are left stay, as many as the burst allows."""
        self._fill(now)
        self._rate = rate
        self._burst = max(burst or rate, 1.0)
        self._tokens = min(self._tokens, self._burst)

    def take(self, now: float) -> bool:
        """Let one through, if one may."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
