"""What `echod status --json` prints: the state of the daemon at the moment of the question.

Rule: a key never changes its meaning; new ones may join, so a program that reads the document ignores what it does not
know. `echod show status-schema` prints this as JSON Schema.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

import echod
from echod.observe.scoreboard import Column

if TYPE_CHECKING:
    from echod.process.reload import Report
    from echod.process.reports import Estate, Phase

Outcome = Literal["none", "in_progress", "ok", "rejected"]


class StatusTable(BaseModel):
    """What the tables of the document have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ListenerStatus(StatusTable):
    """One listener."""

    name: str
    """Its name in the configuration."""
    transport: str
    """How it is reached: "tcp", "udp" or "unix"."""
    address: str
    """The address in the configuration."""
    inherited: bool
    """Whether its sockets were passed by systemd."""
    bound: list[str]
    """The address of each socket, HOST:PORT or a path."""
    degraded: list[str] = []
    """Why clients do not reach a socket: interface_changed, interface_missing, path_removed or shut_down."""


class WorkerStatus(StatusTable):
    """One worker process."""

    slot: int
    """Its row of the scoreboard, from 1."""
    pid: int
    """Its process id, in the pid namespace of the supervisor."""
    retiring: bool
    """Whether it accepts no more and exits with its last connection."""


class ConnectionStatus(StatusTable):
    """Connections of all workers."""

    active: int
    """Open now."""
    accepted: int
    """Accepted since the start."""
    rejected: int
    """Closed as soon as they were accepted, by a limit or a rule."""


class TrafficStatus(StatusTable):
    """Bytes of all connections, those of open ones as of the last second."""

    receive: int
    """Received from clients."""
    transmit: int
    """Sent back."""


class DatagramStatus(StatusTable):
    """Datagrams over UDP."""

    answered: int
    """Datagrams sent back."""
    bytes: int
    """Their bytes."""


class LogStatus(StatusTable):
    """The log of all processes."""

    dropped: int
    """Lines that could not be written."""


class ReloadStatus(StatusTable):
    """The last reload."""

    count: int
    """Reloads since the start, the one in progress included."""
    outcome: Outcome
    """How it ended."""
    age: float | None = None
    """Seconds since it ended."""
    duration: float | None = None
    """Seconds that it took."""
    errors: list[str] = []
    """Why it was rejected."""
    exit_code: int | None = None
    """What `echod reload --wait` exits with: 0, 1, or 78 for a configuration error."""


class Status(StatusTable):
    """The daemon."""

    pid: int
    """The supervisor's process id, in its own pid namespace."""
    version: str
    """The version that runs."""
    state: Literal["starting", "ready", "reloading", "stopping"]
    """What the supervisor is doing."""
    uptime: float
    """Seconds since the start."""
    generation: int
    """The number of configurations that were in force, from 1."""
    listeners: list[ListenerStatus]
    """The listeners, that of [admin] included."""
    workers: list[WorkerStatus]
    """The worker processes."""
    connections: ConnectionStatus
    """Connections of the listeners; those of [admin] do not count."""
    io: TrafficStatus
    """Bytes of these connections."""
    datagrams: DatagramStatus
    """What UDP listeners did."""
    log: LogStatus
    """The log."""
    reload: ReloadStatus
    """How the last reload ended."""


def collect(estate: Estate, phase: Phase, generation: int, workers: list[WorkerStatus], reload: ReloadStatus) -> Status:
    """Return the state of the daemon now."""
    board = estate.board
    return Status(
        pid=os.getpid(),
        version=echod.__version__,
        state=phase.value,
        uptime=round(time.monotonic() - estate.born, 3),
        generation=generation,
        listeners=estate.doors.status(estate.settings.config.doors),
        workers=workers,
        connections=ConnectionStatus(
            active=board.total(Column.ACTIVE),
            accepted=board.total(Column.ACCEPTED),
            rejected=board.total(Column.REFUSED),
        ),
        io=TrafficStatus(receive=board.total(Column.RECEIVED), transmit=board.total(Column.ECHOED)),
        datagrams=DatagramStatus(answered=board.total(Column.DATAGRAMS), bytes=board.total(Column.DATAGRAM_BYTES)),
        log=LogStatus(dropped=board.total(Column.LOG_DROPPED)),
        reload=reload,
    )


def of_reload(report: Report | None, count: int) -> ReloadStatus:
    """Return what is known of the last reload, the `count`-th; None when there was none."""
    if report is None:
        return ReloadStatus(count=0, outcome="none")
    if report.finished is None:
        return ReloadStatus(count=count, outcome="in_progress")
    return ReloadStatus(
        count=count,
        outcome="ok" if report.ok else "rejected",
        age=round((time.monotonic_ns() - report.finished) / 1e9, 3),
        duration=report.duration,
        errors=report.error or [],
        exit_code=report.exit_code,
    )


def schema() -> str:
    """Return the JSON Schema of the document."""
    return json.dumps(Status.model_json_schema(), indent=2) + "\n"
