"""The workers: as many as were asked for, replaced when they die, asked to leave when they are too many.

Rules
    A slot is a place for one worker; each has its own waiting time before a replacement. Start, reload and replacement
    are the same act: a worker is sent the current assignment.
    A worker without descriptors or memory for what it was told makes room, and is told again with the next heartbeat.
    A worker that breaks a rule is killed and replaced. So is one that answers no heartbeat, and one that confirms
    nothing, since a reload would wait for it for ever. Where the supervisor itself did not run on time no worker could
    have answered, and the count starts again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, NoReturn

from echod.core.backoff import FIRST, Backoff
from echod.events import WorkerDied, WorkerExited, WorkerRefused, WorkerStarted, WorkerThrottled
from echod.net.reactor import Timer
from echod.net.sockets import error_name
from echod.observe.scoreboard import Column
from echod.process import channel as messages
from echod.process import signals
from echod.process.hand import Hand, fork
from echod.process.status import WorkerStatus

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from echod.events import Event
    from echod.net.reactor import Reactor
    from echod.observe.scoreboard import Row, Scoreboard
    from echod.process.channel import WorkerChannel

PING_INTERVAL = 1.0
"""Seconds between heartbeats."""

SILENT_AFTER = 10.0
"""Seconds after which a worker that answers no ping is gone."""

HUNG_AFTER = SILENT_AFTER - PING_INTERVAL / 2
"""Seconds since the last answer, at a ping, from which a worker counts as hung: that is so at the ping which is ten
intervals later, and not only at the next, however late the answer was."""

CONFIRM_TIMEOUT = 30.0
"""Seconds until a worker must have confirmed what it was told, which is sent again while it lacks descriptors."""

REPLACED_AFTER = SILENT_AFTER + 2 * PING_INTERVAL
"""Seconds without an answer after which even killing it has not helped."""


@dataclass
class Slot:
    """A place for a worker."""

    hand: Hand | None = None
    due: float = 0.0
    failed: bool = False
    """Whether a worker has died here before it ever answered."""
    throttled: bool = False
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(frozen=True)
class Assignment:
    """What all workers are to serve."""

    generation: int
    workers: int
    config: int
    """A memfd that holds the configuration; the crew closes it."""
    sockets: list[tuple[str, socket.socket]]


class Crew:
    """All workers of the daemon."""

    def __init__(
        self,
        reactor: Reactor,
        board: Scoreboard,
        emit: Callable[[Event], None],
        live: Callable[[WorkerChannel, Row], NoReturn],
    ) -> None:
        """Make an empty crew; `live` is called in each forked process and never returns."""
        self._reactor = reactor
        self._board = board
        board.keep_from_children()
        self._emit = emit
        self._live = live
        self._slots: list[Slot] = []
        self._hands: dict[int, Hand] = {}
        self._assignment: Assignment | None = None
        self._log: int | None = None
        self._log_serial = 0
        self._next_ping = inf
        self._timer = Timer(self._tick)
        reactor.add(self._timer)

    # -- what the supervisor asks for ---------------------------------------------------------------------------------

    def assign(self, assignment: Assignment, now: float) -> None:
        """Make everyone serve `assignment`, with as many workers as it says."""
        if self._assignment:
            os.close(self._assignment.config)
        self._assignment = assignment
        self._resize(assignment.workers, now)
        for hand in self._hands.values():
            self._instruct(hand)
        self._next_ping = min(self._next_ping, now + PING_INTERVAL)
        self._tick(now)

    def reopen(self, descriptor: int) -> None:
        """Make everyone log to `descriptor`, which stays open until the next call."""
        self._log = descriptor
        self._log_serial += 1
        for hand in self._hands.values():
            hand.reopen_log(self._log_serial, descriptor)

    def drain(self, timeout: float) -> None:
        """Make everyone accept no more and leave when their connections have ended."""
        self._dismiss(messages.Drain(timeout))

    def stop(self) -> None:
        """Make everyone reset their connections and leave."""
        self._dismiss(messages.Stop())

    def kill(self) -> None:
        """End everyone who is still here."""
        for hand in self._hands.values():
            hand.kill()

    def reap(self, now: float) -> None:
        """Collect the processes that have ended; call it on SIGCHLD."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                hand = self._hands.pop(pid, None)
                if hand:
                    self._bury(hand, os.waitstatus_to_exitcode(status), now)
        self._schedule()

    # -- what the supervisor wants to know ----------------------------------------------------------------------------

    @property
    def workers(self) -> list[WorkerStatus]:
        """Return every worker, for `echod status`."""
        return [
            WorkerStatus(slot=hand.row.number, pid=hand.pid, retiring=hand.asked_to_leave)
            for hand in self._hands.values()
        ]

    @property
    def empty(self) -> bool:
        """Whether everyone is gone, and nobody is to come."""
        return not self._hands and not self._slots

    @property
    def released(self) -> bool:
        """Whether nobody uses the listening sockets any more, or will."""
        return not self._slots and all(hand.released for hand in self._hands.values())

    @property
    def hopeless(self) -> bool:
        """Whether a worker has died young in every slot."""
        return all(slot.failed for slot in self._slots)

    def well(self, now: float) -> bool:
        """Tell whether every slot has a worker that answers, or is about to get one."""
        return all(slot.hand is None or now - slot.hand.heard < REPLACED_AFTER for slot in self._slots)

    def serves(self, generation: int) -> bool:
        """Tell whether every slot has a worker that has answered for `generation`, and has missed nothing before."""
        hands = (slot.hand for slot in self._slots)
        return all(hand and hand.generation >= generation and not hand.behind for hand in hands)

    @property
    def log_reopened(self) -> bool:
        """Whether every worker has confirmed that it logs to the descriptor of the newest `reopen`."""
        return all(hand.log_reopened for hand in self._hands.values())

    # -- within -------------------------------------------------------------------------------------------------------

    def _resize(self, count: int, now: float) -> None:
        while len(self._slots) > count:
            hand = self._slots.pop().hand
            if hand:
                hand.asked_to_leave = True
        retiring = (hand for hand in self._hands.values() if hand.asked_to_leave)
        while len(self._slots) < count:
            recalled = next(retiring, None)
            if recalled:
                recalled.asked_to_leave = False
            self._slots.append(Slot(hand=recalled, due=now))

    @property
    def _current(self) -> Assignment:
        assert self._assignment is not None  # noqa: S101  # nobody is spawned before the first `assign`
        return self._assignment

    def _instruct(self, hand: Hand) -> None:
        assignment = self._current
        sockets = [] if hand.asked_to_leave else assignment.sockets
        message = messages.Configure(assignment.generation, tuple(name for name, _ in sockets))
        hand.tell(message, [assignment.config, *(sock.fileno() for _, sock in sockets)])

    def _catch_up(self, hand: Hand) -> None:
        hand.behind = False
        if self._log is not None:
            hand.reopen_log(self._log_serial, self._log)
        if self._slots:  # else all were told to leave, which needs no descriptors
            self._instruct(hand)

    def _spawn(self, slot: Slot, now: float) -> None:
        row = self._board.take_row({hand.row.number for hand in self._hands.values()})
        try:
            slot.hand = self._hire(row, now)
        except OSError as error:  # no more processes or descriptors allowed, for now
            self._emit(WorkerRefused(slot=row.number, error=error_name(error)))
            slot.failed = True
            self._wait(slot, 0.0, now)
            return
        self._emit(WorkerStarted(slot=row.number, pid=slot.hand.pid))
        self._instruct(slot.hand)

    def _hire(self, row: Row, now: float) -> Hand:
        hand = fork(self._live, row, now, self._log_serial)
        self._hands[hand.pid] = hand
        self._reactor.adopt(hand)
        return hand

    def _bury(self, hand: Hand, status: int, now: float) -> None:
        hand.retire()
        self._reactor.touch(hand)
        lost = self._board.settle(hand.row.number)
        if status == 0 and not hand.violation:  # it was asked to leave, perhaps recalled too late
            self._emit(WorkerExited(slot=hand.row.number, pid=hand.pid))
        else:
            self._emit(
                WorkerDied(
                    slot=hand.row.number,
                    pid=hand.pid,
                    status=status if status >= 0 else None,
                    signal=signals.name(-status) if status < 0 else None,
                    silent=hand.silent or None,
                    violation=hand.violation,
                    lost=lost.connections,
                    received=lost.received,
                    echoed=lost.echoed,
                )
            )
        for slot in self._slots:
            if slot.hand is hand:
                slot.hand = None
                slot.due = now
                if status:
                    self._board.row(0)[Column.DIED] += 1
                    slot.failed = slot.failed or not hand.generation
                    self._wait(slot, now - hand.born, now)

    def _wait(self, slot: Slot, lifetime: float, now: float) -> None:
        delay = slot.backoff.died(lifetime)
        slot.due = now + delay
        if delay > FIRST and not slot.throttled:
            self._emit(WorkerThrottled(delay=delay, workers=len(self._slots)))
        slot.throttled = delay > FIRST

    def _dismiss(self, message: messages.Command) -> None:
        self._slots.clear()
        for hand in self._hands.values():
            hand.tell(message)

    def _tick(self, now: float) -> None:
        if now >= self._next_ping:
            self._ping(on_time=now < self._next_ping + PING_INTERVAL, now=now)
            self._next_ping = now + PING_INTERVAL
        for slot in self._slots:
            if slot.hand is None and slot.due <= now:
                self._spawn(slot, now)
        self._schedule()

    def _ping(self, *, on_time: bool, now: float) -> None:
        for hand in self._hands.values():
            if not on_time:
                hand.heard = hand.confirmed_at = now
            if hand.confirmed or not self._slots:  # without slots nothing is sent again
                hand.confirmed_at = now
            if now - hand.heard >= HUNG_AFTER and not hand.silent:
                hand.silent = True
                hand.kill()
            elif now - hand.confirmed_at >= CONFIRM_TIMEOUT:
                hand.accuse("did not confirm what it was told")
                self._reactor.touch(hand)
            if hand.behind:
                self._catch_up(hand)
            hand.ping()

    def _schedule(self) -> None:
        waiting: Iterable[float] = (slot.due for slot in self._slots if slot.hand is None)
        self._reactor.schedule(self._timer, min(self._next_ping, *waiting, inf))
