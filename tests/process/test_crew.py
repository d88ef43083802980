"""The crew, with real forks of tiny workers and a clock that the test moves."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from echod.config.models import Config, Daemon
from echod.events import CloseReason
from echod.observe.scoreboard import CLOSED, Column, Row, Scoreboard
from echod.process import channel as messages
from echod.process import crew as module
from echod.process.crew import Assignment, Crew

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.net.reactor import Reactor
    from echod.process.channel import WorkerChannel


def obedient(channel: WorkerChannel, row: Row) -> NoReturn:
    """Live as a worker that answers each assignment and leaves with 0 when it is told to, or is left alone."""
    row[Column.ACCEPTED] += 2
    row[Column.RECEIVED] += 100
    row[Column.ACTIVE] = 2
    while True:
        select.select([channel], [], [])
        received = channel.receive()
        match received.message if received else messages.Stop():
            case messages.Configure(generation, ()):
                channel.send(messages.Configured(generation))
                os._exit(0)
            case messages.Configure(generation):
                channel.send(messages.Configured(generation))
            case messages.Heartbeat():
                channel.send(messages.HeartbeatReply())
            case messages.ReopenLog(serial):
                channel.send(messages.LogReopened(serial))
            case messages.Drain():
                channel.send(messages.ListenersClosed())
            case messages.Stop():
                os._exit(0)


def deaf(channel: WorkerChannel, row: Row) -> NoReturn:
    """Live as a worker that never says a word."""
    while True:
        signal.pause()


def crammed(channel: WorkerChannel, row: Row) -> NoReturn:
    """Live as a worker that finds no descriptors for what it is told first, and takes what it is told then."""
    told = 0
    while True:
        select.select([channel], [], [])
        received = channel.receive()
        match received.message if received else messages.Stop():
            case messages.Configure(generation):
                told += 1
                channel.send(messages.Configured(generation) if told > 1 else messages.DescriptorsLost())
            case messages.ReopenLog(serial):
                row[Column.ACTIVE] += 1
                channel.send(messages.LogReopened(serial))
            case messages.Stop():
                os._exit(0)


def forgetful(channel: WorkerChannel, row: Row) -> NoReturn:
    """Live as a worker that finds no descriptors for the log when it is told of it first, and takes all else."""
    told = 0
    while True:
        select.select([channel], [], [])
        received = channel.receive()
        match received.message if received else messages.Stop():
            case messages.Configure(generation):
                channel.send(messages.Configured(generation))
            case messages.ReopenLog(serial):
                told += 1
                channel.send(messages.LogReopened(serial) if told > 1 else messages.DescriptorsLost())
            case messages.Stop():
                os._exit(0)


def stillborn(channel: WorkerChannel, row: Row) -> NoReturn:
    """Die before the first answer."""
    os._exit(7)


class World:
    """A crew, its scoreboard and its record of events; time passes only by `pass_time`."""

    def __init__(self, reactor: Reactor, recorder: Any, live: Callable[[WorkerChannel, Row], NoReturn]) -> None:
        self.reactor = reactor
        self.recorder = recorder
        self.board = Scoreboard()
        self.ended: set[int] = set()
        self.crew = Crew(reactor, self.board, recorder.emit, self._one)
        self.live = live
        self.now = monotonic()
        reactor._clock = lambda: self.now
        self.generation = 0

    def _one(self, channel: WorkerChannel, row: Row) -> NoReturn:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.alarm(60)  # whatever goes wrong with the test, its workers end
        try:
            self.live(channel, row.board.own(row.number))
        finally:
            os._exit(99)

    def assign(self, workers: int) -> None:
        """Ask for so many workers with the next generation."""
        self.generation += 1
        config = Config(daemon=Daemon(workers=workers))
        listener = self.board  # nothing listens: any name and descriptor makes a worker that does not retire
        sockets: list[Any] = [("echo", _Fd(listener.memory.fd))]
        memfd = messages.to_memfd(config, {})
        self.crew.assign(Assignment(self.generation, workers, memfd, sockets), self.now)

    def until(self, condition: Callable[[], Any]) -> None:
        """Turn and reap until the condition holds."""
        end = monotonic() + 10
        while not condition():
            assert monotonic() < end, "the condition did not come true"
            self.reactor.turn(0.01)
            self.crew.reap(self.now)

    def pass_time(self, seconds: float) -> None:
        """Let time pass at once, and turn."""
        self.now += seconds
        self.reactor.turn(0)

    def pids(self) -> list[int]:
        """Return the living workers."""
        return list(self.crew._hands)

    def close(self) -> None:
        """End all workers and give back what the crew holds."""
        self.crew._slots.clear()
        self.crew.kill()
        self.until(lambda: not self.pids())
        if self.crew._assignment:
            os.close(self.crew._assignment.config)
        self.board.close()


class _Fd:
    def __init__(self, fd: int) -> None:
        self.fileno = lambda: fd


@pytest.fixture
def world(reactor: Reactor, recorder: Any) -> Iterator[World]:
    """Give a world of obedient workers; none of them outlives the test."""
    made = World(reactor, recorder, obedient)
    yield made
    made.close()


def test_every_slot_gets_a_worker_that_answers(world: World) -> None:
    """Three workers are forked with rows of their own and serve the first assignment, then the next in place."""
    world.assign(3)
    world.until(lambda: world.crew.serves(1))
    pids = world.pids()

    assert 3 == len(set(pids))
    assert {1, 2, 3} == {hand.row.number for hand in world.crew._hands.values()}
    assert ["worker.started"] * 3 == world.recorder.names()
    world.assign(3)
    assert not world.crew.serves(2)
    world.until(lambda: world.crew.serves(2))
    assert pids == world.pids()


def test_fewer_retire_and_more_are_recalled(world: World) -> None:
    """A smaller number asks some to leave, and only those; a larger one starts new ones."""
    world.assign(3)
    world.until(lambda: world.crew.serves(1))
    first = world.pids()[0]
    world.assign(1)
    world.until(lambda: len(world.pids()) == 1)

    assert [first] == world.pids()
    assert ["worker.exited"] * 2 == world.recorder.names()[3:]
    world.assign(2)
    world.until(lambda: world.crew.serves(3))
    assert 2 == len(world.pids())


def test_a_killed_worker_is_replaced_and_its_books_are_closed(world: World) -> None:
    """Its connections count as lost, its successor comes after 0.1 s, on the lowest free row, and serves."""
    world.assign(1)
    world.until(lambda: world.crew.serves(1))
    world.until(lambda: world.board.total(Column.ACTIVE) == 2)
    (killed,) = world.pids()
    os.kill(killed, signal.SIGKILL)
    world.until(lambda: not world.pids())
    died = vars(world.recorder.events[-1])

    assert ("SIGKILL", None, 2, killed) == (died["signal"], died["status"], died["lost"], died["pid"])
    assert (100, 0, 1) == (died["received"], died["echoed"], world.board.row(0)[Column.DIED])
    assert (0, 2) == (world.board.total(Column.ACTIVE), world.board.total(CLOSED[CloseReason.WORKER_LOST]))
    world.pass_time(0.09)
    assert not world.pids()
    world.pass_time(0.02)
    world.until(lambda: world.crew.serves(1))
    assert killed not in world.pids()
    assert not world.crew.hopeless


def test_a_signal_without_a_name_is_told_by_its_number(world: World) -> None:
    """Most real-time signals have none; a worker that one has ended is replaced like any other."""
    world.assign(1)
    world.until(lambda: world.crew.serves(1))
    os.kill(world.pids()[0], 37)
    world.until(lambda: not world.pids())

    assert "SIG37" == vars(world.recorder.events[-1])["signal"]


def test_workers_that_keep_dying_wait_longer_and_longer(world: World) -> None:
    """The second death in a row is said once as throttled; a slot where none ever answered is hopeless."""
    world.live = stillborn
    world.assign(1)
    for delay in (0.1, 0.2, 0.4):
        world.until(lambda: not world.pids())
        world.pass_time(delay + 0.001)

    assert world.crew.hopeless
    assert 1 == world.recorder.names().count("worker.throttled")
    assert 7 == next(vars(event)["status"] for event in world.recorder.events if event.name == "worker.died")


def test_a_silent_worker_is_killed_and_replaced(world: World) -> None:
    """Ten seconds of unanswered pings end a worker; the event says that it was silent."""
    world.live = deaf
    world.assign(1)
    (hung,) = world.pids()
    for _ in range(int(module.SILENT_AFTER)):
        world.pass_time(module.PING_INTERVAL)
    assert [hung] == world.pids()
    world.pass_time(module.PING_INTERVAL)
    world.until(lambda: not world.pids())
    died = vars(world.recorder.events[-1])

    assert (True, "SIGKILL", hung) == (died["silent"], died["signal"], died["pid"])


def test_the_tenth_ping_without_an_answer_is_the_last(world: World) -> None:
    """An answer comes a little after its ping; that must not grant a silent worker one interval more.

    Catches a worker that is replaced eleven seconds after it fell silent, and a little, where eleven are promised.
    """
    world.live = deaf
    world.assign(1)
    (hand,) = world.crew._hands.values()
    hand.heard += 0.01
    for _ in range(int(module.SILENT_AFTER) - 1):
        world.pass_time(module.PING_INTERVAL)
    before = hand.silent
    world.pass_time(module.PING_INTERVAL)

    assert (False, True) == (before, hand.silent)


def test_a_supervisor_that_was_stopped_blames_nobody(world: World) -> None:
    """After an hour in which the supervisor itself did not run, the count of silence starts again."""
    world.live = deaf
    world.assign(1)
    (pid,) = world.pids()
    world.pass_time(3600)
    for _ in range(int(module.SILENT_AFTER) - 1):
        world.pass_time(module.PING_INTERVAL)

    assert [pid] == world.pids()
    world.crew.reap(world.now)
    assert "worker.died" not in world.recorder.names()


def test_a_silent_worker_is_well_until_its_replacement_has_failed(world: World) -> None:
    """A slot without a worker waits for one and is well; one whose worker outlives its replacement is not."""
    world.live = deaf
    world.assign(1)
    assert world.crew.well(world.now)
    assert world.crew.well(world.now + module.SILENT_AFTER + module.PING_INTERVAL)
    assert not world.crew.well(world.now + module.REPLACED_AFTER)
    (pid,) = world.pids()
    os.kill(pid, signal.SIGKILL)
    world.until(lambda: not world.pids())

    assert world.crew.well(world.now + module.REPLACED_AFTER)


def test_a_worker_that_cannot_be_told_is_killed(world: World) -> None:
    """A worker with a full channel would never learn of a reload: its successor will."""
    world.live = deaf
    world.assign(1)
    (hand,) = world.crew._hands.values()
    with suppress(BlockingIOError):
        while True:
            hand.channel.send(messages.Heartbeat())
    world.live = obedient
    world.assign(1)
    world.until(lambda: not world.pids())
    world.pass_time(0.2)
    world.until(lambda: world.crew.serves(2))

    assert [hand.pid] != world.pids()


def test_what_a_worker_missed_it_is_told_again(world: World) -> None:
    """With the next ping it gets log and assignment once more, and serves."""
    world.live = crammed
    world.assign(1)
    world.crew.reopen(0)
    (hand,) = world.crew._hands.values()
    world.until(lambda: hand.behind)

    assert not world.crew.serves(1)
    world.pass_time(module.PING_INTERVAL)
    world.until(lambda: world.crew.serves(1))
    assert [hand.pid] == world.pids()
    assert 2 == world.board.total(Column.ACTIVE), "the log, when it was told of it first and when it was told again"


def test_who_has_missed_the_log_does_not_serve_yet(world: World) -> None:
    """A reload that moves the log is complete once everyone logs there, not when the rest of it was answered.

    Catches a reload that ends while a worker still writes, for up to a second, into the file it should have left.
    """
    world.live = forgetful
    world.assign(1)
    world.until(lambda: world.crew.serves(1))
    world.crew.reopen(0)
    world.assign(1)
    (hand,) = world.crew._hands.values()
    world.until(lambda: hand.generation == 2)

    assert not world.crew.serves(2)
    world.pass_time(module.PING_INTERVAL)
    world.until(lambda: world.crew.serves(2))


def test_log_is_reopened_once_every_worker_has_confirmed(world: World) -> None:
    """A worker that was forked after the reopen has the new descriptor already, and has nothing to confirm."""
    world.assign(1)
    world.until(lambda: world.crew.serves(1))
    assert world.crew.log_reopened
    os.kill(world.pids()[0], signal.SIGSTOP)
    world.crew.reopen(0)
    world.assign(2)
    world.until(lambda: any(hand.generation == 2 for hand in world.crew._hands.values()))
    before = world.crew.log_reopened
    stopped, _ = world.pids()
    os.kill(stopped, signal.SIGCONT)
    world.until(lambda: world.crew.log_reopened)

    assert not before


def test_log_is_not_reopened_while_a_worker_lacks_the_descriptor(world: World) -> None:
    """It counts once it was told again, with the next heartbeat."""
    world.live = forgetful
    world.assign(1)
    world.until(lambda: world.crew.serves(1))
    world.crew.reopen(0)
    (hand,) = world.crew._hands.values()
    world.until(lambda: hand.behind)
    assert not world.crew.log_reopened
    world.pass_time(module.PING_INTERVAL)
    world.until(lambda: world.crew.log_reopened)


def liar(channel: WorkerChannel, row: Row) -> NoReturn:
    """Live as a worker that confirms a configuration of the future, once it has served the present one."""
    while True:
        select.select([channel], [], [])
        received = channel.receive()
        match received.message if received else messages.Stop():
            case messages.Configure(generation):
                channel.send(messages.Configured(generation))
            case messages.Heartbeat():
                channel.send(messages.Configured(1_000_000))
            case messages.Stop():
                os._exit(0)


def test_worker_that_breaks_a_rule_is_replaced_and_logged(world: World) -> None:
    """The record names slot and rule; the replacement comes after 0.1 s and serves."""
    world.live = liar
    world.assign(1)
    world.until(lambda: world.crew.serves(1))
    world.live = obedient
    world.pass_time(module.PING_INTERVAL)
    world.until(lambda: not world.pids())
    died = vars(world.recorder.events[-1])

    assert "worker.died" == world.recorder.names()[-1]
    assert (1, "SIGKILL") == (died["slot"], died["signal"])
    assert "confirmed a configuration that it was not sent" == died["violation"]
    world.pass_time(0.11)
    world.until(lambda: world.crew.serves(1))


def evasive(channel: WorkerChannel, row: Row) -> NoReturn:
    """Live as a worker that answers every heartbeat, and says of all else that its descriptors were lost."""
    while True:
        select.select([channel], [], [])
        received = channel.receive()
        match received.message if received else messages.Stop():
            case messages.Heartbeat():
                channel.send(messages.HeartbeatReply())
            case messages.Stop():
                os._exit(0)
            case _:
                channel.send(messages.DescriptorsLost())


def test_worker_that_confirms_nothing_is_replaced(world: World) -> None:
    """A reload waits for every worker: one that always asks for the descriptors again cannot keep it for ever."""
    world.live = evasive
    world.assign(1)
    (pid,) = world.pids()
    for _ in range(int(module.CONFIRM_TIMEOUT) - 1):
        heard = next(iter(world.crew._hands.values())).heard  # before: the answer may come while time passes
        world.pass_time(module.PING_INTERVAL)
        world.until(lambda heard=heard: next(iter(world.crew._hands.values())).heard > heard)  # type: ignore[misc]
    assert [pid] == world.pids()
    world.live = obedient
    world.pass_time(module.PING_INTERVAL)
    world.until(lambda: not world.pids())

    assert "did not confirm what it was told" == vars(world.recorder.events[-1])["violation"]


def test_drain_stop_and_kill_end_everyone(world: World) -> None:
    """Drain is answered when the listeners are released; nobody who has left is replaced."""
    world.assign(2)
    world.until(lambda: world.crew.serves(1))
    world.crew.drain(5.0)
    world.until(lambda: world.crew.released)
    world.crew.stop()
    world.until(lambda: not world.pids())
    world.pass_time(60)

    assert not world.pids()
    assert ["worker.exited"] * 2 == world.recorder.names()[2:]


def test_a_fork_that_fails_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another process allowed the slot waits; nothing leaks, signals are let through again."""
    real, before = os.fork, len(os.listdir("/proc/self/fd"))  # noqa: PTH208 # a Path would hold one more

    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    world.assign(1)

    world.pass_time(0)
    assert not world.pids()
    assert "worker.refused" == world.recorder.names()[0]
    assert world.crew.hopeless
    assert before + 1 == len(os.listdir("/proc/self/fd"))  # noqa: PTH208 # the configuration's memfd
    assert set() == signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(os, "fork", real)
    world.pass_time(0.2)
    world.until(lambda: world.crew.serves(1))


def test_a_channel_that_cannot_be_made_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another descriptor in the whole system the slot waits, and the supervisor lives."""

    def refused() -> Any:
        raise OSError(23, "Too many open files in system")

    with monkeypatch.context() as patch:
        patch.setattr(messages, "pair", refused)
        world.assign(1)

        assert not world.pids()
    world.pass_time(0.2)
    world.until(lambda: world.crew.serves(1))


def test_many_lives_leave_no_descriptors(world: World) -> None:
    """Twenty deaths and twenty assignments later this process holds what it held before."""
    world.assign(2)
    world.until(lambda: world.crew.serves(1))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 # a Path would hold one more
    for _ in range(20):
        victim = world.pids()[0]
        os.kill(victim, signal.SIGKILL)
        world.until(lambda gone=victim: gone not in world.pids())  # type: ignore[misc]
        world.pass_time(20)
        world.assign(2)
        world.until(lambda: world.crew.serves(world.generation))

    assert before == len(os.listdir("/proc/self/fd"))  # noqa: PTH208 # as above
