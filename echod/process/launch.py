"""The start of the daemon, in the order that daemon(7) and common sense ask for.

Rules
    What can fail is done while the starter's terminal can still be told: configuration, names, lock, sockets, log. Only
    then the process detaches.
    Everything that a worker will ever import is imported by now: it may not be able to read it later.
    Until the supervisor's loop runs, TERM, INT and QUIT end the process at once, whatever it waits for, after it has
    removed what it has made.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING

from echod.errors import EchodError, StartError
from echod.events import ServiceFailed
from echod.observe.log import Log
from echod.observe.scoreboard import Scoreboard
from echod.process import daemonize, privileges, resolver, runtime_directory, settings, signals, systemd
from echod.process.doors import Doors
from echod.process.reports import Estate
from echod.process.resolver import Question
from echod.process.supervisor import Supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from echod.process.signals import Interruption


def run(path: Path | None, *, foreground: bool) -> None:
    """Run the daemon with the file `path`, or the default one, until it is stopped; raise EchodError if it cannot.

    Whoever detaches it has checked and cleaned the environment before.
    """
    if not foreground:
        os.umask(daemonize.UMASK)
    nohup = signal.SIGHUP in signals.reset()
    signals.defer()
    manager = systemd.manager(os.environ)
    interruption = signals.Interruption()
    try:
        _start(path, manager, interruption, foreground=foreground, nohup=nohup)
    except EchodError as error:
        manager.failed(error)
        raise
    except signals.Interrupted as interrupted:
        signals.end_by(interrupted.number)
    finally:
        manager.close()


def _start(
    path: Path | None, manager: systemd.Manager, interruption: Interruption, *, foreground: bool, nohup: bool
) -> None:
    settings.raise_descriptor_limit()
    passed = systemd.passed_sockets(os.environ)
    with ExitStack() as undo:
        for sock in chain.from_iterable(passed.values()):
            undo.enter_context(sock)
        now = settings.gather(path, foreground=foreground, inherited=frozenset(passed))
        daemon = now.config.daemon
        directory = runtime_directory.acquire(daemon.runtime_directory)  # refuses a second daemon at once
        undo.callback(directory.release)  # after the doors: the next daemon finds the addresses free
        bound = tuple(listener for listener in now.config.doors if listener.name not in passed)
        names = resolver.resolve(Question(bound, account=(daemon.user, daemon.group)))
        privileges.prove(names.run_as)
        doors = Doors(passed)
        undo.callback(doors.close_all)
        doors.open(now.config.doors, names.targets)
        descriptor = settings.open_log(now)
        board = Scoreboard()
        log = Log(now.config.log, descriptor, board.row(0))
        estate = Estate(now, directory, doors, log, board, names.run_as, manager, nohup)
        starter = daemonize.Starter(-1)
        if not foreground:
            starter = daemonize.detach([*directory.filenos(), *board.filenos(), log.sink.fd, *doors.filenos()])
        signals.hold()  # those that come from now on are the supervisor's
        interruption.check()
        _live(estate, starter)


def _live(estate: Estate, starter: daemonize.Starter) -> None:
    log = estate.log
    try:
        estate.directory.publish()
        Supervisor(estate, starter.ready).run()
    except EchodError as error:
        starter.failed(error)
        raise
    except Exception as error:  # noqa: BLE001  # no traceback ever reaches a user
        log.emit(ServiceFailed(error=f"{type(error).__name__}: {error}"))
        failure = StartError(f"the supervisor failed: {type(error).__name__}: {error}")
        starter.failed(failure)
        raise failure from None
    finally:
        signals.ignore()
        log.drain(1.0)
