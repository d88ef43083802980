"""What a process has inherited: standard streams that may be missing, and descriptors that are not its own.

Rule: asks the kernel what is open rather than counting up to a limit: what was opened before the limit was lowered lies
above it.

Fails: StartError from `open_standard_streams`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from echod.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Container


def open_standard_streams() -> None:
    """Open /dev/null for each of 0 to 2 that is closed; a socket would get that number, and what is printed."""
    for fd, name in enumerate(("input", "output", "error")):
        try:
            os.fstat(fd)
        except OSError:
            _open_null(name)  # the lowest number that is free, which is this one
    # The interpreter has None for what was closed when it started.
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _open_null(name: str) -> None:
    try:
        os.open(os.devnull, os.O_RDWR)
    except OSError as error:
        raise StartError(
            f"standard {name} is closed, and {os.devnull} cannot take its place: {error.strerror}; make that device "
            f"available (mknod -m 666 {os.devnull} c 1 3) or leave standard {name} open"
        ) from None


def close_all_but(kept: Container[int]) -> None:
    """Close every descriptor that is not one of `kept`."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        fd = int(entry.name)
        if fd not in kept:
            with suppress(OSError):  # that of the listing is closed already
                os.close(fd)
