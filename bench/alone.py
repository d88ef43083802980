"""What echod is measured for by itself: how long it takes to start and to reload, and how much memory it needs."""

from __future__ import annotations

import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench import servers
from bench.load import SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.load import Load
    from bench.servers import Server

IDLE = 9_000
"""Connections that are open and silent; with the active ones below `max_connections`."""

TIMES = 5


def version() -> float:
    """Return the seconds that `echod --version` takes."""
    return median(_timed([sys.executable, "-m", "echod", "--version"]) for _ in range(TIMES))


def start() -> float:
    """Return the seconds from `echod run` to the first connect that succeeds."""

    def once() -> float:
        began = time.monotonic()
        with servers.echod("0"):
            return time.monotonic() - began

    return median(once() for _ in range(TIMES))


def reload() -> float:
    """Return the seconds from HUP to `reload.completed`."""

    def once(server: Server, number: int) -> float:
        began = time.monotonic()
        server.process.send_signal(signal.SIGHUP)
        servers.wait_until(lambda: server.said("reload.completed") >= number, "the reload")
        return time.monotonic() - began

    with servers.echod("0") as server:
        server.settle()
        return median(once(server, number) for number in range(1, TIMES + 1))


def memory() -> tuple[float, float]:
    """Return the bytes of echod's own for an idle connection, and the MiB of all its processes at rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with servers.echod("0") as server:
            server.settle()
            before = _pss(server.pids)
            idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(IDLE)]
            servers.wait_until(lambda: server.said("connection.opened") >= IDLE, "the connections")
            after = _pss(server.pids)
            for sock in idle:
                sock.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (after - before) / IDLE, before / 1024 / 1024


def growth(load: Load, seconds: float) -> float:
    """Return how fast active connections are beside idle ones, for each CPU second, against the same without them."""
    crowd = Scenario(connections=100, idle=IDLE)

    def once() -> float:
        with servers.echod("0") as server:
            server.settle()
            scenarios = (SCENARIOS["messages"], crowd, SCENARIOS["messages"])
            before, beside, after = (
                load.run(scenario, server.port, seconds=seconds, pids=server.children).thrift for scenario in scenarios
            )
            return 2 * beside / (before + after)

    return median(once() for _ in range(TIMES))


def _timed(words: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def _pss(pids: Iterable[int]) -> int:
    total = 0
    for pid in pids:
        maps = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        found = re.search(r"^Pss: +(\d+) kB", maps, re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total
