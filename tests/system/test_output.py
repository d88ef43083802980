"""The log never costs the echo anything: blocked, closed or on a full disk; rotated, moved and filtered under load.

Each record counts: what happened is known from the clients and from the connections' ids, so that a line which is lost
without being counted, counted without being lost, written twice or torn shows.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import threading
import time
from collections import Counter
from signal import SIGUSR1, SIGUSR2
from typing import TYPE_CHECKING, Self

import pytest

from tests.system import proc
from tests.system.clients import KIB, MIB, Client, Load, Payload, connect, echo_once, ping, read_to_end
from tests.system.daemon import echod, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from tests.conftest import Size
    from tests.system.clients import Address
    from tests.system.daemon import Daemon, Starter
    from tests.system.logs import Record

SEED = 1974
BLOCKAGE = 2, 10  # seconds that the log takes nothing, in the short form and in the long one
GROWTH = 4 * MIB  # what a blocked log may cost a process
WORKERS = 2
BATCH = 50
SIZE = 4 * KIB
SLOTS = 256  # a connection's id is its serial number in its worker's slot times this, plus the slot
DISK = 16 * MIB
QUEUE = MIB  # what each process holds for a log that takes nothing
SHORTEST = 256  # no record of a connection is shorter


class Churn:
    """Short connections, one batch after the other, in a thread of its own; every byte is compared."""

    def __init__(self, address: Address, seed: int = SEED) -> None:
        print(f"seed {seed}: batches of {BATCH} connections, {SIZE} bytes each")  # noqa: T201
        self.durations: list[float] = []  # seconds, of each batch
        self._address = address
        self._seed = seed
        self._payload = Payload(seed)
        self._faults: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="churn")

    @property
    def connections(self) -> int:
        """How many connections have come and gone."""
        return len(self.durations) * BATCH

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(60)
        if not kind:
            assert self._faults == []

    def go_on(self, batches: int = 10) -> None:
        """Wait until so many more batches are through."""
        goal = len(self.durations) + batches
        wait_until(lambda: len(self.durations) >= goal or self._faults, 10, f"{batches} more batches")

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() and not self._faults:
                self._batch()
        except (OSError, AssertionError) as error:
            self._faults.append(f"after {self.connections} connections: {error!r}")

    def _batch(self) -> None:
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            clients = [
                Client(
                    stack.enter_context(connect(self._address)), self._payload, self._seed + self.connections + n, SIZE
                )
                for n in range(BATCH)
            ]
            load = stack.enter_context(Load(clients))
            load.run(20)
        if not all(client.complete for client in clients):
            self._faults.append(f"after {self.connections} connections: {load.report()}")
        self.durations.append(time.monotonic() - started)


def watch(daemon: Daemon, churn: Churn, seconds: int) -> dict[int, int]:
    """Let the blockage last for so long; return by how many bytes each process grew meanwhile at most."""
    churn.go_on(2)
    before = {pid: proc.rss(pid) for pid in daemon.pids()}
    highest = before.copy()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.25))  # nothing is waited for but the time that the blockage takes
        highest = {pid: max(most, proc.rss(pid)) for pid, most in highest.items()}
    assert daemon.pids() == list(before)
    return {pid: highest[pid] - before[pid] for pid in before}


def assert_pace(churn: Churn, blocked: int) -> None:
    """Hold that the first `blocked` batches were no slower than those that came when the log was read again."""
    during, after = churn.durations[2:blocked], churn.durations[blocked:]
    print(  # noqa: T201
        f"{len(during) * BATCH / sum(during):.0f} connections/s while blocked, "
        f"{len(after) * BATCH / sum(after):.0f} after it; slowest batch {max(during):.3f} s"
    )
    assert statistics.median(during) < 2 * statistics.median(after)
    assert max(during) < 2.0


def dropped_so_far(daemon: Daemon) -> int:
    """Return how many lines the status says were dropped."""
    return int(daemon.state()["log"]["dropped"])


def dropped(daemon: Daemon) -> int:
    """Return how many lines were dropped, once that stays the same."""
    last = -1
    while last != (last := dropped_so_far(daemon)):
        time.sleep(0.1)  # longer than a process takes to count what it has just dropped
    return last


def of_connections(records: Iterable[Record]) -> list[Record]:
    """Return the records of connections."""
    return [record for record in records if record["event"] in {"connection.opened", "connection.closed"}]


def happened(records: Iterable[Record]) -> dict[int, int]:
    """Return how many connections each slot has had, by the ids of those that are in the log: the last one must be."""
    highest: dict[int, int] = {}
    for record in of_connections(records):
        serial, slot = divmod(record["echod.connection.id"], SLOTS)
        highest[slot] = max(serial, highest.get(slot, 0))
    return highest


def missing(records: Iterable[Record]) -> list[int]:
    """Return how many records of connections each process has not written, in ascending order."""
    records = of_connections(records)
    written = Counter(record["echod.connection.id"] % SLOTS for record in records)
    return sorted(2 * count - written[slot] for slot, count in happened(records).items())


def assert_each_once(records: Iterable[Record], connections: int) -> None:
    """Hold that each of so many connections has exactly one opened and one closed record, with all its bytes."""
    records = of_connections(records)
    by_event = {
        event: Counter(record["echod.connection.id"] for record in records if record["event"] == event)
        for event in ("connection.opened", "connection.closed")
    }
    assert connections == len(by_event["connection.opened"])
    assert by_event["connection.opened"] == by_event["connection.closed"]
    assert {1} == set(by_event["connection.closed"].values())
    closed = [record for record in records if record["event"] == "connection.closed"]
    assert {(SIZE, SIZE, "peer_closed")} == {
        (record["echod.io.receive"], record["echod.io.transmit"], record["echod.close.reason"]) for record in closed
    }


def assert_books_balance(daemon: Daemon, connections: int) -> None:
    """Stop, and hold that what was written and what is said to be dropped are together what happened."""
    counted = dropped(daemon)
    daemon.stop()
    daemon.wait_for("service.stopped")
    assert daemon.reader
    records = daemon.reader.records
    said = sorted(record["echod.log.dropped"] for record in daemon.records("log.dropped"))
    others = Counter(record["event"] for record in records)

    assert daemon.reader.malformed == []
    assert connections == sum(happened(records).values())
    assert [count for count in missing(records) if count] == said
    assert counted == sum(said)
    assert said  # else nothing was tried
    expected = {
        "service.started": 1,
        "worker.started": WORKERS,
        "service.ready": 1,
        "worker.exited": WORKERS,
        "listener.closed": 1,
    }
    assert expected == {event: others[event] for event in expected}


def read_file(path: Path) -> list[Record]:
    """Return the records of a log file; fail where a line is torn."""
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b"", f"{path} ends within a line"
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            raise AssertionError(f"{path}:{number}: {line!r}") from None
        assert isinstance(record, dict)
        records.append(record)
    return records


# -- blocked, closed, full --------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_blocked_output(start: Starter, size: Size) -> None:
    """A full pipe that nobody reads: the echo goes on, each line is written or counted, which is said once a process.

    Catches a write that waits, a queue without bounds, and a count that is only about right.
    """
    readable, writable = os.pipe()
    daemon = start(workers=WORKERS, stdout=writable, expect=["log.dropped"])
    os.close(writable)
    with Churn(daemon.address()) as churn:
        grown = watch(daemon, churn, size(*BLOCKAGE))
        blocked = len(churn.durations)
        daemon.read_log(readable)
        daemon.wait_for("log.dropped", count=WORKERS)
        churn.go_on()
    print(f"grown by {[round(count / MIB, 1) for count in grown.values()]} MiB")  # noqa: T201

    assert_pace(churn, blocked)
    assert max(grown.values()) <= GROWTH
    assert_books_balance(daemon, churn.connections)
    assert len(daemon.records("log.dropped")) == WORKERS


@pytest.mark.alone
def test_closed_output(start: Starter, size: Size) -> None:
    """The reader goes away under load: the echo goes on, `echod status` tells the drops exactly, the stop is clean."""
    readable, writable = os.pipe()
    daemon = start(workers=WORKERS, stdout=writable)
    os.close(writable)
    with Churn(daemon.address()) as churn:
        churn.go_on()
        os.close(readable)
        grown = watch(daemon, churn, size(*BLOCKAGE))
    first = dropped(daemon)
    with Churn(daemon.address(), SEED + 1) as more:
        more.go_on(5)
    second = dropped(daemon)
    status = echod("status", "--json", "-c", str(daemon.file))
    held = 2 * churn.connections - first
    print(f"grown by {[round(count / MIB, 1) for count in grown.values()]} MiB, {first} dropped")  # noqa: T201

    assert max(grown.values()) <= GROWTH
    assert max(churn.durations) < 2.0
    assert 2 * more.connections == second - first
    assert json.loads(status.stdout)["log"]["dropped"] == second
    assert 0 < held <= (WORKERS * QUEUE + 64 * KIB) / SHORTEST
    assert daemon.stop() < 3.0
    assert daemon.stderr() == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of a few MiB."""
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    point = tmp_path / "disk"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0755", "echod-test", str(point)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True)


