"""The order of a start: what fails leaves nothing behind, and what happens after the start is told in one line."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.errors import ConfigError, StartError
from echod.process import daemonize, launch, settings, signals
from echod.process.doors import Doors

if TYPE_CHECKING:
    from echod.process.reports import Estate
    from echod.process.settings import Settings


class FakeSupervisor:
    """Takes the place of the supervisor and ends as `outcome` says."""

    outcome: BaseException | None = None
    pid_file = ""

    def __init__(self, estate: Estate, ready: Any) -> None:
        self.estate = estate

    def run(self) -> None:
        """Note what the pid file says, give back what a supervisor would, and end."""
        type(self).pid_file = (self.estate.directory.path / "echod.pid").read_text()
        self.estate.directory.socket.close()
        self.estate.doors.close(self.estate.settings.config.listener)
        self.estate.board.close()
        if self.outcome:
            raise self.outcome


@pytest.fixture(autouse=True)
def supervisor(monkeypatch: pytest.MonkeyPatch) -> type[FakeSupervisor]:
    """Put the fake in place, and leave this process's signals and limits alone."""
    for change in ("reset", "defer", "hold", "let_go", "ignore"):
        monkeypatch.setattr(signals, change, list)
    monkeypatch.setattr(signals, "ENDING", ())
    monkeypatch.setattr(settings, "raise_descriptor_limit", lambda: None)
    monkeypatch.setattr(FakeSupervisor, "outcome", None)
    monkeypatch.setattr(launch, "Supervisor", FakeSupervisor)
    return FakeSupervisor


def descriptors() -> int:
    """Count the descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_pid_file_lives_as_long_as_the_daemon(config_file: Path, supervisor: type[FakeSupervisor]) -> None:
    """It holds the pid while the supervisor runs and is gone afterwards."""
    launch.run(config_file, foreground=True)

    assert f"{os.getpid()}\n" == supervisor.pid_file
    assert [] == list((config_file.parent / "run").iterdir())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (StartError("no worker could start"), "no worker could start"),
        (ZeroDivisionError("division by zero"), "the supervisor failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_failed_supervisor_is_one_line(
    config_file: Path, supervisor: type[FakeSupervisor], monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    """Whatever ends it is a StartError; what nobody foresaw is logged as well; the pid file goes."""
    monkeypatch.setattr(supervisor, "outcome", error)
    with pytest.raises(StartError) as refused:
        launch.run(config_file, foreground=True)

    assert (line,) == refused.value.lines
    assert isinstance(error, StartError) != (b"service.failed" in (config_file.parent / "log").read_bytes())
    assert [] == list((config_file.parent / "run").iterdir())


def test_the_starter_is_told_of_a_failure(
    config_file: Path, supervisor: type[FakeSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detached, the reason goes down the pipe to the terminal; the lock and every door are kept over the detaching."""
    kept: list[int] = []
    reader, writer = os.pipe()

    def detach(preserve: list[int]) -> daemonize.Starter:
        kept.extend(preserve)
        return daemonize.Starter(writer)

    monkeypatch.setattr(daemonize, "detach", detach)
    monkeypatch.setattr(supervisor, "outcome", StartError("no worker could start"))
    with pytest.raises(StartError):
        launch.run(config_file, foreground=False)
    os.close(writer)  # as the end of the process does
    with os.fdopen(reader) as pipe:
        told = pipe.read()

    assert '[1,["no worker could start"]]' == told
    assert 6 == len(set(kept)), "directory, lock, both memories of the scoreboard, log and a listening socket"


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("[log]", "[lag]", ConfigError),
        ("127.0.0.1:0", "192.0.2.1:7", StartError),
        ("/log", "/nowhere/log", StartError),
    ],
    ids=["config", "address", "log"],
)
def test_a_refused_start_leaves_nothing_open(
    config_file: Path, old: str, new: str, kind: type[StartError | ConfigError]
) -> None:
    """Lock, sockets and log of a start that is refused are closed, and the directory is as it was."""
    config_file.write_text(config_file.read_text().replace(old, new))
    before = descriptors()
    with pytest.raises(kind) as refused:
        launch.run(config_file, foreground=True)
    refused.value.__traceback__ = None  # which holds the frames and what they have open

    assert before == descriptors()
    assert [] == list(config_file.parent.glob("run/*"))


def test_signal_during_start_removes_what_was_made(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TERM while lock and sockets are held, and once more while they are released, ends the process by the signal."""
    monkeypatch.undo()  # the signals of a process of its own are used
    path = config_file.with_name("echo.sock")
    config_file.write_text(f'{config_file.read_text()}[[listener]]\nname = "path"\nkind = "unix"\naddress = "{path}"\n')
    real = Doors.close_all

    def close_all(doors: Doors) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(doors)

    def interrupted(_settings: Settings) -> int:
        assert path.is_socket()
        assert list(config_file.parent.glob("run/*"))
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(Doors, "close_all", close_all)
    monkeypatch.setattr(settings, "open_log", interrupted)
    pid = os.fork()
    if not pid:
        try:
            launch.run(config_file, foreground=True)
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert not path.exists()
    assert list(config_file.parent.glob("run/*")) == []
