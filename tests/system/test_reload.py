"""SIGHUP on an edited file: new connections are under it, live ones untouched, bad files change nothing."""

from __future__ import annotations

import contextlib
import time
from signal import SIGHUP
from typing import TYPE_CHECKING, Any

import pytest

from tests.bad_configs import BAD_CONFIGS
from tests.system.clients import KIB, MIB, Load, connect, echo_once, ping, read_to_end
from tests.system.daemon import SCALE, echod, environment, wait_until
from tests.system.traffic import Traffic

if TYPE_CHECKING:
    from tests.conftest import Size
    from tests.system.daemon import Daemon, Starter

SEED = 5
QUIET = {"suppress": ["connection.opened", "connection.closed"]}  # of hundreds of thousands


def listener(name: str, address: str = "127.0.0.1:0") -> dict[str, Any]:
    """Return the table of a listener."""
    return {"name": name, "kind": "tcp", "address": address}


def test_new_limits_hold_for_new_connections(start: Starter) -> None:
    """A shorter idle timeout ends new connections early and lets the old one live; the pids stay the same."""
    daemon = start(workers=2)
    with connect(daemon.address()) as old:
        ping(old)
        before = daemon.pids()
        daemon.reload(limits={"idle_timeout": "200ms"})
        with connect(daemon.address()) as new:
            assert read_to_end(new, 5) == (b"", "fin")
        time.sleep(0.5)
        ping(old)
        assert before == daemon.pids()
    completed = daemon.wait_for("reload.completed")

    assert completed["echod.config.generation"] == 2
    assert daemon.state()["generation"] == 2


def test_listeners_come_and_go(start: Starter) -> None:
    """A listener is added and another removed: the first answers, the second refuses, its live connection goes on."""
    daemon = start(workers=2, listeners=[listener("kept"), listener("leaving")])
    kept, leaving = daemon.address("kept"), daemon.address("leaving")
    with connect(leaving) as client, connect(kept) as other:
        ping(client)
        ping(other)
        daemon.reload(listener=[listener("kept"), listener("coming")])
        echo_once(daemon.address("coming"))
        echo_once(kept)
        with pytest.raises(ConnectionRefusedError):
            connect(leaving)
        ping(client)
        ping(other)
    opened = daemon.wait_for("listener.opened", {"echod.listener": "coming"})
    daemon.wait_for("listener.closed", {"echod.listener": "leaving"})

    assert opened["server.port"] == daemon.address("coming")[1]
    assert kept == daemon.address("kept")
    assert daemon.records("listener.closed", {"echod.listener": "kept"}) == []


def test_workers_come_and_go(start: Starter) -> None:
    """2 -> 4 -> 1 workers under load: one supervisor pid, not a byte wrong, retiring workers leave when done."""
    daemon = start(workers=2)
    supervisor = daemon.pid
    with Load.open(daemon.address(), 100, 2 * MIB, SEED, pace=(64 * KIB, 0.02)) as load:
        for workers in (4, 1):
            load.run(0.1)
            daemon.reload(daemon={"workers": workers})
            staying = [worker for worker in daemon.state()["workers"] if not worker["retiring"]]
            assert len(staying) == workers
            with contextlib.ExitStack() as stack:
                for client in [stack.enter_context(connect(daemon.address())) for _ in range(20)]:
                    ping(client)
        assert load.run(60), load.report()
        assert load.report()["complete"] == 100, load.report()
    wait_until(lambda: len(daemon.workers()) == 1, 10, "the retiring workers' leaving")

    assert supervisor == daemon.pid
    daemon.wait_for("worker.exited", count=3)


def test_a_retiring_worker_keeps_its_connections(start: Starter) -> None:
    """Connections of a worker that retires live for as long as their clients like."""
    daemon = start(workers=4)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.address())) for _ in range(40)]
        for client in clients:
            ping(client)
        daemon.reload(daemon={"workers": 1})
        time.sleep(0.3)
        for client in clients:
            ping(client)
    wait_until(lambda: len(daemon.workers()) == 1, 5, "the retiring workers' leaving")


