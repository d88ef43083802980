"""One turn of the loop: what is called, in which order, and what it costs those who are idle."""

from __future__ import annotations

import errno
import gc
import os
import socket
import time
import weakref
from contextlib import ExitStack
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from echod.net.poller import LONGEST, READABLE, WRITABLE, PollPoller, Ready
from echod.net.reactor import NAP, Handler, Reactor, Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.net.conftest import Rig

Call = tuple[str, str, float]


class Fake(Handler):
    """A handler on one end of a socket pair that writes down its calls, and does what a test plans for them."""

    __slots__ = ("__weakref__", "calls", "name", "other", "plan", "socket")

    def __init__(self, name: str, calls: list[Call], interest: int = READABLE, deadline: float = inf) -> None:
        self.socket, self.other = socket.socketpair()
        self.socket.setblocking(False)
        super().__init__(self.socket.fileno(), interest, deadline)
        self.name = name
        self.calls = calls
        self.plan: dict[str, Callable[[], object]] = {}

    def on_readable(self, now: float) -> None:
        """Read everything."""
        self.socket.recv(65536)
        self._note("readable", now)

    def on_writable(self, now: float) -> None:
        """Write nothing."""
        self._note("writable", now)

    def on_exceptional(self, now: float) -> None:
        """Consume nothing."""
        self._note("exceptional", now)

    def on_deadline(self, now: float) -> None:
        """Have no deadline any more."""
        self.deadline = inf
        self._note("deadline", now)

    def on_crash(self, error: Exception, now: float) -> None:
        """Be done, as a stream would."""
        self.retire()
        self._note("crash", now)

    def close(self) -> None:
        """Close both ends."""
        self._note("close", 0.0)
        self.socket.close()
        self.other.close()

    def end(self) -> None:
        """Be done."""
        self.retire()

    def _note(self, call: str, now: float) -> None:
        self.calls.append((self.name, call, now))
        self.plan.get(call, lambda: None)()


class Scripted(PollPoller):
    """A poller that gives the answers a test has written, and notes how long it was told to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[Ready] = []
        self.waits: list[float] = []

    def poll(self, timeout: float) -> Ready:
        """Give the next answer, or nothing."""
        self.waits.append(timeout)
        return self.script.pop(0) if self.script else ([], [], [])


class Bench:
    """A reactor over a scripted poller, a clock that stands still, and the calls that were made."""

    def __init__(self, stack: ExitStack) -> None:
        self.now = 1000.0
        self.calls: list[Call] = []
        self.crashes: list[tuple[Handler, Exception]] = []
        self.poller = Scripted()
        self.reactor = Reactor(self.poller, lambda handler, error: self.crashes.append((handler, error)), self.clock)
        self._stack = stack

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def make(self, name: str, *args: Any, **options: Any) -> Fake:
        """Return a fake whose sockets are closed when the test is over."""
        fake = Fake(name, self.calls, *args, **options)
        self._stack.enter_context(fake.socket)
        self._stack.enter_context(fake.other)
        return fake

    def add(self, name: str, *args: Any, **options: Any) -> Fake:
        """Return a fake that is in the reactor."""
        fake = self.make(name, *args, **options)
        self.reactor.add(fake)
        return fake

    def turn(self, *answer: list[Fake]) -> list[tuple[str, str]]:
        """Turn once with these three lists, and return the calls that this made."""
        lists = [[fake.fd for fake in fakes] for fakes in (*answer, [], [], [])]
        self.poller.script.append((lists[0], lists[1], lists[2]))
        self.calls.clear()
        self.reactor.turn()
        return [(name, call) for name, call, _ in self.calls]


def fail(code: int) -> Any:
    """Do what a system call does that fails."""
    raise OSError(code, os.strerror(code))


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Make a bench."""
    with ExitStack() as stack:
        yield Bench(stack)


