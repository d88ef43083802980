"""What a process has inherited: standard streams that may be missing, and descriptors that are not its own.

Rule: asks the kernel what is open rather than counting up to a limit: what was opened before the limit was lowered lies
above it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container


def open_standard_streams() -> None:
    """Open /dev/null for each of 0 to 2 that is closed; a socket would get that number, and what is printed."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    # The interpreter has None for what was closed when it started.
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def close_all_but(kept: Container[int]) -> None:
    """Close every descriptor that is not one of `kept`."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        fd = int(entry.name)
        if fd not in kept:
            with suppress(OSError):  # that of the listing is closed already
                os.close(fd)