def fill(disk: Path, spare: int = 0) -> Path:
    """Fill the disk, all but `spare` bytes, and return the file that does it."""
    ballast = disk / "ballast"
    found = os.statvfs(disk)
    left = max(0, found.f_bavail * found.f_frsize - spare)
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while left:
            left -= file.write(bytes(left))
    return ballast


@contextlib.contextmanager
def followed(file: Path, copy: Path) -> Iterator[None]:
    """Follow a log file as log shippers do: at the end `copy` is what they saw, with their complaints in it."""
    with copy.open("wb") as output:
        tail = subprocess.Popen(
            ["tail", "--lines=+1", "--follow=name", "--sleep-interval=0.05", str(file)], stdout=output, stderr=output
        )
        try:
            yield
            wait_until(lambda: copy.stat().st_size >= file.stat().st_size, 5, "all that is in the log")
        finally:
            tail.terminate()
            tail.wait()


@pytest.mark.alone
def test_full_disk(small_disk: Path, tmp_path: Path, start: Starter, size: Size) -> None:
    """The disk of `log.file` is full for ten seconds and then free: no line is torn, each one is written or counted.

    Who follows the file sees each line once. Catches half lines that are taken back: a file that gets shorter is read
    from its beginning again, by tail and by log shippers alike, a hundred times in these seconds.
    """
    file = small_disk / "echod.log"
    copy = tmp_path / "followed"
    daemon = start(workers=WORKERS, log={"file": str(file)}, expect=["log.dropped"])
    with followed(file, copy):
        with Churn(daemon.address()) as churn:
            churn.go_on(2)
            ballast = fill(small_disk, 64 * KIB)
            grown = watch(daemon, churn, size(*BLOCKAGE))
            blocked = len(churn.durations)
            ballast.unlink()
            daemon.wait_for("log.dropped", count=WORKERS)
            churn.go_on()
        seen = copy.read_bytes()
    print(f"grown by {[round(count / MIB, 1) for count in grown.values()]} MiB")  # noqa: T201

    assert seen.count(b"file truncated") == 0
    assert file.read_bytes().startswith(seen)
    assert_pace(churn, blocked)
    assert max(grown.values()) <= GROWTH
    assert_books_balance(daemon, churn.connections)
    assert len(daemon.records("log.dropped")) == WORKERS


