"""What log and metrics cost: the CPU time of a connection with its two records, against the same without them."""

from __future__ import annotations

import socket
import statistics
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.system import daemon as harness
from tests.system.clients import read_exactly

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Size
    from tests.system.daemon import Daemon, Starter

MOST = 1.25
"""CPU time at level info, as a multiple of that at level error."""

ROUNDS = 25
BATCH = 50


def cost(daemon: Daemon, batches: int) -> float:
    """Return the CPU seconds of all processes for one connection: connect, one message, close, many at a time."""
    address = daemon.address()
    before = daemon.cpu()
    for _ in range(batches):
        with ExitStack() as stack:
            clients = [stack.enter_context(socket.socket()) for _ in range(BATCH)]
            for client in clients:
                client.setblocking(False)
                client.connect_ex(address)
            for client in clients:
                client.settimeout(5)
                client.sendall(b"x" * 100)
            for client in clients:
                read_exactly(client, 100)
    return (daemon.cpu() - before) / (batches * BATCH)


@pytest.mark.alone
def test_the_log_costs_little(start: Starter, tmp_path: Path, size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    """At info, with metrics, a connection takes no more than a quarter of CPU time more than at error, without.

    `pytest --storm -rP tests/system/test_log_cost.py` prints the figures. Both daemons are measured in turns, and the
    median of what each pair of rounds says counts, so that what else the machine does falls on both.
    """
    if not size(0, 1):
        pytest.skip("a figure of half a minute, for `make storm`")
    monkeypatch.setattr(harness, "ECHOD", [sys.executable, "-m", "echod"])  # without what -X dev costs
    running = {
        level: start(log={"level": level, "file": str(tmp_path / f"{level}.log")}, admin=admin)
        for level, admin in (("error", {}), ("info", {"address": "127.0.0.1:0"}))
    }
    costs: dict[str, list[float]] = {level: [] for level in running}
    for _ in range(ROUNDS):
        for level, daemon in running.items():
            costs[level].append(cost(daemon, 40))
    rise = statistics.median(info / error for error, info in zip(*costs.values(), strict=True))
    print(  # noqa: T201
        f"CPU for a connection: {min(costs['error']) * 1e6:.0f} us at error, "
        f"{min(costs['info']) * 1e6:.0f} us at info, {rise - 1:+.1%}"
    )

    assert rise <= MOST
