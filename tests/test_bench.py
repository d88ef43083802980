"""The bench: its load believes no server, and its gate fails where it should."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from bench import gate
from bench.goals import GOALS, Goal
from bench.load import HERE, SCENARIOS, BenchError, Load, compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_compiler = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="the load is compiled, and for Linux",
)


@contextlib.contextmanager
def served(change: Callable[[bytes], bytes]) -> Iterator[int]:
    """Serve what is received after `change`, on a port that is returned, to one client after the other."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = door.accept()
                    with client:
                        while data := client.recv(65536):
                            client.sendall(change(data))

        thread = threading.Thread(target=serve)
        thread.start()
        yield door.getsockname()[1]
        door.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Compile the load."""
    return Load(compiled(HERE / "load.c", tmp_path), 0)


@needs_compiler
def test_messages_are_counted(load: Load) -> None:
    """As many as were asked for make their way, each with a time."""
    with served(lambda data: data) as port:
        run = load.run(SCENARIOS["round trip"], port, messages=100)

    assert run.messages == 100
    assert 0 < run.p50 <= run.p99


@needs_compiler
@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"!", lambda data: bytes(len(data))], ids=["one", "all"])
def test_a_server_that_lies_is_found_out(load: Load, change: Callable[[bytes], bytes]) -> None:
    """A figure of a server that does not echo is none: every byte is compared."""
    with served(change) as port, pytest.raises(BenchError):
        load.run(SCENARIOS["round trip"], port, messages=100)


@pytest.mark.parametrize(("figure", "code"), [(90.0, 0), (100.0, 0), (104.9, 0), (105.1, 1), (200.0, 1)])
def test_the_gate_fails_beyond_its_slack(figure: float, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Five percent above the best is allowed, and no more; it says which it was."""
    assert code == gate.verdict(figure, 100.0)
    assert ("FAILED" if code else "ok") in capsys.readouterr().out


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.key)
def test_a_goal_is_met_on_its_own_side(goal: Goal) -> None:
    """Some figures must be small and some great; the line says which, and a figure that is missing is not met."""
    better, worse = (0.9, 1.1) if goal.side == "at most" else (1.1, 0.9)

    assert (True, False) == (goal.met(goal.bound * better), goal.met(goal.bound * worse))
    assert goal.line(goal.bound * better).startswith(" met")
    assert goal.line(goal.bound * worse).startswith(" OFF")
    assert "not measured" in goal.line(None)
