"""A reload, from the signal to the last worker's answer.

Rule: a transaction. Everything that can fail (reading, validating, looking up names, binding, opening the log) is done
before anything changes, and undone when a later step fails. Once it is prepared nothing refuses any more.

Fails: EchodError from `draft` and `prepare`, with nothing changed.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from echod.config.plan import Plan, plan
from echod.events import ReloadCompleted
from echod.process import certificates, channel, settings
from echod.process.resolver import Question, Resolver

if TYPE_CHECKING:
    from echod.net.reactor import Reactor
    from echod.process.doors import Doors
    from echod.process.reports import Estate
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
class Draft:
    """A valid configuration, whose new listeners wait for their names."""

    settings: Settings
    plan: Plan
    question: Question
    resolver: Resolver | None
    """The process that looks the names up; None where no name service has to be asked."""

    @property
    def resolved(self) -> bool:
        """Whether `prepare` can go on without waiting."""
        return self.resolver is None or self.resolver.done

    def cancel(self, reactor: Reactor) -> None:
        """Look up no more."""
        if self.resolver:
            self.resolver.retire()
            reactor.touch(self.resolver)


@dataclass(frozen=True)
class Prepared:
    """Everything new, bound and open, but not yet in use."""

    settings: Settings
    plan: Plan
    memfd: int
    """The configuration, as the workers will be sent it."""
    log: int | None
    """A descriptor of the new log, or None when the log stays where it is."""


def draft(current: Settings, doors: Doors, reactor: Reactor) -> Draft:
    """Read the configuration again and let `reactor` wait for the names of the listeners that are bound."""
    new = current.again()
    changes = plan(current.config, new.config, new.inherited)
    stale = doors.stale(changes.keep)
    changes = replace(
        changes,
        bind=(*changes.bind, *stale),
        keep=tuple(listener for listener in changes.keep if listener not in stale),
    )
    question = Question(tuple(listener for listener in changes.bind if listener.name not in new.inherited))
    resolver = Resolver(question) if question.needs_name_service else None
    if resolver:
        resolver.start()
        reactor.adopt(resolver)
    return Draft(new, changes, question, resolver)


def prepare(drafted: Draft, current: Settings, doors: Doors) -> Prepared:
    """Open all that a resolved draft asks for beyond what is open."""
    new, changes = drafted.settings, drafted.plan
    names = drafted.resolver.names() if drafted.resolver else drafted.question.answer()
    with ExitStack() as undo:
        doors.open(changes.bind, names.targets, keep=changes.keep, release=changes.release)
        undo.callback(doors.close, changes.bind)
        memfd = channel.to_memfd(new.config, new.certificates)
        undo.callback(os.close, memfd)
        moved = new.config.log.file != current.config.log.file
        prepared = Prepared(new, changes, memfd, settings.open_log(new) if moved else None)
        undo.pop_all()
    return prepared


def apply(prepared: Prepared, estate: Estate) -> None:
    """Make the new configuration the daemon's, and log what that means for its listeners."""
    new, changes, emit = prepared.settings, prepared.plan, estate.log.emit
    estate.settings = new
    estate.log.configure(new.config.log)
    for event in new.adjustments:
        emit(event)
    estate.doors.adjust((*changes.keep, *changes.bind))  # a socket that was open before may serve a new listener
    estate.doors.say_opened(changes.bind, emit)
    certificates.say_loaded(new.certificates, emit)
    estate.doors.say_faults(changes.keep, emit)


def completed(prepared: Prepared, report: Report, generation: int) -> ReloadCompleted:
    """Say what a reload has changed."""
    return ReloadCompleted(
        generation=generation,
        duration=report.duration,
        opened=[listener.name for listener in prepared.plan.bind],
        closed=[listener.name for listener in prepared.plan.release],
        workers=prepared.settings.config.daemon.worker_count,
    )
