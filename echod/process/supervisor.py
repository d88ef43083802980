"""The supervisor: owns configuration, sockets, workers and the daemon's state; speaks to no peer.

    STARTING ──► READY ◄──► RELOADING          HUP, `echod reload`: in place, or not at all
        └──────────┴───────────┴──► STOPPING   TERM, INT, `echod stop`: drain; QUIT, `echod stop --now`: at once

Rules
    What a signal asks for is done in the loop, never in the handler. Nothing blocks the loop: the names of a reload are
    looked up by a child process (see `resolver`).
    A drain has begun once: another TERM changes nothing, since a preStop hook and the kubelet both ask for it. Only a
    second INT, from a person at a terminal, ends it.
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
from echod.errors import StartError
from echod.net.poller import POLLERS
from echod.net.reactor import Reactor, Timer
from echod.observe.scoreboard import CLOSED, Column
from echod.process import certificates, reports, settings, signals, status, worker
from echod.process import channel as messages
from echod.process.control import ControlSocket
from echod.process.crew import Assignment, Crew
from echod.process.housekeeping import Housekeeping
from echod.process.reloader import STOPPING, Reloader
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
        self._awaiting_reopen: list[ControlConnection] = []
        self._interrupted_at = inf
        self._stopping_at_once = False
        self._stopping_since = 0.0
        self._lost_before = 0
        self._on_terminal = estate.settings.foreground and not estate.nohup and signals.terminal_opens()
        self._done = False
        self._reactor = Reactor(POLLERS[estate.settings.poller](), estate.log.crashed)
        self._reloader = Reloader(self, estate, self._reactor)
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
        self.assign(messages.to_memfd(now.config, now.certificates), self._born)
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
                self._reloader.wanted = True
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
        if request.wait:
            self._reloader.request(client)
        else:
            self._reloader.wanted = True
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
            self.move_log(settings.open_log(self._estate.settings))
        except StartError as error:
            self._emit(events.LogFailed(path=path, error=str(error)))
            raise
        self._emit(events.LogReopened(path=path))

    def move_log(self, descriptor: int) -> None:
        """Let all processes log to this descriptor."""
        self._estate.log.flush()
        self._estate.log.sink.replace(descriptor)
        self._crew.reopen(descriptor)

    # -- what follows from the workers' answers -----------------------------------------------------------------------

    def _progress(self, now: float) -> None:
        match self._phase:
            case Phase.STARTING if self._crew.hopeless:
                raise StartError("no worker could start; the log says why")
            case Phase.STARTING if self._crew.serves(self._reloader.generation):
                self._say_ready(now)
            case Phase.RELOADING:
                self._reloader.advance(all_serving=self._crew.serves(self._reloader.generation), now=now)
            case Phase.STOPPING if self._crew.empty:
                self._finish(now)
            case Phase.STOPPING if self._crew.released:
                self._close_listeners()
        while self._awaiting_reopen and self._crew.log_reopened:
            self._awaiting_reopen.pop().answer(now)
        if self._reloader.wanted and self._phase is Phase.READY:
            self._reloader.begin(now)

    def enter(self, phase: Phase) -> None:
        """Be in this phase, and tell the service manager."""
        self._phase = phase
        reports.post(self._estate, phase, self._reloader.report)
        self._tell_manager()

    def assign(self, memfd: int, now: float) -> None:
        """Let the workers serve the configuration in `memfd`."""
        config, generation = self._estate.settings.config, self._reloader.generation
        sockets = self._estate.doors.of(config.doors)
        self._crew.assign(Assignment(generation, config.daemon.worker_count, memfd, sockets), now)

    def _live(self, channel: WorkerChannel, row: Row) -> NoReturn:
        worker.live(channel, row, self._estate.log, self._estate.settings.poller, self._estate.who)

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
        self.enter(Phase.STOPPING)
        self._reloader.stop(now)
        self._beat(now)

    def _close_listeners(self) -> None:
        listeners = (*self._estate.settings.config.listener, *self._reloader.closing)
        self._estate.doors.retire(listeners, self._estate.board.row(0), self._emit)

    def _finish(self, now: float) -> None:
        self._close_listeners()
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
        self.enter(Phase.READY)
        self._emit(events.ServiceReady(duration=round(now - self._born, 6)))
        self._estate.log.flush()
        self._ready()

    def _tell_manager(self) -> None:
        manager = self._estate.manager
        match self._phase:
            case Phase.READY:
                manager.ready(reports.summary(self._estate, self._reloader.generation, self._reloader.report))
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
        reloader = self._reloader
        return status.collect(self._estate, self._phase, reloader.generation, self._crew.workers, reloader.status)
