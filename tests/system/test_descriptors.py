"""Descriptors and connection limits: running out is survived, not fitting is said with the number that fits."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.system import proc
from tests.system.clients import connect, echo_once, ping, read_to_end
from tests.system.daemon import Daemon, StartFailedError, echod, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.daemon import Starter

EXEC = (
    "import os, resource, sys; "
    "resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1].split(':')))); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def with_limit(soft: int, hard: int) -> list[str]:
    """Return a launcher that sets the limit of descriptors and then becomes the command that follows."""
    return [sys.executable, "-c", EXEC, f"{soft}:{hard}"]


def lower_limit(daemon: Daemon, spare: int) -> None:
    """Leave each process room for `spare` descriptors more than it has."""
    for pid, held in daemon.descriptors().items():
        soft = max(max(proc.descriptors(pid)) + 1, held) + spare
        hard = proc.open_files_limit(pid)[1]
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        except PermissionError:  # a root without CAP_SYS_RESOURCE, as in containers, must ask as the worker's user
            uid, gid = (int(proc.status(pid)[name].split()[0]) for name in ("Uid", "Gid"))
            command = ["prlimit", "--pid", str(pid), f"--nofile={soft}:{hard}"]
            subprocess.run(command, check=True, user=uid, group=gid, extra_groups=[])


@pytest.mark.alone
@pytest.mark.parametrize("poller", ["epoll", "poll"])
def test_exhausted_descriptors(start: Starter, poller: str) -> None:
    """Room for 50 more and 1,000 clients: CPU under 5 %, those inside are echoed, freed places are taken within 1 s.

    Catches the loop that is woken for ever by a listener whose accept fails (98,000 EMFILE in 10 s, seen elsewhere).
    """
    daemon = start(daemon={"poller": poller}, expect=["listener.paused"])
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(connect(daemon.address())) for _ in range(20)]
        for client in inside:
            ping(client)
        lower_limit(daemon, 50)
        waiting = [stack.enter_context(connect(daemon.address())) for _ in range(1000)]
        daemon.wait_for("listener.paused")
        share = daemon.cpu_share(1.0)
        slowest = max(ping(client) for client in inside)
        accepted = len(daemon.records("connection.opened"))

        for client in inside[:10]:
            client.close()
        daemon.wait_for("connection.opened", count=accepted + 10, timeout=1.5)
        paused = len(daemon.records("listener.paused"))
        resumed = len(daemon.records("listener.resumed"))

        for client in waiting[:960]:
            client.close()
        daemon.wait_for("listener.resumed", timeout=5)
        for client in waiting[-10:]:
            ping(client)

    print(f"CPU {share:.1%}, slowest echo {slowest * 1000:.1f} ms")  # noqa: T201
    assert share < 0.05
    assert slowest < 1.0
    assert (paused, resumed) == (1, 0)
    assert daemon.records("listener.paused")[0]["error.type"] == "EMFILE"


def test_a_reload_without_descriptors_left(start: Starter) -> None:
    """Every descriptor of the worker is a connection: reloads are taken all the same, by the same process.

    Catches a worker that dies of descriptors which the kernel could not give it, and takes its connections along.
    """
    daemon = start(expect=["listener.paused"])
    pids = daemon.pids()
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(connect(daemon.address())) for _ in range(5)]
        for client in inside:
            ping(client)
        lower_limit(daemon, 20)
        for _ in range(100):
            stack.enter_context(connect(daemon.address()))
        daemon.wait_for("listener.paused")
        daemon.reload(limits={"idle_timeout": "9m"})
        for client in inside:
            ping(client)
        daemon.reload(log={"file": str(daemon.log_file)})
        for client in inside:
            ping(client)
    wait_until(lambda: b"connection.closed" in daemon.log_file.read_bytes(), what="the worker's lines in the new file")

    assert pids == daemon.pids()


def test_the_soft_limit_is_raised(start: Starter) -> None:
    """Started under a soft limit of 256, every process runs with the soft limit at the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    daemon = start(prefix=with_limit(256, hard), limits={"max_connections": 500})

    assert {(hard, hard)} == {proc.open_files_limit(pid) for pid in daemon.pids()}
    with contextlib.ExitStack() as stack:
        for client in [stack.enter_context(connect(daemon.address())) for _ in range(400)]:
            ping(client)


def test_the_default_shrinks_under_a_hard_limit(start: Starter) -> None:
    """Under a hard limit of 1,024 the built-in max_connections is made to fit, said in an event, and served in full."""
    daemon = start(prefix=with_limit(1024, 1024), expect=["connection.refused"])
    record = daemon.wait_for("config.adjusted")
    most = record["echod.config.value"]

    assert record["echod.config.key"] == "limits.max_connections"
    assert record["echod.config.default"] == 10_000
    assert 800 <= most < 1024
    with contextlib.ExitStack() as stack:
        for client in [stack.enter_context(connect(daemon.address())) for _ in range(most)]:
            ping(client)
        _, end = read_to_end(stack.enter_context(connect(daemon.address())), 5)
    assert end == "fin"
    assert daemon.records("listener.paused") == []


def number_to_set(stderr: str) -> int:
    """Return the largest number that fits, which the message must tell."""
    line = next(line for line in stderr.splitlines() if "max_connections" in line)
    numbers = [int(text.replace(",", "")) for text in re.findall(r"\d[\d,]*", line.split("max_connections", 1)[1])]
    fitting = [number for number in numbers if 100 < number < 1024 and number not in {1000, 1023, 1024}]
    assert fitting, f"no number to set in: {line}"
    return fitting[-1]


