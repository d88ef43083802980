"""How many connections each address has, over all workers, in memory that they share.

Rules
    A row for each worker, and one writer for each row, as in `scoreboard`: no locks; a dead worker's row is cleared.
    What stands in the row of another worker is not trusted: it is added up and compared, and nothing else.
    Bounded, whatever peers do: a row has sets of 16 places, the address decides which set. A place whose count is 0 is
    free. When all 16 are taken the address finds no place, which a connection must not pass for.
    Pages that nobody has written to take no memory.

Known limit: 16 addresses that share a set, out of 2,048 sets, keep a seventeenth out of that worker. With 10,000
addresses in one worker that is one in some 30,000; who wants to bring it about needs thousands of addresses.
"""

from __future__ import annotations

from echod.observe.shared_rows import SharedRows

SETS = 2048
WAYS = 16

_SET = 2 * WAYS  # cells of a set: its keys, then their counts
_ROW = SETS * _SET
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: neighbours come into different sets (Knuth, TAOCP 6.4)


class AddressTable:
    """The connections of each address, by its key."""

    def __init__(self, rows: int) -> None:
        self.memory = SharedRows("echod-addresses", rows, _ROW)
        self._cells = self._own = self.memory.cells
        self._own_start = 0  # which cell of all is the first of `_own`

    def own(self, row: int) -> None:
        """Be able to write to `row` only, in a forked process; see `SharedRows.own`."""
        self._own = self.memory.own(row)
        self._own_start = row * _ROW
        self._cells = self.memory.cells

    def total(self, key: int, rows: int) -> int:
        """Return the connections of an address in the first `rows` rows."""
        found, first = 0, _place(0, key)
        for start in range(first, first + rows * _ROW, _ROW):
            keys = self._cells[start : start + WAYS].tolist()
            if key in keys:
                found += self._cells[start + WAYS + keys.index(key)]
        return found

    def enter(self, row: int, key: int) -> bool:
        """Count one connection in; False when there is no place for its address."""
        own, start = self._own, _place(row, key) - self._own_start
        keys = own[start : start + WAYS].tolist()
        if key in keys:
            way = keys.index(key)
        else:
            counts = own[start + WAYS : start + _SET].tolist()
            if 0 not in counts:
                return False
            way = counts.index(0)
            own[start + way] = key
        own[start + WAYS + way] += 1
        return True

    def leave(self, row: int, key: int) -> None:
        """Count one connection out."""
        own, start = self._own, _place(row, key) - self._own_start
        way = own[start : start + WAYS].tolist().index(key)
        own[start + WAYS + way] -= 1

    def clear(self, row: int) -> None:
        """Forget a dead worker's connections, and give back their memory."""
        self.memory.clear(row)


def _place(row: int, key: int) -> int:
    return row * _ROW + (key * _SPREAD % 2**64 >> 53) * _SET
