"""The supervisor: owns configuration, sockets, workers and the daemon's state; speaks to no peer.

    STARTING ──► READY ◄──► RELOADING          HUP, `echod reload`: in place, or not at all
        └──────────┴───────────┴──► STOPPING   TERM, INT, `echod stop`: drain; QUIT, `echod stop --now`: at once

Rules
    What a signal asks for is done in the loop, never in the handler.
    A drain has begun once: another TERM changes nothing, since a preStop hook and the kubelet both ask for it. Only a
    second INT, from a person at a terminal, ends it.
    What asks for a reload during a reload is answered by the next one, which begins after it.
    Once a reload has bound everything nothing refuses any more: a worker that does not answer is replaced, and its
    successor's answer counts. Listeners that are no longer listed are closed once every worker has answered.
    Towards whoever started us, "ready" means that the next connect works.

Fails: StartError when no worker comes up at the start; OSError when the poller is broken for good.
"""

from __future__ import annotations

import gc
import signal
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, NoReturn

from echod import events
from echod.errors import EchodError, StartError
from echod.net.poller import POLLERS
from echod.net.reactor import Reactor, Timer
from echod.observe.scoreboard import CLOSED, Column
from echod.process import certificates, reload, reports, settings, signals, status, worker
from echod.process import channel as messages
from echod.process.control import ControlSocket
from echod.process.crew import Assignment, Crew
from echod.process.housekeeping import Housekeeping
from echod.process.reports import Estate, Phase
from echod.process.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.observe.scoreboard import Row
    from echod.process.channel import WorkerChannel
    from echod.process.control_connection import ControlConnection, Request
    from echod.process.status import Status

GRACE = 2.0
"""Seconds beyond `drain_timeout` after which workers are killed; they reset what is left by themselves."""

AT_ONCE = 0.8
"""The same once an immediate end was asked for."""

SECOND_INTERRUPT_DELAY = 0.5
"""Seconds after an INT from which on another one ends the drain: a terminal and a wrapper both send the first."""

EXTENSION = 15.0
"""Seconds of patience that a stopping daemon asks of the service manager, three times before they are over."""

