"""The watch over the admission lock: who keeps it is found, who is busy with it is not."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from echod.net.poller import POLLERS
from echod.net.reactor import Reactor
from echod.observe.gate import Gate, lock_holder
from echod.observe.scoreboard import Column, Scoreboard
from echod.process.lock_watch import LOOK_INTERVAL, MAX_LOOKS, LockWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class World:
    """A scoreboard with two workers, one of them a process, and a clock that only `pass_time` moves."""

    def __init__(self, stack: ExitStack) -> None:
        self.now = time.monotonic()
        self.board = Scoreboard()
        stack.callback(self.board.close)
        self.other, self.waiting = self.board.take_row(()), self.board.take_row((1,))
        self.found: list[int] = []
        self.reactor = Reactor(POLLERS["poll"](), lambda *_: None, lambda: self.now)
        self.workers: list[int] = []
        self.watch = LockWatch(self.reactor, self.board, self.workers, self.found.append)
        self.stack = stack

    def fork(self, live: Callable[[], None]) -> int:
        """Fork a process that does `live`, which ends with a pause, and return once it is there."""
        told, tell = os.pipe()
        pid = os.fork()
        if not pid:
            signal.alarm(60)
            live()
            os.write(tell, b"!")
            signal.pause()
            os._exit(0)
        self.stack.callback(os.waitpid, pid, 0)
        self.stack.callback(os.kill, pid, signal.SIGKILL)
        self.workers.append(pid)
        os.read(told, 1)
        os.close(told)
        os.close(tell)
        return pid

    def keep_lock(self) -> None:
        """Take the lock, in a process that never gives it back."""
        fcntl.lockf(self.board.lock, fcntl.LOCK_EX)

    def pass_time(self, looks: int, each: float = LOOK_INTERVAL, waits: bool = True) -> None:
        """Let the other worker try and fail, and time pass, from look to look."""
        for _ in range(looks):
            self.waiting[Column.LOCK_WAITS] += waits
            self.now += each
            self.reactor.turn(0)


@pytest.fixture
def world() -> Iterator[World]:
    """Give two workers; no process outlives the test."""
    with ExitStack() as stack:
        yield World(stack)


def begin(world: World) -> None:
    """Let the watch see that a worker waits."""
    world.watch.check(world.now)
    world.waiting[Column.LOCK_WAITS] += 1
    world.watch.check(world.now)


def test_holder_is_named(world: World) -> None:
    """The kernel says which process has the lock, if one has."""
    assert lock_holder(world.board) is None
    pid = world.fork(world.keep_lock)

    assert pid == lock_holder(world.board)


def test_worker_that_keeps_the_lock_is_found(world: World) -> None:
    """A second after the first look that saw both holder and waiting worker, and once."""
    pid = world.fork(world.keep_lock)
    begin(world)
    world.pass_time(MAX_LOOKS)
    assert [] == world.found
    world.pass_time(1)

    assert [pid] == world.found


def test_worker_that_keeps_the_lock_without_a_process_id_is_found(world: World) -> None:
    """A lock of an open file description names nobody: -1 must not be taken for a process id, nor a sibling for it."""

    def keep_quietly() -> None:
        board = world.board
        board.own(1)
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(board.lock, fcntl.F_OFD_SETLK, lock)

    world.fork(lambda: None)
    pid = world.fork(keep_quietly)
    begin(world)
    world.pass_time(MAX_LOOKS + 1)

    assert -1 == lock_holder(world.board)
    assert [pid] == world.found


def test_worker_is_not_found_while_nobody_waits(world: World) -> None:
    """A lock that no other worker needs may be held."""
    world.fork(world.keep_lock)
    begin(world)
    world.pass_time(5 * MAX_LOOKS, waits=False)

    assert [] == world.found


def test_worker_that_lets_another_one_in_is_not_found(world: World) -> None:
    """A waiting worker that gets the lock begins to count anew: the holder at each look is busy, and keeps nothing."""
    world.fork(world.keep_lock)
    begin(world)
    for _ in range(5):
        world.pass_time(MAX_LOOKS - 1)
        world.waiting[Column.LOCK_WAITS] = 0
        world.pass_time(1, waits=False)

    assert [] == world.found


def test_late_look_counts_for_nothing(world: World) -> None:
    """When the supervisor itself was stopped the workers may have been, too."""
    world.fork(world.keep_lock)
    begin(world)
    world.pass_time(5 * MAX_LOOKS, each=3 * LOOK_INTERVAL)

    assert [] == world.found


def test_two_holders_in_turn_are_not_found(world: World) -> None:
    """The lock changes hands, so none keeps it."""
    begin(world)
    for _ in range(3):
        pid = world.fork(world.keep_lock)
        world.watch.check(world.now)
        world.pass_time(MAX_LOOKS - 2)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    assert [] == world.found


def test_watch_rests_when_the_lock_is_free(world: World) -> None:
    """Without a holder nothing is looked at ten times a second."""
    begin(world)
    world.pass_time(3)

    assert world.watch._timer.deadline == float("inf")


def test_gate_counts_what_it_has_tried_in_vain(world: World) -> None:
    """The count rises with each failure, and starts again from 0 once the lock is there."""
    gate = Gate(world.waiting, 1)
    pid = world.fork(world.keep_lock)
    counts = []
    for _ in range(3):
        gate.open()
        counts.append(world.waiting[Column.LOCK_WAITS])
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    gate.open()
    gate.shut()

    assert [1, 2, 3, 0] == [*counts, world.waiting[Column.LOCK_WAITS]]
