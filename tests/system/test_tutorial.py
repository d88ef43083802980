"""The defects of the classic select() tutorial: each check fails on the tutorial's own server and holds for echod.

Rule: a check knows an address and a process id and nothing else. `Defect` is what it raises; that the tutorial's
server raises it proves that the check sees what it is there to see.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.system import proc
from tests.system.clients import MIB, Load, abort, connect, ping, read_to_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.system.clients import Address
    from tests.system.daemon import Starter

TUTORIAL = Path(__file__).with_name("tutorial.py")
SEED = 7


class Defect(Exception):  # noqa: N818 # it is the name of what was found
    """The server does what the tutorial's does."""


class Server(NamedTuple):
    """Whatever echoes at `address`; `pids` are the processes that do it."""

    address: Address
    pids: list[int]


@contextlib.contextmanager
def tutorial(chunk: int = 1024) -> Iterator[Server]:
    """Run the tutorial's server."""
    with subprocess.Popen(
        [sys.executable, str(TUTORIAL), str(chunk)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        try:
            yield Server(("127.0.0.1", int(process.stdout.readline())), [process.pid])
        finally:
            process.kill()


def survives_a_reset(server: Server) -> None:
    """Hold that a peer that resets harms nobody else."""
    with connect(server.address) as bystander:
        ping(bystander)
        resetting = connect(server.address)
        ping(resetting)
        abort(resetting)
        try:
            for _ in range(20):
                ping(bystander, timeout=2.0)
                time.sleep(0.005)  # the reset may be noticed a turn later
        except (OSError, AssertionError) as error:
            raise Defect("it died of a reset by another peer") from error


def sends_everything(server: Server) -> None:
    """Hold that a peer with a tiny window that reads late gets all, although the kernel takes it in parts."""
    with Load.open(
        server.address, 1, 8 * MIB, SEED, writes=(MIB, MIB), reads="never", hold_open=True, receive_buffer=4096
    ) as load:
        client = load.clients[0]
        load.run(0.5)
        client.reads = "always"
        load.run(20, until=lambda: client.wrong > 0 or client.received == client.size)
        report = load.report()
    if report["wrong"] or report["received"] < client.size:
        raise Defect(f"bytes were lost on a short send: {report}")


def keeps_the_queue_at_half_close(server: Server) -> None:
    """Hold that a peer that shuts its write side down and only then reads gets everything and FIN."""
    with connect(server.address) as opened:
        sent = send_until_it_blocks(opened, 16 * MIB)
        opened.shutdown(socket.SHUT_WR)
        answer, end = read_to_end(opened)
    if (len(answer), end) != (sent, "fin"):
        raise Defect(f"{sent - len(answer)} bytes were dropped at half-close, then {end}")


def send_until_it_blocks(opened: socket.socket, most: int) -> int:
    """Send up to `most` bytes, until the server and the kernel have taken none for a while; return how many."""
    opened.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < most:
            sent += opened.send(b"x" * MIB)
    return sent


def bounds_its_queues(server: Server) -> None:
    """Hold that a peer that sends 64 MiB and reads nothing does not make the process grow by more than 8 MiB."""
    with connect(server.address) as client:
        ping(client)
        before = sum(map(proc.rss, server.pids))
        with Load.open(server.address, 1, 64 * MIB, SEED, reads="never", writes=(MIB, MIB)) as load:
            sent = -1
            while load.clients[0].sent > sent:  # until nothing more is taken
                sent = load.clients[0].sent
                load.run(1, until=lambda: growth(server, before) > 8 * MIB)
            grown = growth(server, before)
    if grown > 8 * MIB:
        raise Defect(f"memory grew by {grown // MIB} MiB for a peer that does not read")


def growth(server: Server, before: int) -> int:
    """Return by how many bytes the server's processes have grown."""
    return sum(map(proc.rss, server.pids)) - before


def costs_the_same_among_many(server: Server) -> None:
    """Hold that a message costs at most half as much CPU time again among 800 idle connections as among 20."""
    with on_one_core(server), contextlib.ExitStack() as stack:
        client = stack.enter_context(connect(server.address))
        for _ in range(20):
            ping(stack.enter_context(connect(server.address)))
        few = min(cost(server, client) for _ in range(5))
        for _ in range(780):
            ping(stack.enter_context(connect(server.address)))
        many = min(cost(server, client) for _ in range(5))
    print(f"CPU per message: {few * 1e6:.1f} us among 20, {many * 1e6:.1f} us among 800")  # noqa: T201
    if many > 1.5 * few:
        raise Defect(f"a message costs {many / few:.1f} times as much among 800 connections as among 20")


@contextlib.contextmanager
def on_one_core(server: Server) -> Iterator[None]:
    """Keep client and server on one core: a wake-up from another costs as much again, and who wakes whom is chance."""
    everywhere = os.sched_getaffinity(0)
    for pid in (0, *server.pids):
        os.sched_setaffinity(pid, {min(everywhere)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


def cost(server: Server, client: socket.socket, messages: int = 500) -> float:
    """Return the CPU seconds that the server spends on one message."""
    before = sum(map(proc.cpu, server.pids))
    for _ in range(messages):
        ping(client)
    return (sum(map(proc.cpu, server.pids)) - before) / messages


CHECKS: list[tuple[Callable[[Server], None], int]] = [
    (survives_a_reset, 1024),
    (sends_everything, MIB),
    (keeps_the_queue_at_half_close, 1024),
    (bounds_its_queues, 1024),
    (costs_the_same_among_many, 1024),
]

each_defect = pytest.mark.parametrize(("check", "chunk"), CHECKS, ids=[check.__name__ for check, _ in CHECKS])


@pytest.mark.alone
@each_defect
def test_the_tutorial_fails(check: Callable[[Server], None], chunk: int) -> None:
    """The tutorial's server shows each of its defects: the check below is worth something."""
    with tutorial(chunk) as server, pytest.raises(Defect):
        check(server)


@pytest.mark.alone
@each_defect
def test_echod_holds(start: Starter, check: Callable[[Server], None], chunk: int) -> None:
    """None of the tutorial's defects is in echod."""
    daemon = start()
    check(Server(daemon.address(), daemon.pids()))
