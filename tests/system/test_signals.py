"""Signals by the thousand, mixed and at random times: each has its effect, and whatever comes, it ends stopped."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from signal import SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGUSR1, SIGUSR2, Signals
from typing import TYPE_CHECKING, Self

import pytest

from tests.system.clients import connect, ping, read_to_end
from tests.system.daemon import ECHOD, ROOT, SCALE, Daemon, environment, wait_until
from tests.system.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from tests.conftest import Size
    from tests.system.daemon import Starter

SEED = 20_241
RATE = 10_000
"""Signals a second."""

MIXED = (SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD)
EFFECTS = {SIGHUP: "reload.completed", SIGUSR1: "log.reopened", SIGUSR2: "status.reported", SIGCHLD: "worker.died"}
PROMPT = 1.0
STILL = 0.2

BRIEF = {"drain_timeout": "1s"}
BOUND = 1.0 + 1.0  # drain_timeout, and what is promised beyond it
TROUBLE = ("worker.died", "worker.throttled", "reload.refused")
LATE, DEADLY = 0.02, 0.3  # how probable another TERM is, and the death of a worker
LONGEST_PAUSE = 0.05


class Storm:
    """Sends a process signals of the kinds given, mixed, for as long as the context lasts."""

    def __init__(self, pid: int, seed: int) -> None:
        self.kinds: Sequence[Signals] = MIXED
        self.sent = 0
        self._pid = pid
        self._began = time.monotonic()
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._blow, name="storm")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def rate(self) -> float:
        """Signals a second, until now."""
        return self.sent / (time.monotonic() - self._began)

    def _blow(self) -> None:
        while not self._over.wait(0.002):
            for _ in range(int((time.monotonic() - self._began) * RATE) - self.sent):
                os.kill(self._pid, self._random.choice(self.kinds))
                self.sent += 1


@pytest.mark.alone
def test_a_storm_of_signals_loses_no_effect(start: Starter, tmp_path: Path, size: Size) -> None:
    """100,000 mixed HUP, USR1, USR2 and CHLD in ten seconds, under load: each kind still has its effect within one.

    By turns one kind is left out of the storm and sent once: it is acted on, and once. For CHLD a worker dies.
    Catches a handler that acts and logs by itself, in the midst of what it interrupts.
    """
    rounds = size(1, 10)
    daemon = start(
        workers=2,
        limits={"max_connections": 5000},
        log={"file": str(tmp_path / "echod.log"), "suppress": ["connection.opened", "connection.closed"]},
        expect=["worker.died", "worker.throttled"],
    )
    supervisor, latencies = daemon.pid, []
    with Storm(supervisor, SEED) as storm:
        with Traffic(daemon.address(), SEED, streams=10) as traffic:
            for number in range(1, rounds + 1):
                latencies += [seconds_to_effect(daemon, storm, kind) for kind in (SIGHUP, SIGUSR1, SIGUSR2)]
                wait_until(lambda: storm.sent >= number * RATE, what="the storm")  # noqa: B023
            traffic.stop()
        for _ in range(min(rounds, 3)):
            latencies.append(seconds_to_effect(daemon, storm, SIGCHLD))
            wait_until(lambda: len(daemon.workers()) == 2, what="the replacement")
    daemon.reload(limits={"idle_timeout": "200ms"})
    with connect(daemon.address()) as client:
        assert read_to_end(client, 5) == (b"", "fin")

    print(f"{storm.sent} signals, {storm.rate:.0f} a second; slowest effect {max(latencies) * 1000:.0f} ms")  # noqa: T201
    assert {} == traffic.faults
    assert max(latencies) < PROMPT
    assert supervisor == daemon.pid


def seconds_to_effect(daemon: Daemon, storm: Storm, kind: Signals) -> float:
    """Leave a kind out of the storm, send it once (for CHLD: kill a worker), and tell when its one effect is logged."""
    event = EFFECTS[kind]
    storm.kinds = [other for other in MIXED if other is not kind]
    before = settled(daemon, event)
    sent = time.monotonic()
    if kind is SIGCHLD:
        os.kill(daemon.workers()[0], SIGKILL)
    else:
        daemon.signal(kind)
    daemon.wait_for(event, count=before + 1)
    took = time.monotonic() - sent
    assert before + 1 == settled(daemon, event)
    storm.kinds = MIXED
    return took


def settled(daemon: Daemon, event: str) -> int:
    """Wait until what was asked for is done, which is when the count of an event has stood still; return the count."""
    count, since = -1, 0.0
    while (found := len(daemon.records(event))) != count or time.monotonic() < since + STILL:
        if found != count:
            count, since = found, time.monotonic()
        time.sleep(0.01)
    return count


def test_the_last_of_many_signals_counts(start: Starter, tmp_path: Path, size: Size) -> None:
    """Many USR1 and USR2 at once, the log file is moved away, and one more USR1: the file is there again.

    Catches a flag that is lowered after the deed and not before, so that what comes meanwhile is forgotten.
    """
    log = tmp_path / "echod.log"
    daemon = start(log={"file": str(log)})
    chance = random.Random(SEED)
    slowest = 0.0
    for number in range(size(200, 2000)):
        for _ in range(chance.randrange(300)):
            os.kill(daemon.pid, chance.choice((SIGUSR1, SIGUSR2)))
        log.rename(tmp_path / f"echod.log.{number % 2}")
        daemon.signal(SIGUSR1)
        sent = time.monotonic()
        wait_until(log.exists, PROMPT, "the log file")
        slowest = max(slowest, time.monotonic() - sent)

    print(f"seed {SEED}, slowest effect {slowest * 1000:.0f} ms")  # noqa: T201


def test_random_storms_end_stopped(tmp_path: Path, size: Size) -> None:
    """200 storms of HUP, TERM, other signals and the death of workers: each ends stopped, with 0, within the bound.

    No process, file or traceback is left, whatever moment a signal hits: in a reload, in a drain, at the very end.
    Catches a process that a signal can still kill when its exit code is decided.
    """
    chance = random.Random(SEED)
    slowest = 0.0
    for number in range(size(6, 200)):
        seed = chance.randrange(1 << 30)
        directory = tmp_path / str(number)
        directory.mkdir()
        try:
            slowest = max(slowest, one_storm(directory, random.Random(seed)))
        except BaseException:
            print(f"storm {number}, seed {seed}")  # noqa: T201
            raise
        shutil.rmtree(directory)

    print(f"seed {SEED}, the slowest end took {slowest:.2f} s")  # noqa: T201


def one_storm(directory: Path, chance: random.Random) -> float:
    """Blow once, and tell how long the daemon took to end from the first TERM on."""
    ending = 0.0
    daemon = Daemon(directory, workers=chance.choice([1, 2, 4]), daemon=BRIEF, expect=TROUBLE)
    with daemon, contextlib.ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(connect(daemon.address()))
            ping(client)
            client.send(b"under way")
        for _ in range(chance.randrange(40)):
            one_blow(daemon, chance)
        began = time.monotonic()
        daemon.signal(chance.choice([SIGTERM, SIGINT]))
        while daemon.running():  # to the last moment, since that is one in which a signal can hit too
            one_blow(daemon, chance, last=True)
            assert time.monotonic() < began + BOUND, "it did not end"
        ending = time.monotonic() - began
        assert daemon.wait_exit() == 0
    return ending


def one_blow(daemon: Daemon, chance: random.Random, *, last: bool = False) -> None:
    """Do one thing to a daemon: reload it with another file, signal it, or kill one of its workers."""
    match chance.choice(["reload", "signal", "signal", "kill"]):
        case "reload":
            extra = [{"name": "extra", "kind": "tcp", "address": "127.0.0.1:0"}] * chance.randrange(2)
            first = daemon.config["listener"][:1]
            daemon.write(daemon={"workers": chance.randrange(5)}, listener=[*first, *extra])  # 0 is refused
            send(daemon.pid, SIGHUP)
        case "signal":
            send(daemon.pid, chance.choice([*MIXED, *([SIGTERM] if last and chance.random() < LATE else [])]))
        case "kill" if chance.random() < DEADLY and (workers := daemon.workers()):
            send(chance.choice(workers), SIGKILL)
    time.sleep(chance.random() ** 3 * LONGEST_PAUSE)


def send(pid: int, number: Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def test_a_signal_as_soon_as_the_pid_is_known(tmp_path: Path, size: Size) -> None:
    """HUP the moment the pid file names the daemon is a reload, and TERM is a stop with 0: neither kills it.

    Catches a pid that is told before somebody acts on signals.
    """
    for number in range(size(3, 50)):
        directory = tmp_path / str(number)
        directory.mkdir()
        daemon = Daemon(directory)
        with subprocess.Popen(
            [*ECHOD, "run", "-c", str(daemon.file)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            end = time.monotonic() + 10 * SCALE
            while not (daemon.pid_file.exists() and daemon.pid_file.read_text()):  # no pause: the moment is what counts
                assert time.monotonic() < end, "no pid"
            process.send_signal(SIGHUP)
            wait_until(lambda: process.poll() is not None or daemon.state().get("generation") == 2, what="the reload")  # noqa: B023
            process.send_signal(SIGTERM)
            _, said = process.communicate(timeout=10 * SCALE)
        daemon.check()

        assert (0, b"") == (process.returncode, said)
