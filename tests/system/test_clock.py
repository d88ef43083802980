"""A wall clock that is set an hour forward or back while the daemon works: it lives by another one.

Rule: only the daemon's clock is set, never the machine's, by libfaketime(1). What CLOCK_MONOTONIC says stays true, as
it does where an administrator, NTP or a virtual machine steps the time of day.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from datetime import datetime
from pathlib import Path
from signal import SIGTERM, SIGUSR2
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import MIB, connect, echo_once, ping, read_to_end
from tests.system.daemon import environment, wait_until
from tests.system.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Size
    from tests.system.daemon import Daemon, Starter
    from tests.system.logs import Record

SEED = 3600
HOUR = 3600
AFTERWARDS = 1.5  # seconds in which the supervisor asks its workers at least once, and would find them silent
SLACK = 1.0

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

each_way = pytest.mark.parametrize("offset", [HOUR, -HOUR], ids=["forward", "back"])


class Clock:
    """The daemon's time of day, as far from the true one as was `set` last."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "offset"
        self.set(0)

    @property
    def env(self) -> dict[str, str]:
        """The environment in which the daemon goes by this clock."""
        return environment(
            LD_PRELOAD=str(LIBRARY),
            FAKETIME_TIMESTAMP_FILE=str(self._file),
            FAKETIME_NO_CACHE="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
            NO_FAKE_STAT="1",
        )

    def set(self, offset: int) -> None:
        """Step the clock."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{offset:+d}\n")
        draft.chmod(0o644)  # for workers too, whatever the umask
        draft.replace(self._file)


@pytest.fixture
def clock() -> Iterator[Clock]:
    """Make a clock that workers can read too, which have no rights."""
    if not LIBRARY:
        pytest.skip("libfaketime is not installed")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield Clock(directory)


def assert_stepped(daemon: Daemon, offset: int) -> None:
    """Hold that the supervisor and a worker go by the clock as it is set: else nothing would be shown."""
    count = len(daemon.records("status.reported"))
    daemon.signal(SIGUSR2)
    assert goes_by([daemon.wait_for("status.reported", count=count + 1)], offset)
    echo_once(daemon.address())
    wait_until(lambda: goes_by(daemon.records("connection.closed")[-1:], offset), what="the worker's clock")


def goes_by(records: list[Record], offset: int) -> bool:
    """Tell whether new records are stamped by a clock that is so far from the true one."""
    return bool(records) and all(abs(error_of(record) - offset) < 5 for record in records)


def error_of(record: Record) -> float:
    """Tell how many seconds the clock that has stamped a new record is ahead of the true one."""
    return datetime.fromisoformat(record["timestamp"]).timestamp() - time.time()


def test_a_step_ends_nothing(start: Starter, clock: Clock, size: Size) -> None:
    """An hour ahead, an hour behind, and right again, under load: no connection ends, no worker is blamed.

    All of it is done with an idle client whose ten minutes are not over, and with connections of thirty at most.
    Catches deadlines and pings by the time of day.
    """
    daemon = start(workers=2, env=clock.env, limits={"max_lifetime": "30m"}, log={"suppress": ["connection.opened"]})
    pids = daemon.pids()
    with connect(daemon.address()) as idle:
        ping(idle)
        with Traffic(daemon.address(), SEED, streams=size(20, 200), visitors=2) as traffic:
            for offset in [HOUR, -HOUR, 0][: size(2, 3)] * size(1, 10):
                clock.set(offset)
                assert_stepped(daemon, offset)
                time.sleep(AFTERWARDS)
            traffic.stop()
        ping(idle)
    daemon.reload()

    assert {} == traffic.faults
    assert pids == daemon.pids()
    assert {"peer_closed"} == {record["echod.close.reason"] for record in daemon.records("connection.closed")}


@each_way
def test_a_step_moves_no_timeout(start: Starter, clock: Clock, offset: int) -> None:
    """A silent client is sent FIN after its second, neither sooner nor later, whatever time of day it is.

    Catches a deadline by the time of day: it comes at once, or in an hour.
    """
    daemon = start(env=clock.env, limits={"idle_timeout": "1s"})
    with connect(daemon.address()) as client:
        ping(client)
        began = time.monotonic()
        clock.set(offset)
        assert_stepped(daemon, offset)
        assert (b"", "fin") == read_to_end(client)
        took = time.monotonic() - began

    assert 1.0 - 0.1 <= took <= 1.0 + SLACK


@each_way
def test_a_step_moves_no_drain(start: Starter, clock: Clock, offset: int, size: Size) -> None:
    """The clock is set while the daemon drains: who does not read is cut when `drain_timeout` is over, to the second.

    Before that, a client that talks on is echoed. Catches a drain that ends at once, or an hour later.
    """
    timeout = size(1, 10)
    daemon = start(workers=2, env=clock.env, daemon={"drain_timeout": f"{timeout}s"})
    with connect(daemon.address(), receive_buffer=4096) as stuck, connect(daemon.address()) as talker:
        stuck.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                stuck.send(bytes(MIB))
        ping(talker)
        daemon.signal(SIGTERM)
        began = time.monotonic()
        daemon.wait_for("service.stopping")
        clock.set(offset)
        while time.monotonic() < began + timeout / 2:
            ping(talker)
            time.sleep(0.05)  # a client's own pace
        assert daemon.wait_exit(timeout + 5.0) == 0
        took = time.monotonic() - began
        assert read_to_end(stuck)[1] == "reset"
    stopped = daemon.wait_for("service.stopped")

    assert goes_by([stopped], offset)
    assert timeout <= took <= timeout + SLACK
    assert stopped["echod.stop.duration"] == pytest.approx(took, abs=SLACK)
    assert stopped["echod.connections.cut"] == 1
