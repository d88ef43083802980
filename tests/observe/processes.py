"""Rows of a scoreboard, and processes that do something with it."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NoReturn

from echod.observe.scoreboard import Column, Row, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable


def rows(board: Scoreboard, count: int) -> list[Row]:
    """Take `count` rows."""
    return [board.take_row(range(1, number + 1)) for number in range(count)]


def active(board: Scoreboard, *counts: int) -> list[Row]:
    """Take a row for each of `counts`, all of them accepting, with so many connections."""
    taken = rows(board, len(counts))
    for row, count in zip(taken, counts, strict=True):
        row[Column.ACTIVE] = count
        row[Column.ACCEPTING] = 1
    return taken


def child(stack: ExitStack, live: Callable[[], None]) -> int:
    """Fork a process that does `live` and is gone; it is killed in the end, if it is still there."""
    pid = os.fork()
    if not pid:
        _live_and_leave(live)

    def reap() -> None:
        with suppress(ChildProcessError, ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    stack.callback(reap)
    return pid


def _live_and_leave(live: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        live()
        status = 0
    finally:
        os._exit(status)


def status(pid: int) -> int:
    """Wait for a child, and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
