"""What the daemon tells a service manager, byte for byte and in order, against a socket that records it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from itertools import pairwise
from signal import SIGCONT, SIGSTOP, SIGTERM
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from tests.system import proc
from tests.system.clients import KIB, connect, ping
from tests.system.daemon import SCALE, StartFailedError, environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.daemon import Starter

EXTEND = "EXTEND_TIMEOUT_USEC=15000000"


class Recorder:
    """A notification socket as systemd has one, and what came in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.messages: list[str] = []
        self.times: list[float] = []

    def read(self, patience: float = 0.0) -> list[str]:
        """Take what is there, waiting so long for the first; return everything so far."""
        while select.select([self.socket], [], [], patience)[0]:
            self.messages.append(self.socket.recv(65536).decode())
            self.times.append(time.monotonic())
            patience = 0.0
        return self.messages

    def until(self, condition: Callable[[list[str]], bool], timeout: float = 10.0) -> None:
        """Read until the messages are as they should be."""
        wait_until(lambda: condition(self.read(0.05)), timeout, f"the message, after {self.messages}")

    def fill(self) -> None:
        """Send it messages until it takes no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(BlockingIOError):
            sender.setblocking(False)
            while True:
                sender.sendto(b"noise", str(self.path))


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """Record what is said to a socket in this test's directory."""
    made = Recorder(tmp_path / "notify")
    with made.socket:
        yield made


def told(recorder: Recorder, **extra: str) -> dict[str, str]:
    """Return an environment in which the recorder is the service manager."""
    return environment(NOTIFY_SOCKET=str(recorder.path), **extra)


def microseconds(message: str) -> int:
    """Return the time that a reload's message carries."""
    head, _, value = message.partition("=1\nMONOTONIC_USEC=")
    assert head == "RELOADING"
    return int(value)


def test_a_whole_life(start: Starter, recorder: Recorder) -> None:
    """Start, reload, refused reload and stop: each message once, whole, in order; READY also ends a refused reload."""
    daemon = start(workers=2, env=told(recorder))
    started = time.monotonic_ns() // 1000
    daemon.reload(limits={"idle_timeout": "5m"})
    daemon.expect.add("reload.refused")
    daemon.reload(ok=False, limits={"idle_timeout": "soon"})
    (error,) = daemon.state()["reload"]["errors"]
    with connect(daemon.address()) as client:
        ping(client)
        daemon.wait_for("connection.opened")
        pid = daemon.pid
        daemon.stop()
    ended = time.monotonic_ns() // 1000
    heard = recorder.read()
    first, second = (microseconds(heard.pop(index)) for index in (1, 2))
    serving = f"READY=1\nMAINPID={pid}\nSTATUS=Serving with 2 workers, configuration generation"

    assert [
        f"{serving} 1",
        f"{serving} 2",
        f"{serving} 2; the last reload was refused: {error}",
        "STOPPING=1\nSTATUS=Draining 1 connections",
        EXTEND,
    ] == heard
    assert started < first < second < ended


@pytest.mark.parametrize(
    ("tables", "number"),
    [({"listeners": [{"name": "echo", "address": "127.0.0.1:PORT"}]}, 98), ({"limits": {"buffer": "much"}}, 22)],
)
def test_a_start_that_fails(start: Starter, recorder: Recorder, tables: dict[str, Any], number: int) -> None:
    """The reason and its number, and never a READY: a port that somebody has, and a file that is wrong."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if "listeners" in tables:
            tables["listeners"][0]["address"] = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartFailedError) as failed:
            start(env=told(recorder), **tables)
    (line,) = failed.value.stderr.splitlines()

    assert [f"STATUS={line.removeprefix('echod: ')}\nERRNO={number}"] == recorder.read()


def test_the_watchdog_is_fed(start: Starter, recorder: Recorder) -> None:
    """At half its interval, also while a worker is silent; not by a supervisor that is stopped."""
    daemon = start(workers=2, env=told(recorder, WATCHDOG_USEC="1000000"))
    os.kill(daemon.workers()[0], SIGSTOP)
    before = len(recorder.read())
    recorder.until(lambda heard: len(heard) >= before + 6)
    os.kill(daemon.workers()[0], SIGCONT)
    intervals = [later - earlier for earlier, later in pairwise(recorder.times[before:])]

    assert {"WATCHDOG=1"} == set(recorder.messages[before:])
    assert 0.5 == pytest.approx(median(intervals), abs=0.1 * SCALE)
    os.kill(daemon.pid, SIGSTOP)
    wait_until(lambda: proc.stat(daemon.pid)[0] == "T")
    stopped = len(recorder.read())
    assert stopped == len(recorder.read(patience=1.5))
    os.kill(daemon.pid, SIGCONT)
    recorder.until(lambda heard: len(heard) > stopped)


def test_a_long_drain_asks_for_patience(start: Starter, recorder: Recorder) -> None:
    """Again and again before the last extension is over, for as long as connections are busy."""
    daemon = start(env=told(recorder), daemon={"drain_timeout": "0s"})
    with connect(daemon.address()) as client:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(64 * KIB))  # and read nothing: the drain waits for this one
        recorder.read()
        daemon.signal(SIGTERM)
        recorder.until(lambda heard: heard.count(EXTEND) == 3, timeout=15)
    daemon.wait_exit()
    first, *more = [
        moment for moment, message in zip(recorder.times, recorder.messages, strict=True) if message == EXTEND
    ]

    assert [5.0, 10.0] == pytest.approx([moment - first for moment in more], abs=0.5 * SCALE)


def test_a_manager_that_does_not_listen_stops_nothing(start: Starter, recorder: Recorder) -> None:
    """With a full socket the daemon starts and serves; READY comes as soon as there is room."""
    recorder.fill()
    daemon = start(env=told(recorder))
    with connect(daemon.address()) as client:
        ping(client)
    recorder.until(lambda heard: any(message.startswith("READY=1") for message in heard))

    assert {"noise"} == set(recorder.messages[:-1])