@pytest.mark.alone
def test_reload_storm(start: Starter, size: Size) -> None:
    """A hundred reloads at one a second, 4 -> 2 -> 4 workers, a listener added and removed each time, under load.

    500 streams and all the visitors that the machine gives: not a byte is wrong, nobody is refused or reset at the
    listener that stays, and everyone whom the daemon let in was served. The processes stay the same, and are no more.
    Catches workers that are started while retired ones, which a long stream keeps, could be called back: they pile up.
    """
    reloads, pause = size(12, 100), size(2, 10) / 10
    daemon = start(workers=4, limits={"max_connections": 5000}, log=QUIET)
    processes, before = daemon.pids(), daemon.descriptors()
    memory = 0
    with Traffic(daemon.address(), SEED, streams=size(100, 500)) as traffic:
        for number in range(1, reloads + 1):
            began = time.monotonic()
            name = f"passing-{number}"
            daemon.reload(
                listener=[listener("echo"), *([listener(name)] if number < reloads else [])],
                daemon={"workers": 2 if number % 2 and number < reloads else 4},
            )
            traffic.passing = daemon.address(name) if number < reloads else None
            time.sleep(max(0.0, began + pause - time.monotonic()))
            if number == reloads // 10 + 1:
                memory = daemon.memory()
        traffic.stop()
    wait_until(lambda: daemon.descriptors() == before, 5, "the same descriptors")
    connections = daemon.reload() and daemon.state()["connections"]
    grown = daemon.memory() - memory

    print(f"{reloads} reloads, memory grown by {grown / MIB:.1f} MiB")  # noqa: T201
    assert {} == traffic.faults
    assert processes == daemon.pids()
    assert len(daemon.records("worker.started")) == 4
    assert connections == {"active": 0, "accepted": traffic.let_in, "rejected": 0}
    assert grown < 4 * MIB


def test_a_hundred_reloads_leak_nothing(start: Starter) -> None:
    """A hundred reloads leave the same processes, descriptors and memory."""
    daemon = start(workers=2)
    for _ in range(10):
        daemon.reload()
    pids, descriptors, memory = daemon.pids(), daemon.descriptors(), daemon.memory()
    for _ in range(100):
        daemon.reload()

    assert pids == daemon.pids()
    wait_until(lambda: daemon.descriptors() == descriptors, 5, "the same descriptors")
    assert daemon.memory() - memory < 3 * MIB


def test_a_taken_address_rolls_the_reload_back(start: Starter) -> None:
    """One of two new listeners cannot be bound: neither is opened, the old goes on, the error says which."""
    daemon = start(expect=["reload.refused"])
    host, port = daemon.address()
    taken = start(listeners=[listener("other")]).address("other")
    report = daemon.reload(
        ok=False, listener=[listener("echo"), listener("good"), listener("bad", f"{taken[0]}:{taken[1]}")]
    )
    echo_once((host, port))
    refused = daemon.wait_for("reload.refused")

    assert str(taken[1]) in "".join(refused["echod.config.errors"])
    assert str(taken[1]) in str(report["errors"])
    assert [entry["name"] for entry in daemon.state()["listeners"]] == ["echo"]


@pytest.mark.parametrize(
    "table", [{"poller": "poll"}, {"runtime_directory": "/tmp/elsewhere"}, {"user": "daemon"}], ids=str
)
def test_a_restart_key_is_refused_by_name(start: Starter, table: dict[str, str]) -> None:
    """A key that needs a restart refuses the whole reload and is named; the old configuration goes on."""
    daemon = start(expect=["reload.refused"])
    daemon.reload(ok=False, daemon=table, limits={"idle_timeout": "50ms"})
    refused = daemon.wait_for("reload.refused")

    assert f"daemon.{next(iter(table))}" in "".join(refused["echod.config.errors"])
    with connect(daemon.address()) as client:
        time.sleep(0.3)
        ping(client)


def snapshot(daemon: Daemon) -> dict[str, Any]:
    """Return what a refused reload must leave as it is."""
    state = daemon.state()
    return {key: state[key] for key in ("pid", "state", "generation", "listeners", "workers")} | {"pids": daemon.pids()}


