"""A reload, from the signal to the last worker's answer.

Rule: a transaction. Everything that can fail (reading, validating, binding, opening the log) is done before anything
changes, and undone when a later step fails. From `commit` on nothing refuses any more.

Fails: EchodError from `prepare`, with nothing changed.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from echod.config.plan import Plan, plan
from echod.process import channel, settings

if TYPE_CHECKING:
    from echod.process.doors import Doors
    from echod.process.settings import Settings


@dataclass
class Report:
    """How a reload went. Times are CLOCK_MONOTONIC in nanoseconds."""

    started: int = field(default_factory=time.monotonic_ns)
    finished: int | None = None
    ok: bool | None = None
    error: list[str] | None = None
    exit_code: int | None = None

    def end(self, exit_code: int, error: list[str] | None = None) -> None:
        """Note the outcome."""
        self.finished = time.monotonic_ns()
        self.ok = not exit_code
        self.error = error
        self.exit_code = exit_code

    @property
    def duration(self) -> float:
        """Seconds from the start to the end, or until now."""
        return round(((self.finished or time.monotonic_ns()) - self.started) / 1e9, 6)


@dataclass(frozen=True)
class Prepared:
    """Everything new, bound and open, but not yet in use."""

    settings: Settings
    plan: Plan
    memfd: int
    """The configuration, as the workers will be sent it."""
    log: int | None
    """A descriptor of the new log, or None when the log stays where it is."""


def prepare(current: Settings, doors: Doors) -> Prepared:
    """Read the configuration again and open all that it asks for beyond what is open."""
    new = current.again()
    changes = plan(current.config, new.config, new.inherited)
    with ExitStack() as undo:
        doors.open(changes.bind, keep=changes.keep)
        undo.callback(doors.close, changes.bind)
        memfd = channel.to_memfd(new.config, new.certificates)
        undo.callback(os.close, memfd)
        moved = new.config.log.file != current.config.log.file
        prepared = Prepared(new, changes, memfd, settings.open_log(new) if moved else None)
        undo.pop_all()
    return prepared
