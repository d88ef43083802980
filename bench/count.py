"""Instructions in user space that a worker of echod spends on a message of 64 bytes.

Counted over many messages and over few, in a process of its own each: the difference has neither start nor end in it.
perf counts what the processor does. Where it may not, on most virtual machines, valgrind counts what it makes of the
program, the same to 1 in 10,000 every time; the two differ by some percent, so each has figures of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench import servers
from bench.load import SCENARIOS, BenchError

if TYPE_CHECKING:
    from bench.load import Load

FEW, MANY = 1_000, 21_000
"""Messages of the two runs under valgrind."""

PLENTY = 200_000
"""Messages of the one under perf, whose start is not counted."""

EVENT = "instructions:u"


def means() -> str | None:
    """Return what can count instructions here: "perf", "valgrind" or None."""
    if perf := shutil.which("perf"):
        done = subprocess.run([perf, "stat", "-x,", "-e", EVENT, "true"], capture_output=True, text=True, check=False)
        if not done.returncode and done.stderr.split(",")[0].isdigit():
            return "perf"
    return "valgrind" if shutil.which("valgrind") else None


def per_message(how: str, load: Load, workers: int = 1, **tables: str) -> float:
    """Return the instructions for each message, summed over the workers; `tables` are lines of the configuration."""
    if how == "perf":
        return _by_perf(load, workers, tables)
    return (_by_valgrind(load, MANY, workers, tables) - _by_valgrind(load, FEW, workers, tables)) / (MANY - FEW)


def interpreter(how: str) -> str:
    """Return what a figure depends on besides the code."""
    version = " ".join(sys.version.split())
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{how}: {sys.implementation.name} {version} on {machine}"


def _by_perf(load: Load, workers: int, tables: dict[str, str]) -> float:
    with servers.echod(_cpus(workers), workers=workers, wrapper=(), **tables) as server:
        server.settle()
        pids = ",".join(str(pid) for pid in server.children)
        words = ["perf", "stat", "-x,", "-e", EVENT, "-p", pids]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as perf:
            load.run(SCENARIOS["messages"], server.port, messages=PLENTY)
            perf.send_signal(2)
            _, said = perf.communicate()
    return int(said.split(",")[0]) / PLENTY


def _by_valgrind(load: Load, messages: int, workers: int, tables: dict[str, str]) -> int:
    with tempfile.TemporaryDirectory(prefix="echod-count-") as name:
        folder = Path(name)
        folder.chmod(0o1777)  # a worker of root writes there as nobody
        wrapper = ("valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={folder}/%p")
        with servers.echod(_cpus(workers), workers=workers, wrapper=wrapper, **tables) as server:
            server.settle()
            children = server.children
            load.run(SCENARIOS["messages"], server.port, messages=messages)
        return sum(_summary(folder / str(pid)) for pid in children)


def _summary(path: Path) -> int:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("summary:"):
            return int(line.split()[1])
    raise BenchError(f"{path}: valgrind has counted nothing")


def _cpus(workers: int) -> str:
    return f"0-{workers - 1}"
