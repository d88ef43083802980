"""The load: load.c, compiled where it is used, and what one run of it came to."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent


class BenchError(Exception):
    """Something that ends the bench, in words for who runs it."""


@dataclass(frozen=True)
class Scenario:
    """What the load does."""

    connections: int = 1
    size: int = 64
    depth: int = 1
    idle: int = 0
    churn: bool = False


SCENARIOS = {
    "messages": Scenario(connections=100),
    "round trip": Scenario(),
    "bulk": Scenario(connections=10, size=64 * 1024, depth=4),
    "connections": Scenario(connections=10, churn=True),
}


@dataclass(frozen=True)
class Run:
    """What came of it."""

    messages: int
    seconds: float
    load_cpu: float
    server_cpu: float
    p50: float = 0.0
    """Microseconds of a round trip, where one message was in flight."""
    p99: float = 0.0

    @property
    def rate(self) -> float:
        """Messages, or connections, a second."""
        return self.messages / self.seconds

    @property
    def thrift(self) -> float:
        """The same for each second of the server's CPU time; 0 where that is not known."""
        return self.messages / self.server_cpu if self.server_cpu else 0.0

    @property
    def share(self) -> float:
        """How much of the time the load itself was at work."""
        return self.load_cpu / self.seconds


def compiled(source: Path, folder: Path) -> Path:
    """Compile a C program into `folder`, unless that was done; raise BenchError when it cannot be."""
    program = folder / source.stem
    if program.exists():
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise BenchError("there is no C compiler here, and the load is written in C: apt-get install gcc libc6-dev")
    subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    return program


@dataclass(frozen=True)
class Load:
    """The program, on its CPU."""

    program: Path
    cpu: int

    def run(
        self, scenario: Scenario, port: int, *, seconds: float = 1.0, messages: int = 0, pids: Iterable[int] = ()
    ) -> Run:
        """Load the server at `port` for `seconds`, or with exactly so many `messages`."""
        words = (
            *("taskset", "-c", self.cpu, self.program, port, scenario.connections, scenario.size, scenario.depth),
            *(seconds, messages, scenario.idle, int(scenario.churn), *pids),
        )
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(done.stderr.strip())
        return Run(**json.loads(done.stdout))
