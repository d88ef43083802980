"""Runs one reload at a time, and answers the clients that asked for it.

Rules
    A reload is drafted (read and validated), waits for the names of new listeners, is prepared (bound and opened), and
    has ended when every worker serves it. Up to the last of these steps it can be refused, and changes nothing then.
    A request during a reload is answered by the next one, which begins after it; several share that one.

Fails: nothing raises; what is wrong ends the reload and is logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from echod import events
from echod.config.wording import printable
from echod.errors import EchodError, StartError
from echod.process import reload, reports, status
from echod.process.reports import Phase

if TYPE_CHECKING:
    from echod.config.listeners import Listener
    from echod.net.reactor import Reactor
    from echod.process.control_connection import ControlConnection
    from echod.process.reports import Estate
    from echod.process.status import ReloadStatus

STOPPING = StartError("the daemon is stopping")
"""The answer to a reload that comes too late."""


class Host(Protocol):
    """What a reload asks of the supervisor."""

    def enter(self, phase: Phase) -> None:
        """Be in this phase, and tell the service manager."""
        ...

    def move_log(self, descriptor: int) -> None:
        """Let all processes log to this descriptor."""
        ...

    def assign(self, memfd: int, now: float) -> None:
        """Let the workers serve the configuration in `memfd`."""
        ...


class Reloader:
    """The reload in progress, and what is known of the last one."""

    def __init__(self, host: Host, estate: Estate, reactor: Reactor) -> None:
        self.generation = 1
        """The number of configurations that were in force."""
        self.report: reload.Report | None = None
        """How the last reload went, or goes."""
        self.wanted = False
        """Whether another one is to begin."""
        self._host = host
        self._estate = estate
        self._reactor = reactor
        self._emit = estate.log.emit
        self._count = 0
        self._draft: reload.Draft | None = None
        self._prepared: reload.Prepared | None = None
        self._clients: list[ControlConnection] = []
        self._next_clients: list[ControlConnection] = []

    def request(self, client: ControlConnection) -> None:
        """Answer `client` when the next reload has ended."""
        self.wanted = True
        self._next_clients.append(client)

    def begin(self, now: float) -> None:
        """Begin a reload; it may end at once."""
        self.wanted = False  # this first: a signal that comes while the file is read asks for another one
        self.report = reload.Report()
        self._count += 1
        self._clients, self._next_clients = self._next_clients, []
        self._host.enter(Phase.RELOADING)
        try:
            self._draft = reload.draft(self._estate.settings, self._estate.doors, self._reactor)
        except (EchodError, OSError) as error:
            self._refuse(_failure(error), now)
        else:
            self.advance(all_serving=False, now=now)

    def advance(self, *, all_serving: bool, now: float) -> None:
        """Go on as far as that is possible; `all_serving` tells whether every worker serves this generation."""
        if self._draft and self._draft.resolved:
            self._apply(self._draft, now)
        elif self._prepared and all_serving:
            self._complete(self._prepared, now)

    def stop(self, now: float) -> None:
        """End the reload in progress, and refuse those that wait, since the daemon is stopping."""
        if self._draft:
            self._draft.cancel(self._reactor)
            self._draft = None
        if self.report and self.report.finished is None:
            self.report.end(STOPPING.exit_code, list(STOPPING.lines))
        self._answer(STOPPING, now)
        self._clients, self._next_clients = self._next_clients, []
        self._answer(STOPPING, now)

    @property
    def closing(self) -> tuple[Listener, ...]:
        """The listeners that the reload in progress would have closed."""
        return self._prepared.plan.release if self._prepared else ()

    @property
    def status(self) -> ReloadStatus:
        """What `echod status` shows of the last reload."""
        return status.of_reload(self.report, self._count)

    def _apply(self, draft: reload.Draft, now: float) -> None:
        self._draft = None
        try:
            self._prepared = reload.prepare(draft, self._estate.settings, self._estate.doors)
        except (EchodError, OSError) as error:
            self._refuse(_failure(error), now)
            return
        self.generation += 1
        if self._prepared.log is not None:
            self._host.move_log(self._prepared.log)
        reload.apply(self._prepared, self._estate)
        self._host.assign(self._prepared.memfd, now)

    def _complete(self, prepared: reload.Prepared, now: float) -> None:
        self._prepared = None
        row = self._estate.board.row(0)
        self._estate.doors.retire(prepared.plan.release, row, self._emit)
        self._estate.doors.close_replaced(row, self._emit)
        report = self._end(None)
        self._emit(reports.config(self._estate, self.generation))
        self._emit(reload.completed(prepared, report, self.generation))
        self._host.enter(Phase.READY)  # before the answer: its client finds the unit ready
        self._answer(None, now)

    def _refuse(self, error: EchodError, now: float) -> None:
        self._emit(events.ReloadRefused(generation=self.generation, errors=list(error.lines)))
        self._end(error)
        self._host.enter(Phase.READY)
        self._answer(error, now)

    def _end(self, error: EchodError | None) -> reload.Report:
        assert self.report is not None  # noqa: S101  # a reload is in progress
        self.report.end(
            error.exit_code if error else 0, [printable(line, len(line)) for line in error.lines] if error else None
        )
        return self.report

    def _answer(self, error: EchodError | None, now: float) -> None:
        for client in self._clients:
            if error:
                client.refuse(error, now)
            else:
                client.answer(now)
        self._clients.clear()


def _failure(error: EchodError | OSError) -> EchodError:
    """Return what a reload is refused with; an OSError that no step has explained refuses it too."""
    return error if isinstance(error, EchodError) else StartError(str(error), errno=error.errno)