def test_disk_full_again_and_again(small_disk: Path, start: Starter) -> None:
    """The disk fills up and is freed ten times under load, too shortly to drop anything: no line is torn or lost.

    Catches a process that goes on with its half of a line after another process has appended one of its own.
    """
    daemon = start(workers=WORKERS, log={"file": str(small_disk / "echod.log")})
    with Churn(daemon.address()) as churn:
        for _ in range(10):
            ballast = fill(small_disk, 8 * KIB)
            churn.go_on(3)
            ballast.unlink()
            churn.go_on(1)
    daemon.stop()

    assert_each_once(read_file(small_disk / "echod.log"), churn.connections)


def test_full_device_left_by_reload(start: Starter) -> None:
    """With `log.file` on /dev/full lines are dropped; a reload to a good file brings the held ones and the counts."""
    daemon = start(workers=WORKERS, log={"file": "/dev/full"})
    good = daemon.directory / "good.log"
    with Churn(daemon.address()) as churn:
        wait_until(lambda: dropped_so_far(daemon), 30, "a full queue")
        churn.go_on()
        daemon.reload(log={"file": str(good)})
        churn.go_on()
    counted = dropped(daemon)
    daemon.stop()
    records = read_file(good)
    said = sorted(record["echod.log.dropped"] for record in records if record["event"] == "log.dropped")

    assert churn.connections == sum(happened(records).values())
    assert [count for count in missing(records) if count] == said
    assert counted == sum(said) > 0


