"""What the supervisor tells about the daemon: its first words, snapshot and state file, and its row of the scoreboard.

Rule: pure of effects, but for that row. It reads what it is given and returns what is to be said; the supervisor says
it.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import echod
from echod import events
from echod.observe.scoreboard import Column
from echod.process import reload
from echod.process.state import reload_outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from echod.observe.log import Log
    from echod.observe.scoreboard import Scoreboard
    from echod.process.doors import Doors
    from echod.process.privileges import RunAs
    from echod.process.settings import Settings
    from echod.process.systemd import Manager


class Phase(Enum):
    """What the supervisor is doing, in the words of the state file."""

    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"


@dataclass
class Estate:
    """What was prepared before the daemon could be born, and is the supervisor's from then on."""

    settings: Settings
    directory: Path
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
        directory=str(estate.directory),
    )
    yield config(estate, generation=1)
    yield from now.adjustments
    if estate.who:
        yield events.PrivilegesDropped(user=estate.who.user, group=estate.who.group)


def config(estate: Estate, generation: int) -> events.ConfigLoaded:
    """Say which configuration is in force."""
    path = estate.settings.path
    return events.ConfigLoaded(path=str(path) if path else None, generation=generation)


def state(
    estate: Estate, phase: Phase, generation: int, members: list[dict[str, Any]], report: reload.Report | None
) -> dict[str, Any]:
    """Return the document of the state file."""
    board = estate.board
    return {
        "pid": os.getpid(),
        "version": echod.__version__,
        "state": phase.value,
        "started": round(estate.born * 1e9),
        "generation": generation,
        "listeners": estate.doors.state(estate.settings.config.doors),
        "workers": members,
        "reload": reload.state(report),
        "connections": {
            "active": board.total(Column.ACTIVE),
            "accepted": board.total(Column.ACCEPTED),
            "refused": board.total(Column.REFUSED),
        },
        "io": {"receive": board.total(Column.RECEIVED), "transmit": board.total(Column.ECHOED)},
        "datagrams": {"answered": board.total(Column.DATAGRAMS), "bytes": board.total(Column.DATAGRAM_BYTES)},
        "log": {"dropped": board.total(Column.LOG_DROPPED)},
    }


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


def status(document: dict[str, Any], uptime: float) -> events.StatusReported:
    """Say what the state file says, in one line."""
    return events.StatusReported(
        state=document["state"],
        generation=document["generation"],
        uptime=uptime,
        listeners=[f"{listener['name']} {' '.join(listener['bound'])}" for listener in document["listeners"]],
        workers=[member["pid"] for member in document["workers"]],
        active=document["connections"]["active"],
        accepted=document["connections"]["accepted"],
        refused=document["connections"]["refused"],
        received=document["io"]["receive"],
        echoed=document["io"]["transmit"],
        datagrams=document["datagrams"]["answered"],
        reload=reload_outcome(document["reload"]),
        errors=(document["reload"] or {}).get("error"),
        log_dropped=document["log"]["dropped"],
    )