# -- a kernel without memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EAGAIN])
def test_a_poller_without_memory_is_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The turn ends after a nap with nothing ready; the next one goes on."""
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    fake = bench.add("one")
    with monkeypatch.context() as patch:
        patch.setattr(bench.poller, "poll", lambda _timeout: fail(code))
        bench.reactor.turn()
    fake.other.send(b"x")

    assert [NAP] == naps
    assert [("one", "readable")] == bench.turn([fake])


def test_a_broken_poller_is_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other error comes out of the turn: the process should end."""
    monkeypatch.setattr(bench.poller, "poll", lambda _timeout: fail(errno.EBADF))
    with pytest.raises(OSError, match="Bad file descriptor"):
        bench.reactor.turn()


def test_who_cannot_be_watched_pays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of interest that the kernel has no memory for costs the one handler, and is no defect."""
    first, second = bench.add("first"), bench.add("second")
    first.other.send(b"x")
    second.other.send(b"x")
    first.plan["readable"] = lambda: setattr(first, "interest", WRITABLE)
    monkeypatch.setattr(bench.poller, "watch", lambda _fd, _interest: fail(errno.ENOMEM))

    assert [("first", "readable"), ("second", "readable"), ("first", "crash"), ("first", "close")] == bench.turn(
        [first, second]
    )
    assert [second] == list(bench.reactor.handlers)
    assert [] == bench.crashes


def test_what_changes_between_turns_is_not_kept_waiting(bench: Bench) -> None:
    """The turn after waits for nothing, since who was adopted meanwhile is watched at its end only."""
    bench.reactor.adopt(bench.make("one"))
    bench.reactor.turn(5.0)
    bench.reactor.turn(5.0)

    assert [0.0, 5.0] == bench.poller.waits


def test_adopted_is_watched_from_the_end_of_the_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is adopted is watched as anybody else, and told by `on_crash` when that cannot be."""
    one, other = bench.make("one"), bench.make("other")
    bench.reactor.adopt(one)
    bench.turn()

    assert READABLE == one.watched
    monkeypatch.setattr(bench.poller, "watch", lambda _fd, _interest: fail(errno.ENOSPC))
    bench.reactor.adopt(other)
    assert [("other", "crash"), ("other", "close")] == bench.turn()
    assert [one] == list(bench.reactor.handlers)


# -- order ------------------------------------------------------------------------------------------------------------


def test_order_of_a_turn(bench: Bench) -> None:
    """A turn goes through readable, writable, exceptional, deadlines, and closes those who are done at its very end."""
    due = bench.add("due", deadline=1000.0)
    ended = bench.add("ended")
    writer = bench.add("writer", WRITABLE)
    strange = bench.add("strange")
    ended.plan["readable"] = ended.end
    ended.other.send(b"x")

    assert [
        ("ended", "readable"),
        ("writer", "writable"),
        ("strange", "exceptional"),
        ("due", "deadline"),
        ("ended", "close"),
    ] == bench.turn([ended], [writer], [strange])
    assert [due, writer, strange] == list(bench.reactor.handlers)


def test_one_clock_reading_a_turn(bench: Bench) -> None:
    """Everybody who is called in a turn is told the same time, read after the wait."""
    fakes = [bench.add(str(number), READABLE | WRITABLE) for number in range(3)]
    for fake in fakes:
        fake.other.send(b"x")
        fake.plan["readable"] = fake.plan["writable"] = lambda: setattr(bench, "now", bench.now + 1)
    bench.now = 1001.0
    bench.turn(fakes, fakes)

    assert {1001.0} == {now for _, _, now in bench.calls}
    assert 1001.0 == bench.reactor.now


