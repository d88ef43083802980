"""Housekeeping: what other programs have removed is made again, and what cannot be is said once."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from echod.config.models import Config
from echod.events import RuntimeLost, RuntimeRestored
from echod.observe.scoreboard import Scoreboard
from echod.process import housekeeping
from echod.process.control import ControlSocket
from echod.process.doors import Doors
from echod.process.housekeeping import Housekeeping
from echod.process.runtime_directory import RuntimeDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from echod.net.reactor import Reactor
    from tests.process.conftest import Recorder


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RuntimeDirectory]:
    """Return a directory that is published."""
    made = RuntimeDirectory(tmp_path / "run", 0o755)
    made.publish()
    yield made
    made.release()


@pytest.fixture
def keeper(
    directory: RuntimeDirectory, reactor: Reactor, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Housekeeping]:
    """Look after the directory a hundred times a second."""
    monkeypatch.setattr(housekeeping, "INTERVAL", 0.01)
    settings = SimpleNamespace(config=Config())
    estate: Any = SimpleNamespace(directory=directory, doors=Doors({}), settings=settings, board=Scoreboard())
    control = ControlSocket(directory.socket, reactor, lambda *_: None, recorder.emit)
    reactor.add(control)
    made = Housekeeping(reactor, estate, control, recorder.emit)
    reactor.add(made)
    made.start(reactor.now)
    yield made
    made.end()


@pytest.mark.usefixtures("keeper")
def test_missing_socket_is_served_again(
    directory: RuntimeDirectory, reactor: Reactor, recorder: Recorder, turn: Any
) -> None:
    """One warning names the file, and the new socket is the one that the loop serves."""
    (directory.path / "control.sock").unlink()
    turn(reactor, lambda: recorder.events)
    reactor.turn(0)

    assert [RuntimeRestored(directory=str(directory.path), files=["control.sock"])] == recorder.events
    assert directory.socket.fileno() in [handler.fd for handler in reactor.handlers]


@pytest.mark.usefixtures("keeper")
def test_conflict_is_logged_once(
    directory: RuntimeDirectory, reactor: Reactor, recorder: Recorder, turn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of another daemon is an error once, and its end makes the missing file again."""
    looks = count()
    real = directory.restore

    def look() -> list[str]:
        next(looks)
        return real()

    monkeypatch.setattr(directory, "restore", look)
    path = directory.path / "echod.pid"
    path.unlink()
    path.write_text("theirs")
    turn(reactor, lambda: next(looks) > 3)
    path.unlink()
    turn(reactor, lambda: len(recorder.events) > 1)

    lost, restored = recorder.events
    assert isinstance(lost, RuntimeLost)
    assert str(path) in str(lost.error)
    assert RuntimeRestored(directory=str(directory.path), files=["echod.pid"]) == restored
