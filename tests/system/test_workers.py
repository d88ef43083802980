"""Workers that a client has taken over: the supervisor lives, replaces them, and changes nothing because of them.

Each test has echod's own supervisor, and a worker that does its worst with what a worker holds: the channel, the shared
memory, the configuration's memfd, the listening sockets, the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import sys
import termios
import time
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING

import pytest

from tests.system import proc
from tests.system.clients import connect, echo_once
from tests.system.daemon import PYTHON, wait_until
from tests.system.hostile import PREFIX
from tests.system.test_admin import ANYWHERE, get

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.conftest import Size
    from tests.system.clients import Address
    from tests.system.daemon import Daemon, Starter

HOSTILE = [*PYTHON, "-m", "tests.system.hostile"]
DIED = ["worker.died"]
DENIED = "127.0.0.2"
REPLACED_WITHIN = 2.0


def attack(address: Address, name: str, timeout: float = 10.0) -> str:
    """Turn the worker that takes this connection hostile, and return what came of it; "" when it ends instead."""
    with connect(address, timeout=timeout) as client:
        client.sendall(PREFIX + name.encode())
        with contextlib.suppress(ConnectionResetError):
            return client.recv(64).decode()
    return ""


def begin_attack(stack: contextlib.ExitStack, address: Address, name: str) -> None:
    """Turn a worker hostile that will never answer."""
    stack.enter_context(connect(address)).sendall(PREFIX + name.encode())


def seconds_until_served(address: Address, since: float) -> float:
    """Wait until a connection is echoed, and tell how long that took since then."""

    def served() -> bool:
        with contextlib.suppress(OSError):
            echo_once(address, timeout=1.0)
            return True
        return False

    wait_until(served, what="the replacement")
    return time.monotonic() - since


def is_denied(address: Address) -> bool:
    """Tell whether a client from the denied address is turned away."""
    with socket.create_connection(address, 5, source_address=(DENIED, 0)) as client:
        try:
            return client.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def assert_in_charge(daemon: Daemon) -> None:
    """Hold that the supervisor answers a signal at once, reloads, replaces a worker, and still denies."""
    began = time.monotonic()
    daemon.active()
    assert time.monotonic() - began < 1.0
    daemon.reload(limits={"idle_timeout": "7m"})
    echo_once(daemon.address())
    assert is_denied(daemon.address())


def listener(**keys: Any) -> list[dict[str, Any]]:
    """Return the one listener, which denies an address."""
    return [{"name": "echo", "address": "127.0.0.1:0", "deny": [f"{DENIED}/32"]} | keys]


# -- what a worker writes to shared memory ----------------------------------------------------------------------------


def assert_numbers_are_told(daemon: Daemon) -> None:
    """Hold that metrics, snapshot and state say what they can of the garbage in a row."""
    status, body = get(daemon.address("admin"), "/metrics")
    assert 200 == status
    assert "echod_io_bytes_total" in body
    count = len(daemon.records("status.reported"))
    daemon.active()
    assert 2**63 - 1 == daemon.records("status.reported")[count]["echod.io.receive"]
    assert 2**63 - 1 == daemon.state()["io"]["receive"]


def test_big_counters_raise_nothing(start: Starter) -> None:
    """Metrics, snapshot, state and the record of the worker's death hold what they can."""
    daemon = start(prefix=HOSTILE, listeners=listener(), admin=ANYWHERE, expect=DIED)
    victim = daemon.workers()[0]
    assert "done" == attack(daemon.address(), "big_counters")
    assert_numbers_are_told(daemon)
    os.kill(victim, SIGKILL)
    died = daemon.wait_for("worker.died", {"echod.worker.pid": victim})
    seconds_until_served(daemon.address(), time.monotonic())

    assert 2**63 - 1 == died["echod.io.receive"]
    assert_in_charge(daemon)


def test_row_full_of_garbage_serves_the_next_worker(start: Starter) -> None:
    """The worker trips over its own garbage; its replacement counts on from it, and all that is told can be told."""
    daemon = start(prefix=HOSTILE, listeners=listener(), admin=ANYWHERE, expect=["service.failed", *DIED])
    victim = daemon.workers()[0]
    assert "done" == attack(daemon.address(), "all_ones")
    daemon.wait_for("worker.died", {"echod.worker.pid": victim})
    seconds_until_served(daemon.address(), time.monotonic())

    assert_numbers_are_told(daemon)
    assert_in_charge(daemon)


