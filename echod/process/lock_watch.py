"""Finds the worker that keeps the admission lock from the others.

Rules
    Once a second the counts of failed attempts are compared. While one of them rises the holder is looked at ten times
    a second: one that is the holder at ten looks in a row, while the same worker waits for it all the time, keeps it.
    A worker waits if its count has risen from look to look. It starts again from 0 when the worker gets the lock, so
    under load no count rises for a second.
    A lock of an open file description has no process id. Who has one is found in /proc/PID/fdinfo (proc(5)).
    A look that comes late counts for nothing: when the supervisor was not on time, workers may not have been either.

Known limit: a hostile worker that pretends to wait can have a sibling killed that happens to hold the lock at ten looks
in a row. That takes a sibling that holds it nearly all the time. A lock of an open file description that a child of a
worker has, or a worker with more than MAX_DESCRIPTORS, or one that the supervisor may not look at, is not found.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from echod.net.reactor import Timer
from echod.observe.gate import lock_holder
from echod.observe.scoreboard import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from echod.net.reactor import Reactor
    from echod.observe.scoreboard import Scoreboard

LOOK_INTERVAL = 0.1
"""Seconds between looks at the holder."""

LATE_AFTER = 2 * LOOK_INTERVAL
"""Seconds after the look before from which on a look is late."""

MAX_LOOKS = 10
"""Looks at which a worker may be seen with the lock that another one waits for."""


MAX_DESCRIPTORS = 20_000
"""Descriptors of a worker that are looked at: a hostile one must not keep the supervisor busy. Takes some 0.1 s."""


class LockWatch:
    """Looks at the admission lock of one scoreboard."""

    def __init__(
        self, reactor: Reactor, board: Scoreboard, workers: Iterable[int], found: Callable[[int], None]
    ) -> None:
        """Call `found` with the process id of each of `workers`, or of a child of theirs, that keeps the lock."""
        self._reactor = reactor
        self._board = board
        self._workers = workers
        self._found = found
        self._waits: list[int] = []
        self._suspect: int | None = None
        self._blocked: set[int] = set()
        """Rows whose workers have waited at every look so far."""
        self._looks = 0
        self._looked_at = 0.0
        self._timer = Timer(self._look)
        reactor.add(self._timer)

    def check(self, now: float) -> None:
        """Begin to look if a worker has waited since the last call; call it once a second."""
        if self._suspect is None and self._waiting():
            self._look(now)

    def _look(self, now: float) -> None:
        waiting, holder = self._waiting(), lock_holder(self._board)
        is_late = now - self._looked_at >= LATE_AFTER
        self._blocked &= waiting
        self._looks += 1
        self._looked_at = now
        if is_late or holder != self._suspect or not self._blocked:
            self._suspect, self._blocked, self._looks = holder, waiting, 0
        elif self._looks == MAX_LOOKS and holder is not None:
            self._suspect = None
            for pid in [holder] if holder > 0 else _holders(self._workers, self._board.lock):
                self._found(pid)
        if self._suspect is not None:
            self._reactor.schedule(self._timer, now + LOOK_INTERVAL)

    def _waiting(self) -> set[int]:
        """Return the rows whose count has risen since the last call."""
        before, self._waits = self._waits, self._board.column(Column.LOCK_WAITS).tolist()
        return {row for row, counts in enumerate(zip(before, self._waits, strict=False)) if counts[1] > counts[0]}


def _holders(pids: Iterable[int], fd: int) -> list[int]:
    """Return which of `pids` have a lock on the file of `fd`."""
    file = f":{os.fstat(fd).st_ino} "
    found = []
    for pid in pids:
        with suppress(OSError):  # it has ended, or may not be looked at
            entries = islice(Path(f"/proc/{pid}/fdinfo").iterdir(), MAX_DESCRIPTORS)
            lines = chain.from_iterable(entry.read_text(errors="replace").splitlines() for entry in entries)
            if any(line.startswith("lock:") and file in line for line in lines):
                found.append(pid)
    return found
