"""The supervisor, as a forked process under this test: its phases, and what only shows from within.

What users see of it is held by tests/system.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from echod.errors import EchodError, NotRunningError, StartError
from echod.process import control_client, launch, worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Forked:
    """A whole daemon in a forked process, and what it leaves in files."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.exit_code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            code = 99
            try:
                signal.alarm(60)  # whatever goes wrong with the test, it ends
                launch.run(config, foreground=True)
                code = 0
            except EchodError as error:
                code = error.exit_code
            finally:
                os._exit(code)

    def state(self) -> dict[str, Any]:
        """Return the status; empty when there is no daemon."""
        try:
            return control_client.status(self.config)
        except (NotRunningError, StartError):  # not yet, or no more
            return {}

    def events(self) -> list[str]:
        """Return the names of all events in the log."""
        text = (self.config.parent / "log").read_text()
        return [json.loads(line)["event"] for line in text.splitlines()]

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds."""
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "the condition did not come true"
            time.sleep(0.005)

    def ended(self) -> bool:
        """Tell whether it has left, and keep how."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None

    def close(self) -> None:
        """End it if it still lives; its workers notice."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.until(self.ended)


@pytest.fixture
def fork(config_file: Path) -> Iterator[Callable[[], Forked]]:
    """Fork daemons that do not outlive the test."""
    made: list[Forked] = []

    def one() -> Forked:
        made.append(Forked(config_file))
        return made[-1]

    yield one
    for daemon in made:
        daemon.close()


def test_a_life_in_order(fork: Callable[[], Forked]) -> None:
    """Ready once the worker has answered, reloading in place, stopping by TERM: 0, and no file stays."""
    daemon = fork()
    daemon.until(lambda: daemon.state().get("state") == "ready")
    first = daemon.state()
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.until(lambda: daemon.state()["reload"]["age"] is not None)
    second = daemon.state()
    os.kill(daemon.pid, signal.SIGTERM)
    daemon.until(daemon.ended)

    assert (1, 2) == (first["generation"], second["generation"])
    assert first["workers"] == second["workers"]
    assert first["listeners"] == second["listeners"]
    assert second["reload"]["outcome"] == "ok"
    assert 0 == daemon.exit_code
    assert [] == list((daemon.config.parent / "run").iterdir())
    told = [
        "service.started",
        "config.loaded",
        "service.ready",
        "reload.completed",
        "service.stopping",
        "service.stopped",
    ]
    assert told == [name for name in dict.fromkeys(daemon.events()) if name in told]


def test_workers_that_never_answer_end_the_start(fork: Callable[[], Forked], monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first worker of every slot dies young the daemon leaves with 1 and does not loop."""
    monkeypatch.setattr(worker, "live", lambda *_: os._exit(7))
    daemon = fork()
    daemon.until(daemon.ended)

    assert 1 == daemon.exit_code
    assert 1 == daemon.events().count("worker.died")
    assert not (daemon.config.parent / "run" / "echod.pid").exists()


def test_ready_waits_for_every_worker(
    fork: Callable[[], Forked], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A service manager hears READY once the slowest worker has answered, and not before."""
    real, gate, address = worker.live, tmp_path / "gate", tmp_path / "notify"

    def slow(*arguments: Any) -> NoReturn:
        while not gate.exists():
            time.sleep(0.01)
        real(*arguments)

    monkeypatch.setattr(worker, "live", slow)
    monkeypatch.setenv("NOTIFY_SOCKET", str(address))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.setblocking(False)
        daemon = fork()
        daemon.until(lambda: daemon.state().get("workers"))
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
        gate.touch()
        daemon.until(lambda: daemon.state().get("state") == "ready")

        assert manager.recv(4096).startswith(b"READY=1\n")
    os.kill(daemon.pid, signal.SIGTERM)
    daemon.until(daemon.ended)


def test_a_failed_start_leaves_no_file(fork: Callable[[], Forked], monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that never was ready leaves nothing in its runtime directory."""
    monkeypatch.setattr(worker, "live", lambda *_: os._exit(7))
    daemon = fork()
    daemon.until(daemon.ended)

    assert [] == list((daemon.config.parent / "run").iterdir())


def test_quit_ends_at_once(fork: Callable[[], Forked]) -> None:
    """QUIT needs no drain, also where TERM has begun one."""
    daemon = fork()
    daemon.until(lambda: daemon.state().get("state") == "ready")
    os.kill(daemon.pid, signal.SIGQUIT)
    daemon.until(daemon.ended)

    assert 0 == daemon.exit_code
    assert "service.stopped" == daemon.events()[-1]


def test_a_refused_reload_changes_nothing(fork: Callable[[], Forked]) -> None:
    """The report names the fault and its exit code; generation, listeners and workers stay."""
    daemon = fork()
    daemon.until(lambda: daemon.state().get("state") == "ready")
    before = daemon.state()
    daemon.config.write_text(f"{daemon.config.read_text()}[lag]\n")
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.until(lambda: daemon.state()["reload"]["age"] is not None)
    after = daemon.state()

    assert ("rejected", 78, 1) == (
        after["reload"]["outcome"],
        after["reload"]["exit_code"],
        len(after["reload"]["errors"]),
    )
    assert {name: before[name] for name in ("generation", "listeners", "workers", "state")} == {
        name: after[name] for name in ("generation", "listeners", "workers", "state")
    }
    os.kill(daemon.pid, signal.SIGTERM)
    daemon.until(daemon.ended)
    assert 0 == daemon.exit_code
