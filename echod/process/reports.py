"""What the supervisor tells about the daemon: its first words, its snapshot, and its row of the scoreboard.

Rule: pure of effects, but for that row. It reads what it is given and returns what is to be said; the supervisor says
it.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import echod
from echod import events
from echod.observe.scoreboard import Column

if TYPE_CHECKING:
    from collections.abc import Iterator

    from echod.observe.log import Log
    from echod.observe.scoreboard import Scoreboard
    from echod.process import reload
    from echod.process.doors import Doors
    from echod.process.privileges import RunAs
    from echod.process.runtime_directory import RuntimeDirectory
    from echod.process.settings import Settings
    from echod.process.status import Status
    from echod.process.systemd import Manager


class Phase(Enum):
    """What the supervisor is doing, in the words of `echod status`."""

    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"


@dataclass
class Estate:
    """What was prepared before the daemon could be born, and is the supervisor's from then on."""

    settings: Settings
    directory: RuntimeDirectory
    doors: Doors
    log: Log
    board: Scoreboard
    who: RunAs | None
    manager: Manager
    nohup: bool
    """Whether the starter wants the daemon to outlive its terminal (nohup(1))."""
    born: float = field(default_factory=time.monotonic)
    """When that was."""


def started(estate: Estate) -> Iterator[events.Event]:
    """Say who has started, with what."""
    now = estate.settings
    yield events.ServiceStarted(
        version=echod.__version__,
        pid=os.getpid(),
        python=platform.python_version(),
        workers=now.config.daemon.worker_count,
        poller=now.poller,
        directory=str(estate.directory.path),
    )
    yield config(estate, generation=1)
    yield from now.adjustments
    if estate.who:
        yield events.PrivilegesDropped(user=estate.who.user, group=estate.who.group)


def config(estate: Estate, generation: int) -> events.ConfigLoaded:
    """Say which configuration is in force."""
    path = estate.settings.path
    return events.ConfigLoaded(path=str(path) if path else None, generation=generation)


def post(estate: Estate, phase: Phase, report: reload.Report | None) -> None:
    """Write what metrics and health say of the daemon as such into the supervisor's row."""
    row, config = estate.board.row(0), estate.settings.config
    row[Column.PID] = os.getpid()
    row[Column.READY] = phase in {Phase.READY, Phase.RELOADING}
    row[Column.LIMIT] = config.limits.max_connections
    row[Column.WORKERS] = config.daemon.worker_count
    if phase is Phase.READY:
        row[Column.RELOADED] = report is None or bool(report.ok)
        if row[Column.RELOADED]:
            row[Column.RELOADED_AT] = round(time.time())


def summary(estate: Estate, generation: int, report: reload.Report | None) -> str:
    """Say in one sentence how the daemon serves, for the service manager."""
    workers = estate.settings.config.daemon.worker_count
    serving = f"Serving with {workers} worker{'s' * (workers > 1)}, configuration generation {generation}"
    return f"{serving}; the last reload was refused: {report.error[0]}" if report and report.error else serving


def status(now: Status) -> events.StatusReported:
    """Return what `echod status` would print, as a log record."""
    return events.StatusReported(
        state=now.state,
        generation=now.generation,
        uptime=now.uptime,
        listeners=[f"{listener.name} {' '.join(listener.bound)}" for listener in now.listeners],
        workers=[worker.pid for worker in now.workers],
        active=now.connections.active,
        accepted=now.connections.accepted,
        refused=now.connections.rejected,
        received=now.io.receive,
        echoed=now.io.transmit,
        datagrams=now.datagrams.answered,
        reload=now.reload.outcome,
        errors=now.reload.errors or None,
        log_dropped=now.log.dropped,
    )
