"""How many connections each address has, over all workers, in memory that they share.

Rules
    A row for each worker, and one writer for each row, as in `scoreboard`: no locks; a dead worker's row is cleared.
    Bounded, whatever peers do: a row has sets of 16 places, the address decides which set. A place whose count is 0 is
    free. When all 16 are taken the address finds no place, which a connection must not pass for.
    Pages that nobody has written to take no memory.

Known limit: 16 addresses that share a set, out of 2,048 sets, keep a seventeenth out of that worker. With 10,000
addresses in one worker that is one in some 30,000; who wants to bring it about needs thousands of addresses.
"""

from __future__ import annotations

import mmap

SETS = 2048
WAYS = 16

_CELL = 8  # bytes
_MAP_NORESERVE = 0x4000  # mmap(2); the mmap module of Python 3.11 does not name it
_SET = 2 * WAYS  # cells of a set: its keys, then their counts
_ROW = SETS * _SET
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: neighbours come into different sets (Knuth, TAOCP 6.4)


class AddressTable:
    """The connections of each address, by its key."""

    def __init__(self, rows: int) -> None:
        self._memory = mmap.mmap(-1, rows * _ROW * _CELL, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        self._cells = memoryview(self._memory).cast("Q")

    def total(self, key: int, rows: int) -> int:
        """Return the connections of an address in the first `rows` rows."""
        found = 0
        for row in range(rows):
            start = _place(row, key)
            keys = self._cells[start : start + WAYS].tolist()
            if key in keys:
                found += self._cells[start + WAYS + keys.index(key)]
        return found

    def enter(self, row: int, key: int) -> bool:
        """Count one connection in; False when there is no place for its address."""
        start = _place(row, key)
        keys = self._cells[start : start + WAYS].tolist()
        if key in keys:
            way = keys.index(key)
        else:
            counts = self._cells[start + WAYS : start + _SET].tolist()
            if 0 not in counts:
                return False
            way = counts.index(0)
            self._cells[start + way] = key
        self._cells[start + WAYS + way] += 1
        return True

    def leave(self, row: int, key: int) -> None:
        """Count one connection out."""
        start = _place(row, key)
        way = self._cells[start : start + WAYS].tolist().index(key)
        self._cells[start + WAYS + way] -= 1

    def clear(self, row: int) -> None:
        """Forget a dead worker's connections, and give back their memory."""
        self._memory.madvise(mmap.MADV_REMOVE, row * _ROW * _CELL, _ROW * _CELL)


def _place(row: int, key: int) -> int:
    return row * _ROW + (key * _SPREAD % 2**64 >> 53) * _SET
