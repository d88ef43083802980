"""What the tests of the daemon's life share: a log that records, a reactor to turn, settings of their own."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from echod.net.poller import POLLERS
from echod.net.reactor import Reactor
from echod.process import settings
from tests.process.control_server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from echod.events import Event
    from echod.process.settings import Settings


@dataclass
class Recorder:
    """Keeps every event that is emitted, and names those of one kind."""

    events: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)

    def names(self) -> list[str]:
        """Return the names of all events so far."""
        return [event.name for event in self.events]


@pytest.fixture(autouse=True)
def _no_garbage() -> None:
    """Close what earlier tests have left to the garbage collector: tests count the descriptors of this process."""
    gc.collect()


@pytest.fixture
def recorder() -> Recorder:
    """Record what would have been logged."""
    return Recorder()


@pytest.fixture
def turn() -> Callable[..., None]:
    """Turn a reactor until a condition holds; fail when it does not within ten seconds."""

    def until(reactor: Reactor, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "the condition did not come true"
            reactor.turn(0.01)

    return until


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """Give a loop over poll(2) that lets exceptions out; what it still watches at the end is closed."""

    def crashed(_handler: object, error: Exception) -> None:
        raise error

    made = Reactor(POLLERS["poll"](), crashed)
    yield made
    for handler in made.handlers:
        handler.close()


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Write a configuration with a runtime directory, a log file and a free port of its own."""
    path = tmp_path / "echod.toml"
    path.write_text(
        f'[daemon]\nruntime_directory = "{tmp_path}/run"\n'
        f'[log]\nfile = "{tmp_path}/log"\n'
        '[[listener]]\naddress = "127.0.0.1:0"\n'
    )
    return path


@pytest.fixture
def gathered(config_file: Path) -> Settings:
    """Gather the settings of that file."""
    return settings.gather(config_file, foreground=True)


@pytest.fixture
def server(tmp_path: Path, reactor: Reactor, recorder: Recorder) -> Iterator[Server]:
    """Serve a control socket."""
    made = Server(tmp_path / "control.sock", reactor, recorder)
    yield made
    made.control.close()