def test_a_wish_that_has_passed_is_not_called(bench: Bench) -> None:
    """Who was readable and writable when the kernel was asked, and wants neither any more, is called for neither."""
    first = bench.add("first", READABLE | WRITABLE)
    second = bench.add("second", READABLE | WRITABLE)

    def lose_interest() -> None:
        first.interest = READABLE
        second.interest = 0

    first.plan["readable"] = lose_interest
    first.other.send(b"x")

    assert [("first", "readable")] == bench.turn([first, second], [first, second])


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["readable", "writable", "exceptional"])
def test_who_is_done_is_told_nothing_more(bench: Bench, kind: int) -> None:
    """A handler that somebody has ended earlier in the turn is not called again."""
    door = bench.add("door", READABLE | WRITABLE)
    channel = bench.add("channel")
    channel.plan["readable"] = door.end
    channel.other.send(b"x")
    door.other.send(b"x")
    lists: list[list[Fake]] = [[channel], [], []]
    lists[kind].append(door)

    assert [("channel", "readable"), ("door", "close")] == bench.turn(*lists)


def test_who_is_done_has_no_deadline(bench: Bench) -> None:
    """It is not told of one either, which could let it begin anew what was just ended."""
    door = bench.add("door", deadline=bench.now)
    channel = bench.add("channel")
    channel.plan["readable"] = door.end
    channel.other.send(b"x")

    assert [("channel", "readable"), ("door", "close")] == bench.turn([channel])


def test_no_number_is_used_twice_in_a_turn(rig: Rig) -> None:
    """A descriptor is closed after all lists were gone through, so that nobody new is taken for who had its number."""
    calls: list[Call] = []
    ended, opener = Fake("ended", calls), Fake("opener", calls)
    numbers = [ended.fd, ended.other.fileno()]
    opened: list[socket.socket] = []
    ended.plan["readable"] = ended.end
    opener.plan["exceptional"] = opener.plan["readable"] = lambda: opened.append(rig.keep(socket.socket()))
    rig.keep(opener.other)
    for fake in (ended, opener):
        rig.reactor.add(fake)
        fake.other.send(b"x")
    rig.until(lambda: ("ended", "close", 0.0) in calls and opened)

    assert not {sock.fileno() for sock in opened} & set(numbers)
    assert ended.fd not in {handler.fd for handler in rig.reactor.handlers}


def test_a_closed_handler_was_forgotten_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The poller forgets a descriptor while it is still open."""
    fake = bench.add("fake")
    forgotten: list[bool] = []
    monkeypatch.setattr(bench.poller, "forget", lambda fd: forgotten.append(fake.socket.fileno() == fd))
    fake.end()
    bench.turn([], [], [fake])

    assert [True] == forgotten


def test_a_handler_that_was_not_watched_closes_too(bench: Bench) -> None:
    """Who is done while it wants nothing was forgotten before, and is only closed."""
    fake = bench.add("fake", 0)
    fake.end()
    bench.reactor.touch(fake)

    assert [("fake", "close")] == bench.turn()


def test_done_twice_closes_once(bench: Bench) -> None:
    """A handler that is in two lists, touched and done is closed once."""
    fake = bench.add("fake", READABLE | WRITABLE)
    fake.other.send(b"x")
    fake.plan["writable"] = fake.end
    bench.reactor.touch(fake)

    assert [("fake", "readable"), ("fake", "writable"), ("fake", "close")] == bench.turn([fake], [fake])
    assert [] == bench.turn()


# -- interest ---------------------------------------------------------------------------------------------------------


def test_a_changed_interest_is_watched_from_the_next_turn(rig: Rig) -> None:
    """The reactor reads the interest of who was called, and tells the poller only what has changed."""
    calls: list[Call] = []
    fake = Fake("fake", calls)
    rig.keep(fake.other)
    rig.reactor.add(fake)
    fake.plan["readable"] = lambda: setattr(fake, "interest", WRITABLE)
    fake.plan["writable"] = lambda: setattr(fake, "interest", 0)
    fake.other.send(b"x")
    rig.until(lambda: len(calls) == 2)
    fake.other.send(b"x")
    rig.turn()

    assert [("fake", "readable", 1000.0), ("fake", "writable", 1000.0)] == calls
    assert (0, ([], [], [])) == (fake.watched, rig.poller.poll(0.0))


def test_an_unchanged_interest_costs_no_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that wants what it wanted before is not watched again."""
    fake = bench.add("fake")
    monkeypatch.delattr(Scripted, "poll", raising=True)
    monkeypatch.setattr(bench.poller, "poll", lambda timeout: ([fake.fd], [], []), raising=False)
    monkeypatch.setattr(bench.poller, "watch", lambda *args: pytest.fail("watched again"))
    fake.other.send(b"x")
    bench.reactor.turn()

    assert [("fake", "readable", 1000.0)] == bench.calls