def refused_start(directory: Path, prefix: list[str], poller: str, most: int) -> str:
    """Start with a max_connections that does not fit and return what is said on stderr."""
    daemon = Daemon(directory, prefix=prefix, daemon={"poller": poller}, limits={"max_connections": most})
    with pytest.raises(StartFailedError) as failure, daemon:
        pass
    assert failure.value.code == 78, failure.value.stderr
    assert all(line.startswith("echod: ") for line in failure.value.stderr.splitlines())
    return failure.value.stderr


@pytest.mark.parametrize(
    ("poller", "limit"), [("epoll", (1024, 1024)), ("select", (4096, 4096))], ids=["descriptors", "select"]
)
def test_a_number_that_cannot_fit_is_refused(
    start: Starter, tmp_path: Path, poller: str, limit: tuple[int, int]
) -> None:
    """A max_connections from the file that cannot be had is refused with 78 and the number to set, which then works."""
    stderr = refused_start(tmp_path, with_limit(*limit), poller, 2000)
    most = number_to_set(stderr)
    daemon = start(prefix=with_limit(*limit), daemon={"poller": poller}, limits={"max_connections": most})
    with contextlib.ExitStack() as stack:
        for client in [stack.enter_context(connect(daemon.address())) for _ in range(most)]:
            ping(client)

    assert daemon.records("config.adjusted") == []
    refused_start(tmp_path, with_limit(*limit), poller, most + 1)


@pytest.mark.parametrize("poller", ["poll", "select"])
def test_a_default_shrinks_for_select_only(start: Starter, poller: str) -> None:
    """select() cannot take descriptors from 1,024 on, so its default shrinks below that; poll's does not."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    daemon = start(daemon={"poller": poller})
    adjusted = daemon.records("config.adjusted")

    if poller == "select":
        assert 800 <= adjusted[0]["echod.config.value"] < 1024
    elif hard > 11_000:
        assert adjusted == []


@pytest.mark.parametrize("workers", [1, 4])
def test_over_the_limit(start: Starter, workers: int) -> None:
    """With max_connections 50 and 150 clients exactly 50 are served; each other one is accepted, logged and closed.

    Catches per-worker limits, and counters that race near the limit.
    """
    daemon = start(workers=workers, limits={"max_connections": 50}, expect=["connection.refused"])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.address())) for _ in range(150)]
        refused = {
            record["client.port"]: record
            for _ in [daemon.wait_for("connection.refused", count=100)]
            for record in daemon.records("connection.refused")
        }
        served = [client for client in clients if client.getsockname()[1] not in refused]
        for client in served:
            ping(client)
        for client in clients:
            if client not in served:
                assert read_to_end(client, 5) == (b"", "fin")
        assert len(served) == 50
        assert {"over_limit"} == {record["echod.refuse.reason"] for record in refused.values()}

        for client in served[:7]:
            client.close()
        daemon.wait_for("connection.closed", count=7)
        wait_until(lambda: served_again(stack, daemon), 5, "a free place being given away")
        for client in served[7:]:
            ping(client)

    wait_until(lambda: daemon.active() == 0, 5, "no active connection")


def served_again(stack: contextlib.ExitStack, daemon: Daemon) -> bool:
    """Tell whether a new client is served."""
    client = stack.enter_context(connect(daemon.address()))
    try:
        ping(client, timeout=2.0)
    except (OSError, AssertionError):
        return False
    return True


def test_a_flood_over_the_limit_spares_those_inside(start: Starter) -> None:
    """While 2,000 clients are refused, the ten inside are echoed within a second each."""
    daemon = start(limits={"max_connections": 10}, expect=["connection.refused"])
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(connect(daemon.address())) for _ in range(10)]
        slowest = max(ping(client) for client in inside)
        for number in range(2000):
            with contextlib.suppress(OSError), connect(daemon.address()) as victim:
                victim.shutdown(socket.SHUT_WR)
            if number % 200 == 0:
                slowest = max(slowest, *(ping(client) for client in inside))

    assert slowest < 1.0


def test_check_refuses_what_run_would(tmp_path: Path) -> None:
    """`echod check` says of the same file what `run` says under the same limit; the number is not left for later."""
    daemon = Daemon(tmp_path, daemon={"poller": "select"}, limits={"max_connections": 2000})
    result = echod("check", "-c", str(daemon.file))

    assert result.returncode == 78
    assert number_to_set(result.stderr)


def test_with_too_few_descriptors_it_says_so(tmp_path: Path) -> None:
    """Under a hard limit of 58 descriptors, where not one connection fits, the start is refused with one clear line."""
    daemon = Daemon(tmp_path, prefix=with_limit(58, 58))
    with pytest.raises(StartFailedError) as failure, daemon:
        pass

    assert failure.value.code == 78
    assert "58" in failure.value.stderr
    assert len(failure.value.stderr.splitlines()) == 1


def test_with_few_descriptors_it_runs(start: Starter) -> None:
    """Under a hard limit of 150 descriptors the default shrinks as far as needed and the echo works."""
    daemon = start(prefix=with_limit(150, 150), expect=["connection.refused"])
    echo_once(daemon.address())

    assert 0 < daemon.wait_for("config.adjusted")["echod.config.value"] < 150