STOPPING = StartError("the daemon is stopping")
"""The answer to a reload that comes too late."""

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
        self._phase = Phase.STARTING
        self._generation = 1
        self._reload_wanted = False
        self._reload: reload.Prepared | None = None
        self._report: reload.Report | None = None
        self._reload_count = 0
        self._awaiting_next_reload: list[ControlConnection] = []
        self._awaiting_reload: list[ControlConnection] = []
        self._awaiting_reopen: list[ControlConnection] = []
        self._interrupted_at = inf
        self._stopping_at_once = False
        self._stopping_since = 0.0
        self._lost_before = 0
        self._on_terminal = estate.settings.foreground and not estate.nohup and signals.terminal_opens()
        self._done = False
        self._reactor = Reactor(POLLERS[estate.settings.poller](), estate.log.crashed)
        self._crew = Crew(self._reactor, estate.board, self._emit, self._live)
        self._drain_delay = Timer(self._drain)
        self._patience = Timer(lambda _now: self._crew.kill())
        self._pulse = Timer(self._beat)
        self._control = ControlSocket(estate.directory.socket, self._reactor, self._on_request, self._emit)
        self._housekeeping = Housekeeping(self._reactor, estate, self._control, self._emit)

    def run(self) -> None:
        """Live until every worker is gone."""
        log, manager = self._estate.log, self._estate.manager
        timers = (self._drain_delay, self._patience, self._pulse, self._housekeeping)
        for handler in (Signals(self._act), self._control, *timers):
            self._reactor.add(handler)
        signals.let_go()
        self._say_started()
        gc.collect()
        gc.freeze()  # what is loaded by now is shared with the workers; a collection would write to its pages
        now = self._estate.settings
        self._assign(messages.to_memfd(now.config, now.certificates), self._born)
        self._beat(self._born)
        self._housekeeping.start(self._born)
        try:
            while not self._done:
                log.tick()
                log.flush()
                manager.flush()
                self._reactor.turn(worker.LOG_INTERVAL if log.waiting else inf)
                self._progress(self._reactor.now)
        finally:
            self._housekeeping.end()

    # -- signals ------------------------------------------------------------------------------------------------------

    def _act(self, number: signal.Signals, now: float) -> None:
        if number is signal.SIGCHLD:
            self._crew.reap(now)
            return
        self._emit(events.SignalReceived(signal=number.name))
        match number:
            case signal.SIGHUP if self._on_terminal and not signals.terminal_opens():
                self._stop(number, now)  # it was closed, and nobody is left to type ^C
            case signal.SIGHUP:
                self._reload_wanted = True
            case signal.SIGUSR1:
                with suppress(StartError):  # it has been logged, and the old file goes on
                    self._reopen_log()
            case signal.SIGUSR2:
                self._emit(reports.status(self._status()))
            case signal.SIGQUIT:
                self._stop_at_once(number, now)
            case signal.SIGINT if now - self._interrupted_at >= SECOND_INTERRUPT_DELAY:
                self._stop_at_once(number, now)
            case _:
                if number is signal.SIGINT:
                    self._interrupted_at = min(self._interrupted_at, now)
                self._stop(number, now)

    # -- requests of the control socket -------------------------------------------------------------------------------

    def _on_request(self, client: ControlConnection, request: Request) -> None:
        now = self._reactor.now
        match request.command:
            case "status":
                client.answer(now, status=self._status().model_dump())
            case "reload":
                self._on_reload_request(client, request, now)
            case "reopen":
                self._on_reopen_request(client, now)
            case "stop":
                if request.wait:
                    client.keep_open()
                client.answer(now)
                (self._stop_at_once if request.now else self._stop)(None, now)

    def _on_reload_request(self, client: ControlConnection, request: Request, now: float) -> None:
        if self._phase is Phase.STOPPING:
            client.refuse(STOPPING, now)
            return
        self._reload_wanted = True
        if request.wait:
            self._awaiting_next_reload.append(client)
        else:
            client.answer(now)

    def _on_reopen_request(self, client: ControlConnection, now: float) -> None:
        try:
            self._reopen_log()
        except StartError as error:
            client.refuse(error, now)
        else:
            self._awaiting_reopen.append(client)

    # -- log ----------------------------------------------------------------------------------------------------------

    def _reopen_log(self) -> None:
        path = self._estate.settings.config.log.file
        if not path:
            return
        try:
            self._move_log(settings.open_log(self._estate.settings))
        except StartError as error:
            self._emit(events.LogFailed(path=path, error=str(error)))
            raise
        self._emit(events.LogReopened(path=path))

    def _move_log(self, descriptor: int) -> None:
        self._estate.log.flush()
        self._estate.log.sink.replace(descriptor)
        self._crew.reopen(descriptor)

    # -- what follows from the workers' answers -----------------------------------------------------------------------

    def _progress(self, now: float) -> None:
        match self._phase:
            case Phase.STARTING if self._crew.hopeless:
                raise StartError("no worker could start; the log says why")
            case Phase.STARTING if self._crew.serves(self._generation):
                self._say_ready(now)
            case Phase.RELOADING if self._crew.serves(self._generation):
                self._complete_reload(now)
            case Phase.STOPPING if self._crew.empty:
                self._finish(now)
            case Phase.STOPPING if self._crew.released:
                self._close_doors()
        if self._awaiting_reopen and self._crew.log_reopened:
            self._answer_all(self._awaiting_reopen, None, now)
        if self._reload_wanted and self._phase is Phase.READY:
            self._reload_wanted = False  # this first: a signal that comes while the file is read counts anew
            self._begin_reload(now)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        reports.post(self._estate, phase, self._report)
        self._tell_manager()

    def _assign(self, memfd: int, now: float) -> None:
        config, doors = self._estate.settings.config, self._estate.doors
        self._crew.assign(Assignment(self._generation, config.daemon.worker_count, memfd, doors.of(config.doors)), now)

    def _live(self, channel: WorkerChannel, row: Row) -> NoReturn:
        worker.live(channel, row, self._estate.log, self._estate.settings.poller, self._estate.who)

    # -- reload -------------------------------------------------------------------------------------------------------

    def _begin_reload(self, now: float) -> None:
        self._report = reload.Report()
        self._reload_count += 1
        self._awaiting_reload, self._awaiting_next_reload = self._awaiting_next_reload, []
        self._enter(Phase.RELOADING)
        try:
            self._reload = reload.prepare(self._estate.settings, self._estate.doors)
        except EchodError as error:
            self._emit(events.ReloadRefused(generation=self._generation, errors=list(error.lines)))
            self._end_reload(error, now)
            return
        new = self._estate.settings = self._reload.settings
        self._generation += 1
        if self._reload.log is not None:
            self._move_log(self._reload.log)
        self._estate.log.configure(new.config.log)
        for event in new.adjustments:
            self._emit(event)
        self._estate.doors.adjust(self._reload.plan.keep)
        self._estate.doors.say_opened(self._reload.plan.bind, self._emit)
        certificates.say_loaded(new.certificates, self._emit)
        self._estate.doors.say_faults(self._reload.plan.keep, self._emit)
        self._assign(self._reload.memfd, now)

    def _complete_reload(self, now: float) -> None:
        assert self._reload is not None  # noqa: S101  # the phase says so
        assert self._report is not None  # noqa: S101
        changes = self._reload.plan
        self._reload = None
        self._estate.doors.count_drops(changes.release, self._estate.board.row(0), self._emit)
        self._estate.doors.say_closed(changes.release, self._emit)
        self._estate.doors.close(changes.release)
        self._emit(reports.config(self._estate, self._generation))
        self._emit(
            events.ReloadCompleted(
                generation=self._generation,
                duration=self._report.duration,
                opened=[listener.name for listener in changes.bind],
                closed=[listener.name for listener in changes.release],
                workers=self._estate.settings.config.daemon.worker_count,
            )
        )
        self._end_reload(None, now)

    def _end_reload(self, error: EchodError | None, now: float) -> None:
        assert self._report is not None  # noqa: S101  # the phase says so
        self._report.end(error.exit_code if error else 0, list(error.lines) if error else None)
        self._enter(Phase.READY)  # this first: the client of a reload finds the unit ready
        self._answer_all(self._awaiting_reload, error, now)

    def _answer_all(self, clients: list[ControlConnection], error: EchodError | None, now: float) -> None:
        for client in clients:
            if error:
                client.refuse(error, now)
            else:
                client.answer(now)
        clients.clear()

    # -- stop ---------------------------------------------------------------------------------------------------------

    def _stop(self, number: signal.Signals | None, now: float) -> None:
        """Drain; `number` is None where a command has asked for it. Nothing changes where a stop has begun."""
        if self._phase is Phase.STOPPING:
            return
        self._say_stopping(number, at_once=False)
        self._begin_stopping(now)
        self._reactor.schedule(self._drain_delay, now + self._estate.settings.config.daemon.drain_delay)

    def _drain(self, now: float) -> None:
        timeout = self._estate.settings.config.daemon.drain_timeout
        self._crew.drain(timeout)
        self._reactor.schedule(self._patience, now + timeout + GRACE if timeout else inf)

    def _stop_at_once(self, number: signal.Signals | None, now: float) -> None:
        if self._stopping_at_once:
            return
        self._stopping_at_once = True
        self._say_stopping(number, at_once=True)
        self._begin_stopping(now)
        self._reactor.schedule(self._drain_delay, inf)
        self._crew.stop()
        self._reactor.schedule(self._patience, now + AT_ONCE)

    def _begin_stopping(self, now: float) -> None:
        if self._phase is Phase.STOPPING:
            return
        self._stopping_since = now
        self._lost_before = self._estate.board.total(LOST)
        if self._report and self._report.finished is None:
            self._report.end(STOPPING.exit_code, list(STOPPING.lines))
        self._enter(Phase.STOPPING)
        for clients in (self._awaiting_reload, self._awaiting_next_reload):
            self._answer_all(clients, STOPPING, now)
        self._beat(now)

    def _close_doors(self) -> None:
        doors, listeners = self._estate.doors, self._estate.settings.config.listener
        if self._reload:
            listeners += self._reload.plan.release
        doors.count_drops(listeners, self._estate.board.row(0), self._emit)
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

    def _say_stopping(self, number: signal.Signals | None, *, at_once: bool) -> None:
        active = self._estate.board.total(Column.ACTIVE)
        self._emit(events.ServiceStopping(signal=number.name if number else None, active=active, at_once=at_once))

    def _status(self) -> Status:
        last_reload = status.of_reload(self._report, self._reload_count)
        return status.collect(self._estate, self._phase, self._generation, self._crew.workers, last_reload)
