"""Reports: what is said of the daemon is what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from echod import events
from echod.config.listeners import Listener
from echod.config.models import Config
from echod.observe.scoreboard import Column, Scoreboard
from echod.process import reload, reports, status
from echod.process.doors import Doors
from echod.process.privileges import RunAs
from echod.process.runtime_directory import RuntimeDirectory
from echod.process.settings import Settings
from echod.process.status import WorkerStatus
from echod.process.systemd import Manager

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = [WorkerStatus(slot=1, pid=77, retiring=False)]


def estate(directory: Path, who: RunAs | None = None) -> reports.Estate:
    """Make an estate without sockets, log and file, of which one worker has counted something."""
    board = Scoreboard()
    row = board.take_row(())
    row[Column.ACTIVE], row[Column.ACCEPTED], row[Column.REFUSED], row[Column.LOG_DROPPED] = 2, 5, 3, 1
    row[Column.RECEIVED], row[Column.ECHOED] = 1234, 1230
    row[Column.DATAGRAMS], row[Column.DATAGRAM_BYTES] = 9, 900
    config = Config(listener=(Listener(address="127.0.0.1:0"),))
    adjusted = events.ConfigAdjusted(config_key="limits.max_connections", value=960)
    settings = Settings(
        config,
        None,
        None,
        foreground=True,
        poller="poll",
        adjustments=(adjusted,),
        inherited=frozenset(),
        certificates={},
    )
    log: Any = None
    place = RuntimeDirectory(directory / "run", 0o755)
    place.release()
    return reports.Estate(settings, place, Doors({}), log, board, who, Manager(), nohup=False)


def test_the_first_words(tmp_path: Path) -> None:
    """Who started, with which configuration, what was adjusted, and whom the workers are."""
    who = RunAs("echo", "echo", 7, 7, (7,))
    said = list(reports.started(estate(tmp_path, who)))

    assert ["service.started", "config.loaded", "config.adjusted", "privileges.dropped"] == [e.name for e in said]
    assert events.PrivilegesDropped(user="echo", group="echo") == said[-1]
    assert "poll" == said[0].poller if isinstance(said[0], events.ServiceStarted) else None


def test_nothing_is_dropped_without_root(tmp_path: Path) -> None:
    """A daemon that is not root's does not claim to have dropped anything."""
    assert "privileges.dropped" not in [event.name for event in reports.started(estate(tmp_path))]


def test_the_summary_says_why_a_reload_was_refused(tmp_path: Path) -> None:
    """One sentence, which names the first fault as long as the last reload was refused."""
    mine = estate(tmp_path)
    refused, taken = reload.Report(), reload.Report()
    refused.end(78, ["a.toml:3: wrong", "a.toml:4: wrong too"])
    taken.end(0)

    assert "Serving with 1 worker, configuration generation 4" == reports.summary(mine, 4, taken)
    assert (
        "Serving with 1 worker, configuration generation 4; the last reload was refused: a.toml:3: wrong"
        == reports.summary(mine, 4, refused)
    )


def test_snapshot_has_the_numbers_of_the_status(tmp_path: Path) -> None:
    """The record and `echod status` have the same numbers, those of the scoreboard."""
    mine = estate(tmp_path)
    rejected = reload.Report(started=1)
    rejected.end(78, ["a.toml:3: wrong"])
    document = status.collect(mine, reports.Phase.READY, 4, WORKERS, status.of_reload(rejected, 3))
    document.listeners[0].bound.extend(["127.0.0.1:7", "[::1]:7"])
    expected = events.StatusReported(
        state="ready",
        generation=4,
        uptime=document.uptime,
        listeners=["echo 127.0.0.1:7 [::1]:7"],
        workers=[77],
        active=2,
        accepted=5,
        refused=3,
        received=1234,
        echoed=1230,
        datagrams=9,
        reload="rejected",
        errors=["a.toml:3: wrong"],
        log_dropped=1,
    )

    assert expected == reports.status(document)
    assert document.uptime >= 0