def test_more_closed_than_accepted_raises_nothing(start: Starter) -> None:
    """The books of a worker that ends so are closed without a negative number."""
    daemon = start(prefix=HOSTILE, listeners=listener(), expect=DIED)
    attack(daemon.address(), "closed_without_accepting")

    assert 0 == daemon.wait_for("worker.died")["echod.connections.lost"]
    seconds_until_served(daemon.address(), time.monotonic())
    assert_in_charge(daemon)


@pytest.mark.parametrize("name", ["many_rows", "siblings_row"])
def test_worker_writes_to_no_row_but_its_own(start: Starter, name: str) -> None:
    """Neither the number of rows nor a sibling's count can be changed: all go on, with a limit for each address."""
    limits = {"max_connections_per_address": 50}
    daemon = start(workers=2, prefix=HOSTILE, listeners=listener(), limits=limits)

    assert "TypeError" == attack(daemon.address(), name)
    for _ in range(20):
        echo_once(daemon.address())
    assert_in_charge(daemon)


# -- the configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rewrite_config", "spoil_config"])
def test_configuration_of_later_workers_cannot_be_changed(start: Starter, name: str) -> None:
    """The kernel refuses to write to the memfd, and the next worker starts and denies as the file says."""
    daemon = start(prefix=HOSTILE, listeners=listener(), expect=DIED)
    victim = daemon.workers()[0]

    assert "PermissionError" == attack(daemon.address(), name)
    os.kill(victim, SIGKILL)
    daemon.wait_for("worker.died", {"echod.worker.pid": victim})
    seconds_until_served(daemon.address(), time.monotonic())
    assert is_denied(daemon.address())
    assert_in_charge(daemon)


# -- the channel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pass_lingering", "pass_many"])
def test_no_descriptor_reaches_the_supervisor(start: Starter, name: str) -> None:
    """The send fails: nothing lingers or leaks in the supervisor, also once the worker is dead and its channel closed.

    Catches a supervisor that hangs for as long as a socket lingers which it was passed, in close or in recvmsg.
    """
    daemon = start(prefix=HOSTILE, listeners=listener(), expect=DIED)
    victim = daemon.workers()[0]
    before = len(proc.descriptors(daemon.pid))

    assert "BrokenPipeError" == attack(daemon.address(), name)
    assert before == len(proc.descriptors(daemon.pid))
    assert_in_charge(daemon)
    os.kill(victim, SIGKILL)
    seconds_until_served(daemon.address(), time.monotonic())
    assert_in_charge(daemon)


@pytest.mark.parametrize(
    ("name", "violation"),
    [
        ("flood", "sent an answer to no command"),
        ("serve_the_future", "confirmed a configuration that it was not sent"),
    ],
)
def test_worker_that_breaks_the_protocol_is_replaced(start: Starter, name: str, violation: str) -> None:
    """It is killed, its record says which rule it has broken, and its replacement serves within two seconds."""
    daemon = start(prefix=HOSTILE, listeners=listener(), expect=DIED)
    victim, began = daemon.workers()[0], time.monotonic()
    with contextlib.ExitStack() as stack:
        begin_attack(stack, daemon.address(), name)
        died = daemon.wait_for("worker.died", {"echod.worker.pid": victim})
        took = seconds_until_served(daemon.address(), began)

    assert (1, "SIGKILL", violation) == (
        died["echod.worker.slot"],
        died["echod.signal"],
        died["echod.worker.violation"],
    )
    assert took <= REPLACED_WITHIN
    assert_in_charge(daemon)


# -- listening sockets ------------------------------------------------------------------------------------------------


def test_socket_that_a_worker_shuts_down_listens_again(start: Starter) -> None:
    """All workers serve on the same port again a second later, and one warning says so."""
    daemon = start(workers=2, prefix=HOSTILE, listeners=listener(), expect=["listener.restored", "listener.paused"])
    address = daemon.address()

    assert "done" == attack(address, "shut_down")
    assert address[1] == daemon.wait_for("listener.restored", {"echod.listener": "echo"})["server.port"]
    assert seconds_until_served(address, time.monotonic()) <= REPLACED_WITHIN
    assert_in_charge(daemon)
    assert 1 == len(daemon.records("listener.restored"))


