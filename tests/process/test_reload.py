"""A reload is prepared whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from echod.errors import ConfigError, StartError
from echod.net import binding
from echod.process import reload
from echod.process.doors import Doors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.errors import EchodError
    from echod.net.reactor import Reactor
    from echod.process.settings import Settings

Prepare: TypeAlias = "Callable[[], reload.Prepared]"  # the type of the fixture `prepare`


@pytest.fixture
def doors(gathered: Settings) -> Iterator[Doors]:
    """Open the doors of the settings; whatever is open at the end is closed."""
    made = Doors({})
    made.open(gathered.config.listener, {one.name: binding.resolve(one) for one in gathered.config.listener})
    yield made
    for sock in [sock for opened in made._sockets.values() for sock in opened]:
        sock.close()


@pytest.fixture
def prepare(gathered: Settings, doors: Doors, reactor: Reactor) -> Prepare:
    """Give both steps of a reload whose names need no lookup."""
    return lambda: reload.prepare(reload.draft(gathered, doors, reactor), gathered, doors)


def descriptors() -> int:
    """Count the descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_new_is_nothing_to_do(gathered: Settings, doors: Doors, prepare: Prepare) -> None:
    """The same file keeps its listeners and its log."""
    before = doors.filenos()
    prepared = prepare()

    assert ((), gathered.config.listener, ()) == (prepared.plan.bind, prepared.plan.keep, prepared.plan.release)
    assert prepared.log is None
    assert before == doors.filenos()


def test_new_listeners_are_bound_and_old_ones_stay(doors: Doors, prepare: Prepare, config_file: Path) -> None:
    """What is new listens already, what is to be released listens still, and a new log is open."""
    text = config_file.read_text().replace('address = "127.0.0.1:0"', 'name = "other"\naddress = "127.0.0.1:0"')
    config_file.write_text(text.replace("/log", "/other.log"))
    prepared = prepare()

    assert ["other"] == [listener.name for listener in prepared.plan.bind]
    assert ["echo"] == [listener.name for listener in prepared.plan.release]
    assert 2 == len(doors.filenos())
    assert prepared.log is not None
    assert config_file.with_name("other.log").samefile(f"/proc/self/fd/{prepared.log}")
    os.close(prepared.log)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("[log]", "[lag]"), ConfigError("unknown table")),
        (("/run", "/elsewhere"), ConfigError("daemon.runtime_directory: cannot change without a restart")),
        (("127.0.0.1:0", "192.0.2.1:7"), StartError("no interface of this machine has it")),
        (("/log", "/nowhere/log"), StartError("No such file or directory")),
    ],
)
def test_a_failure_leaves_nothing_behind(
    doors: Doors, prepare: Prepare, config_file: Path, change: tuple[str, str], error: EchodError
) -> None:
    """Whatever is wrong, and however late it is found: the same sockets are open as before."""
    more = '\n[[listener]]\nname = "more"\naddress = "127.0.0.1:0"\n'
    config_file.write_text(config_file.read_text().replace(*change) + more)
    before, count = doors.filenos(), descriptors()
    with pytest.raises(type(error), match=str(error)):
        prepare()

    assert before == doors.filenos()
    assert count == descriptors()


def test_a_report_tells_its_outcome() -> None:
    """Before the end there is none; afterwards it says when, whether and why not."""
    report = reload.Report()
    assert report.finished is None
    assert report.duration >= 0
    report.end(78, ["why"])

    assert (False, ["why"], 78) == (report.ok, report.error, report.exit_code)
    assert report.finished is not None
    assert report.finished >= report.started
    report.end(0)
    assert (True, None, 0) == (report.ok, report.error, report.exit_code)
