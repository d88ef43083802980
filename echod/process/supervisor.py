"""The supervisor: owns configuration, sockets, workers and the daemon's state; speaks to no peer.

    STARTING ──► READY ◄──► RELOADING          HUP: in place, or not at all
        └──────────┴───────────┴──► STOPPING   TERM: drain; once more, or QUIT: at once

Rules
    What a signal asks for is done in the loop, never in the handler. Nothing blocks the loop: the names of a reload are
    looked up by a child process (see `resolver`).
    Once a reload has bound everything nothing refuses any more: a worker that does not answer is replaced, and its
    successor's answer counts. What is no longer listed is closed after all have answered.
    Towards whoever started us, "ready" means that the next connect works.

Fails: StartError when no worker comes up at the start; OSError when the poller is broken for good.
"""

from __future__ import annotations

import gc
import os
import signal
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

from echod import events
from echod.errors import EchodError, StartError
from echod.net.poller import POLLERS
from echod.net.reactor import Reactor, Timer
from echod.observe.scoreboard import CLOSED, Column
from echod.process import certificates, reload, reports, settings, signals, state, worker
from echod.process import channel as messages
from echod.process.crew import Assignment, Crew
from echod.process.reports import Estate, Phase
from echod.process.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.observe.scoreboard import Row
    from echod.process.channel import Channel

GRACE = 2.0
"""Seconds beyond `drain_timeout` after which workers are killed; they reset what is left by themselves."""

AT_ONCE = 0.8
"""The same once a second signal has ended the drain."""

EXTENSION = 15.0
"""Seconds of patience that a stopping daemon asks of the service manager, three times before they are over."""

LOST = CLOSED[events.CloseReason.WORKER_LOST]
"""Where the connections of dead workers are counted."""


