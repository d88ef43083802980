"""One reload at a time: what it asks of the supervisor, in which order, and who is answered."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from echod.errors import ConfigError, EchodError
from echod.observe.scoreboard import Scoreboard
from echod.process import reload, reports
from echod.process.doors import Doors
from echod.process.reloader import STOPPING, Reloader
from echod.process.reports import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from echod.net.reactor import Reactor
    from echod.process.settings import Settings
    from tests.process.conftest import Recorder


class Supervisor:
    """Notes what a reload asks for."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def enter(self, phase: Phase) -> None:
        """Note the phase."""
        self.asked.append(phase)

    def move_log(self, descriptor: int) -> None:
        """Note that the log moves."""
        self.asked.append("move_log")

    def assign(self, memfd: int, now: float) -> None:
        """Note that the workers are told."""
        os.close(memfd)
        self.asked.append("assign")


class Client:
    """Notes what it is answered."""

    def __init__(self) -> None:
        self.answers: list[EchodError | None] = []

    def answer(self, now: float) -> None:
        """Note that it is done."""
        self.answers.append(None)

    def refuse(self, error: EchodError, now: float) -> None:
        """Note why it is not."""
        self.answers.append(error)


@pytest.fixture
def supervisor() -> Supervisor:
    """Return a supervisor that does nothing."""
    return Supervisor()


@pytest.fixture
def reloader(
    supervisor: Supervisor, gathered: Settings, reactor: Reactor, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reloader]:
    """Reload the configuration of the test, whose listener is bound by nothing."""
    doors, board = Doors({}), Scoreboard()
    estate: Any = SimpleNamespace(settings=gathered, doors=doors, board=board, log=recorder)
    monkeypatch.setattr(reload, "apply", lambda *_: None)
    monkeypatch.setattr(reports, "config", lambda *_: None)
    monkeypatch.setattr(reload, "completed", lambda *_: None)
    yield Reloader(supervisor, estate, reactor)
    doors.close_all()
    board.close()


def client(reloader: Reloader) -> Client:
    """Let a client ask for a reload."""
    made = Client()
    asking: Any = made
    reloader.request(asking)
    return made


def test_reload_ends_when_all_workers_serve(reloader: Reloader, supervisor: Supervisor) -> None:
    """The workers are told once, and the unit is ready before the client is answered."""
    waiting = client(reloader)
    reloader.begin(0.0)
    reloader.advance(all_serving=False, now=0.0)
    assert [Phase.RELOADING, "assign"] == supervisor.asked
    assert [] == waiting.answers
    reloader.advance(all_serving=True, now=0.0)

    assert [Phase.RELOADING, "assign", Phase.READY] == supervisor.asked
    assert [None] == waiting.answers
    assert (2, "ok", 1) == (reloader.generation, reloader.status.outcome, reloader.status.count)
    assert not reloader.wanted


@pytest.mark.parametrize("step", ["draft", "prepare"])
def test_reload_is_refused_by_an_unexplained_system_error(
    reloader: Reloader, monkeypatch: pytest.MonkeyPatch, recorder: Recorder, step: str
) -> None:
    """An OSError that no step explains refuses the reload; the daemon runs on."""

    def fail(*_args: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(reload, step, fail)
    waiting = client(reloader)
    reloader.begin(0.0)

    assert reloader.status.outcome == "rejected"
    assert [str(answer) for answer in waiting.answers] == ["[Errno 24] Too many open files"]
    assert recorder.events[-1].name == "reload.refused"


def test_reload_is_refused_with_reason(
    reloader: Reloader, supervisor: Supervisor, config_file: Path, recorder: Recorder
) -> None:
    """A wrong file ends the reload at once: no worker is told, and the generation stays."""
    config_file.write_text("[lag]\n")
    waiting = client(reloader)
    reloader.begin(0.0)

    assert [Phase.RELOADING, Phase.READY] == supervisor.asked
    assert ["reload.refused"] == recorder.names()
    assert [ConfigError] == [type(error) for error in waiting.answers]
    assert (1, "rejected", 78) == (reloader.generation, reloader.status.outcome, reloader.status.exit_code)


def test_requests_during_reload_share_the_next_one(reloader: Reloader) -> None:
    """What is asked during a reload is answered by the one that begins after it."""
    reloader.begin(0.0)
    late = [client(reloader), client(reloader)]
    reloader.advance(all_serving=True, now=0.0)
    assert [[], []] == [one.answers for one in late]
    assert reloader.wanted
    reloader.begin(0.0)
    reloader.advance(all_serving=True, now=0.0)

    assert [[None], [None]] == [one.answers for one in late]
    assert 2 == reloader.status.count


def test_stop_refuses_current_and_waiting_clients(reloader: Reloader) -> None:
    """Both are told that the daemon is stopping, and the report ends."""
    current = client(reloader)
    reloader.begin(0.0)
    late = client(reloader)
    reloader.stop(0.0)

    assert [[STOPPING], [STOPPING]] == [current.answers, late.answers]
    assert "rejected" == reloader.status.outcome
    assert () == reloader.closing


def test_stop_without_reload_reports_none(reloader: Reloader) -> None:
    """A daemon that never reloaded has no report to end."""
    reloader.stop(0.0)

    assert "none" == reloader.status.outcome