def test_port_that_a_worker_has_taken_does_not_end_the_daemon(start: Starter) -> None:
    """Its loss is one error, a reload is refused with listener and reason; the port comes back once the thief is dead.

    Catches a supervisor that listens again in a reload and lets EADDRINUSE out.
    """
    expect = ["listener.restored", "listener.failed", "listener.paused", "reload.refused", *DIED]
    daemon = start(prefix=HOSTILE, listeners=listener(), expect=expect)
    address = daemon.address()
    thief = int(attack(address, "shut_down_and_take"))
    lost = daemon.wait_for("listener.failed")
    report = daemon.reload(ok=False)

    assert ("echo", address[1], "EADDRINUSE") == (lost["echod.listener"], lost["server.port"], lost["error.type"])
    assert 1 == len(report["errors"])
    assert report["errors"][0].startswith(f'listener "echo": 127.0.0.1:{address[1]}: ')
    assert "Address already in use" in report["errors"][0]
    os.kill(thief, SIGKILL)
    daemon.wait_for("listener.restored")
    seconds_until_served(address, time.monotonic())
    assert_in_charge(daemon)
    assert 1 == len(daemon.records("listener.failed"))


# -- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True], ids=["as it was started", "after a reload has moved the log"])
def test_worker_cannot_make_the_supervisor_wait_for_the_log(start: Starter, tmp_path: Path, moved: bool) -> None:
    """It may fill the pipe and let its own writes wait; the supervisor, which shares the pipe, goes on and drops lines.

    Catches workers that share the supervisor's open file description, whose O_NONBLOCK one of them takes away.
    """
    reader, writer = os.pipe()
    fifo = tmp_path / "log.fifo"
    os.mkfifo(fifo)
    other = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    daemon = start(prefix=HOSTILE, listeners=listener(), stdout=writer)
    if moved:
        daemon.reload(log={"file": str(fifo)})
    full = other if moved else reader

    def is_full() -> bool:
        queued = fcntl.ioctl(full, termios.FIONREAD, bytes(4))
        return int.from_bytes(queued, sys.byteorder) > fcntl.fcntl(full, fcntl.F_GETPIPE_SZ) - 4096

    with contextlib.ExitStack() as stack:
        begin_attack(stack, daemon.address(), "block_log")
        wait_until(is_full, what="the full pipe")
        began = time.monotonic()
        daemon.reload(limits={"idle_timeout": "7m"}, timeout=15.0)
        os.kill(daemon.pid, SIGTERM)
        daemon.wait_exit()
    print(f"reload and stop took {time.monotonic() - began:.1f} s")  # noqa: T201
    for fd in (reader, writer, other):
        os.close(fd)


# -- everything at once -----------------------------------------------------------------------------------------------


def test_random_bytes_over_everything_that_a_worker_can_write(start: Starter, size: Size) -> None:
    """The supervisor lives, and a replacement serves within two seconds, every time.

    A slot whose workers keep dying young waits longer and longer: a few times each daemon.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    end, worst, rounds = time.monotonic() + size(1, 30), 0.0, 0
    while not rounds or time.monotonic() < end:
        env = dict(os.environ) | {"HOSTILE_SEED": str(seed + rounds)}
        daemon = start(prefix=HOSTILE, listeners=listener(), env=env, expect=[*DIED, "worker.throttled"])
        for _ in range(3):
            victim = daemon.workers()[0]
            with contextlib.ExitStack() as stack:
                began = time.monotonic()
                begin_attack(stack, daemon.address(), "garbage")
                died = daemon.wait_for("worker.died", {"echod.worker.pid": victim})
                worst = max(worst, seconds_until_served(daemon.address(), began))
            assert died["echod.worker.violation"]
        assert_in_charge(daemon)
        daemon.stop()
        rounds += 1
    print(f"{rounds} daemons, slowest replacement {worst:.1f} s")  # noqa: T201

    assert worst <= REPLACED_WITHIN