@pytest.mark.alone
def test_bad_files_change_nothing(start: Starter, size: Size) -> None:
    """Each kind of bad file on SIGHUP, under load: one ERROR line with the text that helps, and nothing else changes.

    One daemon takes them all in a row; in the short form it is every fourth, while the loader is tried with each of
    them elsewhere. Every so often, and in the long form always, `echod reload --wait` sends the signal, and fails with
    the same words. Catches a generation that is counted before the file was found good, and a command that waits for
    the end of the reload without looking how it ended.
    """
    files, every = sorted(BAD_CONFIGS.items())[:: size(4, 1)], size(10, 1)
    daemon = start(workers=2, limits={"idle_timeout": "2s"}, log=QUIET, expect=["reload.refused"])
    good = daemon.file.read_text()
    before = snapshot(daemon)
    faults = []
    with Traffic(daemon.address(), SEED, streams=size(10, 100), visitors=2) as traffic:
        for number, (name, (content, text)) in enumerate(files, 1):
            daemon.file.write_bytes(content.encode() if isinstance(content, str) else content)
            faults += [f"{name}: {fault}" for fault in refusal(daemon, text, waits=number % every == 0)]
            if before != snapshot(daemon):
                faults.append(f"{name}: changed {snapshot(daemon)}")
            traffic.await_visits(2)
        with connect(daemon.address()) as client:
            assert read_to_end(client, 5) == (b"", "fin"), "the old limits are no longer in force"
        traffic.stop()
    daemon.file.write_text(good)
    descriptors = daemon.descriptors()
    daemon.reload()

    assert faults == []
    assert {} == traffic.faults
    wait_until(lambda: daemon.descriptors() == descriptors, 5, "the same descriptors")
    assert len(daemon.records("reload.refused")) == len(files)


def refusal(daemon: Daemon, text: str, *, waits: bool) -> list[str]:
    """Have the daemon read a bad file, by command if somebody `waits`; return what is not as it must be."""
    count = len(daemon.records("reload.refused")) + 1
    faults = refusal_by_command(daemon, text) if waits else []
    if not waits or "larger than" in text:  # the command cannot read that one either, and sends no signal
        daemon.reload(ok=False)
    refused = daemon.wait_for("reload.refused", count=count)
    report = daemon.state()["reload"]
    took = report["duration"]
    if text not in "\n".join(refused["echod.config.errors"]):
        faults.append(f"{text!r} is not in {refused['echod.config.errors']}")
    if took > 1.0 * SCALE:
        faults.append(f"took {took:.1f} s")
    return faults


def refusal_by_command(daemon: Daemon, text: str) -> list[str]:
    """Run `echod reload --wait`, which finds the daemon where $RUNTIME_DIRECTORY says: a bad file does not say it."""
    env = environment(RUNTIME_DIRECTORY=str(daemon.runtime))
    done = echod("reload", "--wait", "-c", str(daemon.file), env=env)
    as_it_must = done.returncode == 78 and text in done.stderr
    return [] if as_it_must else [f"reload --wait left with {done.returncode}: {done.stderr!r}"]


def test_a_deleted_file_changes_nothing(start: Starter) -> None:
    """HUP after the file was deleted is refused with the path, and taken once the file is back."""
    daemon = start(expect=["reload.refused"])
    text = daemon.file.read_text()
    daemon.file.unlink()
    daemon.reload(ok=False)
    refused = daemon.wait_for("reload.refused")
    echo_once(daemon.address())
    daemon.file.write_text(text)
    daemon.reload()

    assert str(daemon.file) in "".join(refused["echod.config.errors"])


def test_a_storm_of_hups(start: Starter) -> None:
    """500 HUPs at once are taken together: the last one's content counts, clients are served, nothing dies."""
    daemon = start(workers=2)
    pids = daemon.pids()
    daemon.write(limits={"idle_timeout": "9m"})
    for number in range(500):
        daemon.signal(SIGHUP)
        if number % 100 == 0:
            echo_once(daemon.address())
    daemon.reload(limits={"idle_timeout": "200ms"})
    with connect(daemon.address()) as client:
        assert read_to_end(client, 5) == (b"", "fin")

    assert pids == daemon.pids()