def test_touch_from_outside(rig: Rig) -> None:
    """Who changes a handler from outside touches it: its wishes are read again at the end of the turn."""
    calls: list[Call] = []
    fake = Fake("fake", calls)
    rig.keep(fake.other)
    rig.reactor.add(fake)
    fake.interest = READABLE | WRITABLE
    rig.turn()
    before = list(calls)
    rig.reactor.touch(fake)
    rig.turn()
    rig.turn()

    assert ([], [("fake", "writable", 1000.0)]) == (before, calls)


def test_a_shared_handler_is_watched_as_such(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listening socket of all workers is watched by `watch_shared`, forgotten to rest, and watched so again."""
    seen: list[str] = []
    for name in ("watch", "watch_shared", "forget"):
        monkeypatch.setattr(bench.poller, name, lambda fd, *rest, name=name: seen.append(name))
    monkeypatch.setattr(Fake, "shared", True)
    fake = bench.add("fake")
    for interest in (0, READABLE):
        fake.interest = interest
        bench.reactor.touch(fake)
        bench.turn()

    assert ["watch_shared", "forget", "watch_shared"] == seen


def test_a_descriptor_that_cannot_be_watched_is_not_added(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel cannot watch one more, `add` raises, and the handler is the caller's again."""

    def refuse(fd: int, interest: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.poller, "watch", refuse)
    fake = bench.make("fake", deadline=1000.0)

    with pytest.raises(OSError, match="No space"):
        bench.reactor.add(fake)
    assert ((), 0, inf) == (bench.reactor.handlers, fake.watched, fake.armed)
    assert [] == bench.turn()


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_waits_no_longer_than_the_first_deadline(bench: Bench) -> None:
    """The poller is told to wait until the first deadline, for at most as long as the caller says or it can."""
    bench.reactor.turn()
    bench.reactor.turn(7.0)
    bench.add("late", deadline=1010.0)
    bench.add("soon", deadline=1005.0)
    bench.reactor.turn()
    bench.reactor.turn(2.0)
    bench.reactor.turn(0.0)
    bench.now = 1005.0
    bench.reactor.turn()
    bench.reactor.turn()

    assert [LONGEST, 7.0, 5.0, 2.0, 0.0, 5.0, 5.0] == bench.poller.waits


@pytest.mark.parametrize("seconds", [25 * 86400.0, 3650 * 86400.0])
def test_a_deadline_beyond_what_a_poller_can_wait(bench: Bench, seconds: float) -> None:
    """The longest durations that the configuration accepts are waited for in parts, whoever asks."""
    bench.reactor.turn(seconds)
    bench.add("far", deadline=bench.now + seconds)
    bench.reactor.turn()

    assert [LONGEST, LONGEST] == bench.poller.waits


def test_a_deadline_missed_means_no_wait(bench: Bench) -> None:
    """A deadline that is past already makes the wait zero, not negative."""
    bench.add("missed", deadline=990.0)

    assert [("missed", "deadline")] == bench.turn()
    assert [0.0] == bench.poller.waits


def test_deadlines_in_their_order(bench: Bench) -> None:
    """Those who are due are called by their deadlines, the others are not."""
    for name, deadline in (("c", 1003.0), ("a", 1001.0), ("d", 1004.0), ("b", 1002.0), ("a2", 1001.0)):
        bench.add(name, deadline=deadline)
    bench.now = 1003.0

    assert [("a", "deadline"), ("a2", "deadline"), ("b", "deadline"), ("c", "deadline")] == bench.turn()


def test_a_deadline_that_moved_away_costs_nothing(bench: Bench) -> None:
    """A handler whose deadline moves later keeps its one entry; that fires early, and is armed again."""
    before = len(bench.reactor._deadlines)
    fake = bench.add("fake", deadline=1010.0)
    fake.plan["readable"] = lambda: setattr(fake, "deadline", bench.now + 10)
    fake.plan["deadline"] = lambda: setattr(fake, "deadline", 1019.0)
    for second in range(1, 10):
        bench.now = 1000.0 + second
        fake.other.send(b"x")
        bench.turn([fake])
    entries = len(bench.reactor._deadlines) - before
    bench.now = 1010.0
    early = bench.turn()
    fake.plan.clear()
    bench.now = 1018.9
    none = bench.turn()
    bench.now = 1019.0

    assert (1, [("fake", "deadline")], []) == (entries, early, none)
    assert [("fake", "deadline")] == bench.turn()


def test_a_deadline_that_moves_nearer_is_armed_at_once(bench: Bench) -> None:
    """An earlier deadline holds from the end of the turn; the entry it replaces does not fire beside it."""
    fake = bench.add("fake", deadline=1010.0)
    fake.deadline = 1005.0
    bench.reactor.touch(fake)
    bench.turn()
    bench.now = 1005.0
    first = bench.turn()
    bench.now = 1010.0

    assert [("fake", "deadline")] == first
    assert [] == bench.turn()


def test_nearer_and_away_again(bench: Bench) -> None:
    """A deadline that goes near and back to where it was fires once there."""
    fake = bench.add("fake", deadline=1010.0)
    bench.reactor.schedule(fake, 1005.0)
    fake.plan["deadline"] = lambda: setattr(fake, "deadline", 1010.0) if bench.now < 1010 else None
    bench.now = 1005.0
    bench.turn()
    bench.now = 1010.0

    assert [("fake", "deadline")] == bench.turn()
    assert [] == bench.turn()


def test_the_deadline_of_the_closed_does_not_fire(bench: Bench) -> None:
    """Whoever is closed is not called again, even with an entry in the heap."""
    fake = bench.add("fake", deadline=1010.0)
    fake.end()
    bench.reactor.touch(fake)
    bench.turn()
    bench.now = 1010.0

    assert [] == bench.turn()


def test_dead_handlers_do_not_pile_up(bench: Bench) -> None:
    """The heap holds no more entries of closed handlers than a few times those that live, and lets them go."""
    survivor = bench.add("survivor", deadline=5000.0)
    dead: list[weakref.ref[Fake]] = []
    for number in range(1000):
        fake = bench.make(str(number), deadline=2000.0)
        bench.reactor.add(fake)
        fake.end()
        bench.reactor.touch(fake)
        bench.turn()
        dead.append(weakref.ref(fake))
        bench._stack.pop_all()  # the fake has closed its sockets itself
        assert len(bench.reactor._deadlines) <= 2 * 2 + 65
    del fake
    bench.calls.clear()
    gc.collect()

    assert sum(reference() is not None for reference in dead) <= 70

    bench._stack.enter_context(survivor.socket)
    bench._stack.enter_context(survivor.other)
    bench.now = 5000.0

    assert [("survivor", "deadline")] == bench.turn()


# -- timers -----------------------------------------------------------------------------------------------------------


class Alarm:
    """A timer on a bench, and when it has acted."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.acted: list[float] = []
        self.timer = Timer(self.acted.append)

    def at(self, now: float) -> list[float]:
        """Turn at `now`, and return when the timer has acted so far."""
        self.bench.now = now
        self.bench.turn()
        return self.acted


@pytest.fixture
def alarm(bench: Bench) -> Alarm:
    """Make a timer."""
    return Alarm(bench)


def test_a_timer_acts_once(bench: Bench, alarm: Alarm) -> None:
    """A timer acts when its deadline has passed, not before, and not again; the poller never hears of it."""
    bench.reactor.schedule(alarm.timer, 1005.0)

    assert [] == list(alarm.at(1004.9))
    assert [1005.0] == list(alarm.at(1005.0))
    assert [1005.0] == list(alarm.at(2000.0))
    assert (0, ()) == (alarm.timer.watched, bench.reactor.handlers)


def test_a_timer_that_schedules_itself(bench: Bench) -> None:
    """What a timer does may be to start it again."""
    acted: list[float] = []

    def act(now: float) -> None:
        acted.append(now)
        bench.reactor.schedule(timer, now + 10)

    timer = Timer(act)
    bench.reactor.schedule(timer, 1000.0)
    for now in (1000.0, 1005.0, 1010.0, 1020.0):
        bench.now = now
        bench.turn()

    assert [1000.0, 1010.0, 1020.0] == acted


def test_a_timer_brought_forward(bench: Bench, alarm: Alarm) -> None:
    """An earlier schedule holds, and the later one is gone."""
    bench.reactor.schedule(alarm.timer, 1010.0)
    bench.reactor.schedule(alarm.timer, 1005.0)

    assert [1005.0] == list(alarm.at(1005.0))
    assert [1005.0] == list(alarm.at(1010.0))


def test_a_timer_put_off(bench: Bench, alarm: Alarm) -> None:
    """A later schedule holds: the timer does not act at the earlier one."""
    bench.reactor.schedule(alarm.timer, 1005.0)
    bench.reactor.schedule(alarm.timer, 1010.0)

    assert [] == list(alarm.at(1005.0))
    assert [1010.0] == list(alarm.at(1010.0))


def test_a_timer_called_off(bench: Bench, alarm: Alarm) -> None:
    """A schedule at infinity stops a timer that was started."""
    bench.reactor.schedule(alarm.timer, 1005.0)
    bench.reactor.schedule(alarm.timer, inf)

    assert [] == list(alarm.at(1005.0))


def test_timers_are_apart(bench: Bench) -> None:
    """Timers have keys of their own, negative, so that none is taken for a descriptor."""
    timers = [Timer(lambda now: None) for _ in range(100)]

    assert 100 == len({timer.fd for timer in timers})
    assert all(timer.fd < 0 for timer in timers)


# -- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["readable", "writable", "exceptional", "deadline"])
def test_a_crash_is_paid_by_its_handler(bench: Bench, call: str) -> None:
    """An exception from a handler is reported, costs that handler its life, and no other its turn."""
    bad = bench.add("bad", READABLE | WRITABLE, deadline=1000.0 if call == "deadline" else inf)
    good = bench.add("good", READABLE | WRITABLE, deadline=1000.0)
    error = ZeroDivisionError("a defect")

    def crash() -> None:
        raise error

    bad.plan[call] = crash
    lists: list[list[Fake]] = [[], [], []]
    if call != "deadline":
        lists[["readable", "writable", "exceptional"].index(call)] = [bad, good]
    for fake in (bad, good):
        fake.other.send(b"x")
    good_calls = [("good", call)] if call != "deadline" else []

    assert [("bad", call), ("bad", "crash"), *good_calls, ("good", "deadline"), ("bad", "close")] == bench.turn(*lists)
    assert [(bad, error)] == bench.crashes
    assert (good,) == bench.reactor.handlers


def test_a_crash_while_closing_harms_nobody(bench: Bench) -> None:
    """Whatever is wrong with what one handler says last, it is reported, and the others go on."""
    bad, good = bench.add("bad", WRITABLE), bench.add("good", WRITABLE)
    error = ValueError("no words")

    def crash() -> None:
        raise error

    bad.plan["close"] = crash
    bad.plan["writable"] = bad.end

    assert [("bad", "writable"), ("bad", "close")] == bench.turn([], [bad])
    assert [("good", "writable")] == bench.turn([], [good])
    assert [(bad, error)] == bench.crashes


def test_a_crash_that_cannot_be_survived_passes(bench: Bench) -> None:
    """A handler without an `on_crash` of its own lets the exception out of the turn, reported first."""

    class Vital(Handler):
        __slots__ = ()

        def on_deadline(self, now: float) -> None:
            raise ZeroDivisionError

    vital = Vital(-1, interest=0, deadline=1000.0)
    bench.reactor.schedule(vital, 1000.0)

    with pytest.raises(ZeroDivisionError):
        bench.turn()
    assert [vital] == [handler for handler, _ in bench.crashes]


def test_a_broken_poller_passes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError of the poller ends the turn: this process cannot go on."""

    def broken(timeout: float) -> Ready:
        raise OSError(9, os.strerror(9))

    monkeypatch.setattr(bench.poller, "poll", broken)

    with pytest.raises(OSError, match="Bad file descriptor"):
        bench.reactor.turn()


def test_a_plain_handler_does_nothing() -> None:
    """What a handler does not define does nothing, save that a crash goes on."""
    handler = Handler(-1)
    for call in (handler.on_readable, handler.on_writable, handler.on_exceptional, handler.on_deadline):
        call(1000.0)
    handler.close()

    assert (READABLE, inf, False, 0) == (handler.interest, handler.deadline, handler.done, handler.watched)


# -- the idle ---------------------------------------------------------------------------------------------------------


class Idle(Handler):
    """A handler that counts how often anybody looks at it."""

    __slots__ = ()
    looks = 0

    def __getattribute__(self, name: str) -> Any:
        Idle.looks += 1
        return super().__getattribute__(name)


def test_the_idle_are_never_looked_at(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn costs nothing for who is idle, however many they are: no attribute of theirs is read.

    The tutorial scans all of its connections, twice a turn.
    """
    monkeypatch.setattr(Idle, "looks", 0)
    for _ in range(100):
        one, other = (rig.keep(end) for end in socket.socketpair())
        rig.reactor.add(Idle(one.fileno(), deadline=5000.0))
        rig.keep(other)
    calls: list[Call] = []
    busy = Fake("busy", calls, READABLE | WRITABLE, deadline=1000.5)
    rig.keep(busy.other)
    rig.reactor.add(busy)
    before = Idle.looks
    for _ in range(50):
        busy.other.send(b"x")
        rig.clock.now += 1.0
        rig.turn()
    after = Idle.looks

    assert (before, True) == (after, len(calls) >= 100)


# -- busy polling -----------------------------------------------------------------------------------------------------


def test_a_busy_reactor_looks_before_it_sleeps(bench: Bench) -> None:
    """For `busy_poll` it asks without waiting; only then it waits as it would have."""
    bench.reactor.busy_poll = 3.0
    poll = bench.poller.poll

    def pass_time(timeout: float) -> Ready:
        bench.now += 1.0
        return poll(timeout)

    bench.poller.poll = pass_time  # type: ignore[method-assign]
    bench.reactor.turn()

    assert [0.0, 0.0, 0.0, LONGEST] == bench.poller.waits


def test_what_comes_while_it_looks_is_seen_at_once(bench: Bench) -> None:
    """The turn goes on with the first thing that is ready, and nobody waits for the end of the looking."""
    fake = bench.add("fake", WRITABLE)
    bench.reactor.busy_poll = 3.0
    bench.poller.script.append(([], [], []))

    assert [("fake", "writable")] == bench.turn([], [fake])
    assert [0.0, 0.0] == bench.poller.waits


def test_looking_ends_with_a_deadline(bench: Bench) -> None:
    """Who is due is not kept waiting by it."""
    bench.add("fake", deadline=bench.now)
    bench.reactor.busy_poll = 3.0

    assert [("fake", "deadline")] == bench.turn()
    assert [0.0] == bench.poller.waits