class Supervisor:
    """One run of the daemon, from bound sockets to the last worker's end."""

    def __init__(self, estate: Estate, ready: Callable[[], None]) -> None:
        """Take over `estate`; `ready` is called once the next connect works."""
        self._estate = estate
        self._ready = ready
        self._emit = estate.log.emit
        self._born = estate.born
        self._written: dict[str, Any] = {}
        self._outdated = inf
        self._phase = Phase.STARTING
        self._generation = 1
        self._reload_wanted = False
        self._draft: reload.Draft | None = None
        self._reload: reload.Prepared | None = None
        self._report: reload.Report | None = None
        self._stopping_since = 0.0
        self._lost_before = 0
        self._on_terminal = estate.settings.foreground and not estate.nohup and _terminal_opens()
        self._done = False
        self._reactor = Reactor(POLLERS[estate.settings.poller](), estate.log.crashed)
        self._crew = Crew(self._reactor, estate.board, self._emit, self._live)
        self._drain_delay = Timer(self._drain)
        self._patience = Timer(lambda _now: self._crew.kill())
        self._pulse = Timer(self._beat)

    def run(self) -> None:
        """Live until every worker is gone."""
        log, manager = self._estate.log, self._estate.manager
        for handler in (Signals(self._act), self._drain_delay, self._patience, self._pulse):
            self._reactor.add(handler)
        signals.let_go()
        self._say_started()
        self._write_state()
        gc.collect()
        gc.freeze()  # what is loaded by now is shared with the workers; a collection would write to its pages
        now = self._estate.settings
        self._assign(messages.to_memfd(now.config, now.certificates), self._born)
        self._beat(self._born)
        while not self._done:
            log.tick()
            log.flush()
            manager.flush()
            self._reactor.turn(worker.LOG_INTERVAL if log.waiting else inf)
            self._progress(self._reactor.now)

    # -- signals ------------------------------------------------------------------------------------------------------

    def _act(self, number: signal.Signals, now: float) -> None:
        if number is signal.SIGCHLD:
            self._crew.reap(now)
            return
        self._emit(events.SignalReceived(signal=number.name))
        match number:
            case signal.SIGHUP if self._on_terminal and not _terminal_opens():
                self._stop(number, now)  # it was closed, and nobody is left to type ^C
            case signal.SIGHUP:
                self._reload_wanted = True
            case signal.SIGUSR1:
                self._reopen_log()
            case signal.SIGUSR2:
                self._say_status(now)
                self._write_state()
            case _ if number is signal.SIGQUIT or self._phase is Phase.STOPPING:
                self._stop_at_once(number, now)
            case _:
                self._stop(number, now)

    def _reopen_log(self) -> None:
        path = self._estate.settings.config.log.file
        if not path:
            return
        try:
            self._move_log(settings.open_log(self._estate.settings))
        except StartError as error:
            self._emit(events.LogFailed(path=path, error=str(error)))
            return
        self._emit(events.LogReopened(path=path))

    def _move_log(self, descriptor: int) -> None:
        self._estate.log.flush()
        self._estate.log.sink.replace(descriptor)
        self._crew.reopen(descriptor)

    # -- what follows from the workers' answers -----------------------------------------------------------------------

    def _progress(self, now: float) -> None:
        if self._crew.changed or (now >= self._outdated and self._state() != self._written):
            self._crew.changed = False
            self._write_state()
        match self._phase:
            case Phase.STARTING if self._crew.hopeless:
                raise StartError("no worker could start; the log says why")
            case Phase.STARTING if self._crew.serves(self._generation):
                self._say_ready(now)
            case Phase.RELOADING if self._draft and self._report and self._draft.resolved:
                self._apply_reload(self._draft, self._report, now)
            case Phase.RELOADING if self._reload and self._report and self._crew.serves(self._generation):
                self._complete_reload(self._reload, self._report)
            case Phase.STOPPING if self._crew.empty:
                self._finish(now)
            case Phase.STOPPING if self._crew.released:
                self._close_doors()
        if self._reload_wanted and self._phase is Phase.READY:
            self._reload_wanted = False  # this first: a signal that comes while the file is read counts anew
            self._begin_reload(now)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        reports.post(self._estate, phase, self._report)
        self._tell_manager()  # this first: who waits for the state finds the unit in that state too
        self._write_state()

    def _assign(self, memfd: int, now: float) -> None:
        config = self._estate.settings.config
        sockets = self._estate.doors.of(config.doors)
        self._crew.assign(Assignment(self._generation, config.daemon.worker_count, memfd, sockets), now)

    def _live(self, channel: Channel, row: Row) -> NoReturn:
        worker.live(channel, row, self._estate.log, self._estate.settings.poller, self._estate.who)

    # -- reload -------------------------------------------------------------------------------------------------------

    def _begin_reload(self, now: float) -> None:
        self._report = reload.Report()
        self._enter(Phase.RELOADING)
        try:
            self._draft = reload.draft(self._estate.settings, self._reactor)
        except EchodError as error:
            self._refuse_reload(error, self._report)
            return
        if self._draft.resolved:
            self._apply_reload(self._draft, self._report, now)

    def _refuse_reload(self, error: EchodError, report: reload.Report) -> None:
        self._emit(events.ReloadRefused(generation=self._generation, errors=list(error.lines)))
        report.end(error.exit_code, list(error.lines))
        self._enter(Phase.READY)

    def _apply_reload(self, draft: reload.Draft, report: reload.Report, now: float) -> None:
        self._draft = None
        try:
            self._reload = reload.prepare(draft, self._estate.settings, self._estate.doors)
        except EchodError as error:
            self._refuse_reload(error, report)
            return
        self._generation += 1
        if self._reload.log is not None:
            self._move_log(self._reload.log)
        reload.apply(self._reload, self._estate)
        self._assign(self._reload.memfd, now)

    def _complete_reload(self, prepared: reload.Prepared, report: reload.Report) -> None:
        self._reload = None
        self._estate.doors.say_closed(prepared.plan.release, self._emit)
        self._estate.doors.close(prepared.plan.release)
        report.end(0)
        self._emit(reports.config(self._estate, self._generation))
        self._emit(reload.completed(prepared, report, self._generation))
        self._enter(Phase.READY)

    # -- stop ---------------------------------------------------------------------------------------------------------

    def _stop(self, number: signal.Signals, now: float) -> None:
        self._say_stopping(number, at_once=False)
        self._begin_stopping(now)
        self._reactor.schedule(self._drain_delay, now + self._estate.settings.config.daemon.drain_delay)

    def _drain(self, now: float) -> None:
        timeout = self._estate.settings.config.daemon.drain_timeout
        self._crew.drain(timeout)
        self._reactor.schedule(self._patience, now + timeout + GRACE if timeout else inf)

    def _stop_at_once(self, number: signal.Signals, now: float) -> None:
        self._say_stopping(number, at_once=True)
        self._begin_stopping(now)
        self._reactor.schedule(self._drain_delay, inf)
        self._crew.stop()
        self._reactor.schedule(self._patience, now + AT_ONCE)

    def _begin_stopping(self, now: float) -> None:
        if self._phase is Phase.STOPPING:
            return
        if self._draft:
            self._draft.cancel(self._reactor)
            self._draft = None
        self._stopping_since = now
        self._lost_before = self._estate.board.total(LOST)
        if self._report and self._report.finished is None:
            self._report.end(StartError.exit_code, ["the daemon is stopping"])
        self._enter(Phase.STOPPING)
        self._beat(now)

    def _close_doors(self) -> None:
        doors, listeners = self._estate.doors, self._estate.settings.config.listener
        if self._reload:
            listeners += self._reload.plan.release
        doors.say_closed(listeners, self._emit)
        doors.close(listeners)

    def _finish(self, now: float) -> None:
        self._close_doors()
        self._estate.doors.say_closed(self._estate.settings.config.admin.listeners, self._emit)
        board = self._estate.board
        cut = board.total(Column.CUT) + board.total(LOST) - self._lost_before
        self._emit(events.ServiceStopped(duration=round(now - self._stopping_since, 6), cut=cut))
        self._done = True

    # -- what others see ----------------------------------------------------------------------------------------------

    def _say_started(self) -> None:
        for event in reports.started(self._estate):
            self._emit(event)
        self._estate.doors.say_opened(self._estate.settings.config.doors, self._emit)
        certificates.say_loaded(self._estate.settings.certificates, self._emit)

    def _say_ready(self, now: float) -> None:
        self._enter(Phase.READY)
        self._emit(events.ServiceReady(duration=round(now - self._born, 6)))
        self._estate.log.flush()
        self._ready()

    def _tell_manager(self) -> None:
        manager = self._estate.manager
        match self._phase:
            case Phase.READY:
                manager.ready(reports.summary(self._estate, self._generation, self._report))
            case Phase.RELOADING:
                manager.reloading()
            case Phase.STOPPING:
                manager.stopping(f"Draining {self._estate.board.total(Column.ACTIVE)} connections")

    def _beat(self, now: float) -> None:
        manager = self._estate.manager
        interval = manager.watchdog / 2
        if self._crew.well(now):
            manager.alive()
        if self._phase is Phase.STOPPING:
            manager.extend(EXTENSION)
            interval = min(interval, EXTENSION / 3)
        self._reactor.schedule(self._pulse, now + interval)

    def _say_stopping(self, number: signal.Signals, *, at_once: bool) -> None:
        active = self._estate.board.total(Column.ACTIVE)
        self._emit(events.ServiceStopping(signal=number.name, active=active, at_once=at_once))

    def _say_status(self, now: float) -> None:
        self._emit(reports.status(self._state(), uptime=round(now - self._born, 3)))

    def _state(self) -> dict[str, Any]:
        return reports.state(self._estate, self._phase, self._generation, self._crew.members, self._report)

    def _write_state(self) -> None:
        self._written = self._state()
        self._outdated = self._reactor.now + state.FRESH
        with suppress(OSError):  # a full disk must not stop the echo; the next change writes it anew
            state.write(self._estate.directory, self._written)


def _terminal_opens() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
