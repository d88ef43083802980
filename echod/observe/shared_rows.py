"""Rows of 64-bit numbers that all processes read, and of which each writes its own.

Rules
    The rows lie in a memfd, each on pages of its own. The supervisor maps them all. Forked processes do not inherit
    that mapping (MADV_DONTFORK, madvise(2)): each maps its own row, and the others from a descriptor that is open for
    reading only, so that mprotect(2) cannot make them writable. It keeps no descriptor of the memfd.
    The memfd is sealed against a change of its size: a mapping beyond its end would raise SIGBUS in all processes.

Known limit: a worker that has the supervisor's uid may open the memfd again through /proc.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource

from echod.errors import StartError

CELL_SIZE = 8
"""Bytes of a number."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedRows:
    """The rows, as the supervisor makes them before it forks."""

    def __init__(self, name: str, rows: int, cells: int) -> None:
        """Make `rows` rows of at least `cells` numbers, all 0; raise StartError when the system denies it."""
        pages = -(-cells * CELL_SIZE // mmap.PAGESIZE)
        self._row_size = pages * mmap.PAGESIZE
        self.stride = self._row_size // CELL_SIZE
        """Numbers from the start of one row to that of the next."""
        try:
            self.fd = _memfd(name, rows * self._row_size)
            # Kept for as long as the process lives: freed in a forked process, it would unmap what lies there by then.
            self._memory = mmap.mmap(self.fd, rows * self._row_size)
        except OSError as error:
            raise StartError(f"no shared memory for the workers: {error.strerror}", errno=error.errno) from None
        self.cells = memoryview(self._memory).cast("Q")
        """All rows; read-only after `own`."""

    def keep_from_children(self) -> None:
        """Let processes that are forked from now on have no access before they call `own`."""
        self._memory.madvise(mmap.MADV_DONTFORK)

    def own(self, row: int) -> memoryview:
        """Return the numbers of `row`, the only one that this forked process can write to from now on.

        The process must close the descriptors that it has inherited afterwards. Raise OSError without memory or
        descriptors.
        """
        reader = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        self.cells = memoryview(mmap.mmap(reader, 0, prot=mmap.PROT_READ)).cast("Q")
        return memoryview(mmap.mmap(self.fd, self._row_size, offset=row * self._row_size)).cast("Q")

    def clear(self, row: int) -> None:
        """Set all numbers of `row` to 0, and give back its memory."""
        self._memory.madvise(mmap.MADV_REMOVE, row * self._row_size, self._row_size)


def _memfd(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # RLIMIT_FSIZE is meant for files on disks, and holds for this one too (setrlimit(2)).
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        os.ftruncate(fd, size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