def test_many_at_once(tmp_path: Path, start: Starter) -> None:
    """4,000 connections that end in the same instant are 4,000 records, since the log takes lines all the while.

    Catches a queue that is emptied between the turns of the loop only, and overflows within one.
    """
    count = 4000
    file = tmp_path / "echod.log"
    daemon = start(log={"file": str(file)}, expect=["log.dropped"])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.address())) for _ in range(count)]
        ping(clients[-1])
        daemon.stop()
        ends = Counter(read_to_end(client, 1)[1] for client in clients)
    events = Counter(record["event"] for record in read_file(file))

    assert ends == {"fin": count}
    assert (events["connection.opened"], events["connection.closed"], events["log.dropped"]) == (count, count, 0)


# -- moved ------------------------------------------------------------------------------------------------------------


def test_rotation(start: Starter, tmp_path: Path) -> None:
    """Twenty times the file is renamed and USR1 sent under load: no line is lost, torn or written twice."""
    file = tmp_path / "echod.log"
    daemon = start(workers=WORKERS, log={"file": str(file)})
    with Churn(daemon.address()) as churn:
        for number in range(20):
            churn.go_on(1)
            file.rename(tmp_path / f"echod.log.{number}")
            daemon.signal(SIGUSR1)
            wait_until(file.exists, 5, "the new log file")
        churn.go_on(1)
    daemon.stop()
    files = [*(tmp_path / f"echod.log.{number}" for number in range(20)), file]
    records = list(itertools.chain.from_iterable(map(read_file, files)))
    events = Counter(record["event"] for record in records)

    assert_each_once(records, churn.connections)
    assert (events["log.reopened"], events["service.started"], events["service.stopped"]) == (20, 1, 1)
    assert events["log.dropped"] == 0


def test_redirected_output_is_appended_to_after_copytruncate(start: Starter, tmp_path: Path) -> None:
    """Standard output redirected with `>` and truncated under load, as logrotate's copytruncate does: no NUL bytes.

    What shares the descriptor, standard error or the shell, appends too. Catches a descriptor that writes on at its old
    offset, which leaves a hole in the file.
    """
    file = tmp_path / "redirected.log"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # as a shell does for `> file`
    daemon = start(workers=WORKERS, stdout=fd)
    with Churn(daemon.address()) as churn:
        for _ in range(5):
            churn.go_on(1)
            wait_until(lambda: file.stat().st_size, what="lines in the file")
            os.truncate(file, 0)
        churn.go_on(1)
    os.write(fd, b"from its parent\n")
    os.close(fd)
    daemon.stop()
    content = file.read_bytes()

    assert content.count(b"\0") == 0

    lines = content.splitlines()
    lines.remove(b"from its parent")
    events = Counter(json.loads(line)["event"] for line in lines)

    assert events["service.stopped"] == 1
    assert events["connection.closed"] > 0


def open_files(daemon: Daemon) -> set[tuple[str, ...]]:
    """Return which log files are open, for each process."""
    folder = str(daemon.directory)
    return {
        tuple(name for name in proc.descriptors(pid).values() if name.startswith(folder) and ".log" in name)
        for pid in daemon.pids()
    }


def test_file_changed_by_reload(start: Starter) -> None:
    """A reload that names another log file moves every process there, under load: no line is lost, torn or late."""
    daemon = start(workers=WORKERS)
    daemon.reload(log={"file": str(daemon.directory / "1.log")})
    with Churn(daemon.address()) as churn:
        for number in range(2, 5):
            churn.go_on(2)
            daemon.reload(log={"file": str(daemon.directory / f"{number}.log")})

            assert {(str(daemon.directory / f"{number}.log"),)} == open_files(daemon)
            left = (daemon.directory / f"{number - 1}.log").stat().st_size
            churn.go_on(1)
            assert left == (daemon.directory / f"{number - 1}.log").stat().st_size
    daemon.stop()
    records = [record for number in range(1, 5) for record in read_file(daemon.directory / f"{number}.log")]

    assert_each_once(records, churn.connections)
    assert daemon.reader
    assert daemon.reader.malformed == []
    assert of_connections(daemon.reader.records) == []


def test_bad_file_is_refused(start: Starter, tmp_path: Path) -> None:
    """A reload to a log file that cannot be opened is refused, and the log goes on where it was."""
    daemon = start(expect=["reload.refused"])
    report = daemon.reload(ok=False, log={"file": str(tmp_path / "nowhere" / "echod.log")})
    echo_once(daemon.address())
    daemon.wait_for("connection.closed")

    assert len(daemon.records("reload.refused")) == 1
    assert "No such file or directory" in report["errors"][0]


# -- filtered ---------------------------------------------------------------------------------------------------------


def test_level_changed_by_reload(start: Starter) -> None:
    """A reload to debug logs each receive and send, of open connections too; one to error silences all the rest."""
    daemon = start(workers=WORKERS)
    with connect(daemon.address()) as client:
        ping(client)
        daemon.reload(log={"level": "debug"})
        ping(client)
        daemon.wait_for("connection.sent", {"echod.io.count": len(b"are you there?")})
        daemon.reload(log={"level": "error"})
        assert daemon.reader
        before = len(daemon.reader.records)
        ping(client)
        echo_once(daemon.address())
    daemon.reload(log={"level": "info"})
    echo_once(daemon.address())
    last = daemon.wait_for("connection.closed")
    between = daemon.reader.records[before : daemon.reader.records.index(last)]

    assert (len(daemon.records("connection.received")), len(daemon.records("connection.sent"))) == (1, 1)
    assert {"debug"} == {record["level"] for record in daemon.records("connection.received")}
    # What is logged under "error" is nothing; the reload that ends it is the first to speak again.
    assert {"config.loaded", "reload.completed", "connection.opened"} >= {record["event"] for record in between}
    assert len(daemon.records("connection.opened")) == 2


def test_suppress_changed_by_reload(start: Starter) -> None:
    """Events that a reload puts on `log.suppress` are no longer written by any process, and come back with another."""
    daemon = start(workers=WORKERS)
    daemon.reload(log={"suppress": ["connection.opened", "signal.received"]})
    for _ in range(20):
        echo_once(daemon.address())
    daemon.signal(SIGUSR2)
    daemon.wait_for("status.reported")
    daemon.wait_for("connection.closed", count=20)
    signals = len(daemon.records("signal.received"))
    daemon.reload(log={"suppress": []})
    echo_once(daemon.address())
    daemon.wait_for("connection.opened")

    assert signals == 1  # the first HUP, which was taken under the old settings
    assert len(daemon.records("signal.received")) == 1
    assert len(daemon.records("connection.opened")) == 1
