"""Faults on purpose: exact in bytes and in time, the same for the same seed, and never the end of a promise."""

from __future__ import annotations

from itertools import pairwise
from math import inf
from typing import Any

import pytest

from echod.config.injection import Faults
from echod.config.models import Limits
from echod.core.injection import GRAIN, SLICE, FaultyConnection, Line, copies, dice
from echod.core.lifecycle import State
from echod.events import CloseReason

START = 1000.0
BUFFER = 64 * 1024


def faulty(limits: dict[str, Any] | None = None, number: int = 1, **keys: Any) -> FaultyConnection:
    """Make an open connection with these faults."""
    faults = Faults.model_validate(keys)
    whole = Limits.model_construct(**(dict(Limits()) | {"buffer": BUFFER} | (limits or {})))
    return FaultyConnection(whole, START, 0.0, faults, dice(faults, number))


def give(connection: FaultyConnection, data: bytes, now: float = START) -> bytes:
    """Receive `data`, and have the kernel take whatever is outgoing; return that."""
    connection.receive(memoryview(data), now)
    return fetch(connection, now)


def fetch(connection: FaultyConnection, now: float) -> bytes:
    """Have the kernel take whatever is outgoing, and return that."""
    data = bytes(connection.outgoing)
    if data:
        connection.sent(len(data), now)
    return data


def follow(connection: FaultyConnection, end: float = inf) -> list[tuple[float, bytes]]:
    """Let time pass from deadline to deadline while bytes are under way; return when they came."""
    found = []
    while connection._under_way and connection.deadline < end:
        now = connection.deadline
        connection.expire(now)
        if data := fetch(connection, now):
            found.append((now - START, data))
    return found


def test_a_byte_leaves_when_its_delay_is_over() -> None:
    """Not before, and no more than a grain after; the owner is told when to come."""
    connection = faulty(delay="200ms")

    assert b"" == give(connection, b"hello")
    assert START + 0.2 <= connection.deadline <= START + 0.2 + GRAIN

    connection.expire(START + 0.19)

    assert b"" == connection.outgoing
    assert not connection.at_rest

    connection.expire(START + 0.2 + GRAIN)

    assert b"hello" == fetch(connection, START + 0.2 + GRAIN)
    assert connection.at_rest


def test_jitter_varies_the_delay_but_not_the_order() -> None:
    """Each arrival is delayed by its own time within the bounds, unless one before it holds it up."""

    def times(number: int, seed: int) -> list[float]:
        connection = faulty(delay="100ms", jitter="50ms", seed=seed, number=number)
        found = []
        for place in range(50):
            assert b"" == give(connection, bytes([place]), START + place)
            ((late, data),) = follow(connection, START + place + 1)
            assert bytes([place]) == data
            found.append(late - place)
        return found

    once = times(number=1, seed=1)

    assert all(0.05 <= late <= 0.15 + 2 * GRAIN for late in once)
    assert max(once) - min(once) > 0.05
    assert once == times(number=1, seed=1)
    assert once != times(number=2, seed=1)
    assert once != times(number=1, seed=2)

    connection = faulty(delay="100ms", jitter="100ms")
    sent = bytes(range(100))
    for place in range(100):
        give(connection, sent[place : place + 1])

    assert sent == b"".join(data for _, data in follow(connection))


def test_a_rate_is_kept() -> None:
    """At no time has more left than the rate allows, and in the end all of it, on time."""
    rate = 10_000
    connection = faulty(rate=f"{rate}B")
    content = bytes(range(250)) * 200
    got = give(connection, content)
    total = len(got)
    for late, data in follow(connection):
        total += len(data)
        got += data
        assert total <= rate * (late + SLICE) + 1

    assert content == got
    assert late == pytest.approx(len(content) / rate - SLICE, abs=0.001)


def test_a_loop_that_is_late_catches_up_by_a_slice() -> None:
    """Turns that come late do not add up to a lower rate, but a long silence is no credit either."""
    connection = faulty(rate="10000B")
    give(connection, bytes(20_000))
    total, now = 200, START
    while total < 10_000:
        now += 0.025
        connection.expire(now)
        total += len(fetch(connection, now))

    assert now - START == pytest.approx(1.0, abs=0.05)

    connection.expire(now + 10)

    assert 200 <= len(fetch(connection, now + 10)) <= 500


@pytest.mark.parametrize("rate", [1, 49, 50, 1 << 30])
def test_any_rate_moves(rate: int) -> None:
    """The lowest takes its time, the highest none; both come to an end."""
    line = Line(Faults.model_validate({"rate": f"{rate}B"}), dice(Faults(), 1))
    line.put(memoryview(bytes(100)), START)
    now, got = START, len(line.take(START, inf))
    while line:
        now = line.due
        got += len(line.take(now, inf))

    assert 100 == got
    assert now - START == pytest.approx(100 / rate, abs=max(SLICE, 1.01 / rate))


def test_closes_after_so_many_bytes() -> None:
    """The client gets exactly these and FIN; what it had sent beyond is dropped."""
    connection = faulty(close_after="5B")

    assert b"abc" == give(connection, b"abc")
    assert State.OPEN is connection.state
    assert b"de" == give(connection, b"defgh")
    assert not connection.wants_read

    connection.expire(connection.deadline)

    assert (CloseReason.FAULT_CLOSE, True, 8, 5) == (
        connection.reason,
        connection.wants_fin,
        connection.received,
        connection.echoed,
    )

    connection.fin_sent(START)
    connection.receive_eof(START)

    assert (State.CLOSED, False) == (connection.state, connection.wants_reset)


def test_closes_after_so_many_bytes_a_client_that_has_finished() -> None:
    """One that has shut down its side gets no more either, and the record says why."""
    connection = faulty(close_after="5B", delay="1s")
    give(connection, b"abcdefgh")
    connection.receive_eof(START)

    assert [b"abcde"] == [data for _, data in follow(connection)]
    assert (State.CLOSED, CloseReason.FAULT_CLOSE) == (connection.state, connection.reason)


def test_closes_once_though_the_client_finishes_meanwhile() -> None:
    """An end of input between the last byte and the close changes nothing about the end."""
    connection = faulty(close_after="5B")
    give(connection, b"abcdefgh")
    connection.receive_eof(START)
    connection.sent(0, START)

    assert (State.HALF_CLOSED, True) == (connection.state, connection.sends_no_more)
    assert connection.deadline <= START

    connection.expire(START)

    assert (State.CLOSED, CloseReason.FAULT_CLOSE, False) == (
        connection.state,
        connection.reason,
        connection.wants_reset,
    )


def test_an_end_for_another_reason_is_no_longer_than_its_timeout() -> None:
    """Who is being closed for another reason at the last byte is cut in time, in one call: no deadline is left over."""
    connection = faulty({"half_close_timeout": 0.001}, close_after="1B")

    assert b"x" == give(connection, b"x")

    connection.finish(CloseReason.BAD_PROXY_HEADER, START)
    connection.expire(START + 0.001)

    assert connection.state is State.CLOSED
    assert connection.reason is CloseReason.BAD_PROXY_HEADER


@pytest.mark.parametrize("finished", [False, True])
def test_resets_after_so_many_bytes(finished: bool) -> None:
    """The client gets exactly these and then a reset, once whatever stands between has had time to send them."""
    connection = faulty(reset_after="5B", delay="1s")
    give(connection, b"abcde")
    if finished:
        connection.receive_eof(START)
    connection.expire(START + 2)

    assert b"abcde" == fetch(connection, START + 2)
    assert connection.state is not State.CLOSED
    assert [False] * 3 == [connection.wants_read, connection.wants_fin, connection.at_rest]
    assert connection.deadline <= START + 2

    connection.expire(START + 2)

    assert (State.CLOSED, CloseReason.FAULT_RESET, True) == (
        connection.state,
        connection.reason,
        connection.wants_reset,
    )
    assert inf == connection.deadline


def test_a_reset_waits_for_the_kernel() -> None:
    """While the kernel has not taken all of the bytes there is no reset, however long that takes."""
    connection = faulty(reset_after="5B")
    connection.receive(memoryview(b"abcdefgh"), START)
    connection.sent(3, START)
    connection.expire(START + 9)

    assert (State.OPEN, b"de") == (connection.state, connection.outgoing)

    connection.sent(2, START + 9)
    connection.expire(START + 9)

    assert (CloseReason.FAULT_RESET, 5) == (connection.reason, connection.echoed)


def test_a_client_below_the_limit_is_not_harmed() -> None:
    """One byte less than what a fault needs is an echo like any other."""
    for key in ("close_after", "reset_after", "stall_after"):
        keys: dict[str, Any] = {key: "6B"}
        connection = faulty(**keys)
        assert b"abcde" == give(connection, b"abcde")
        connection.receive_eof(START)
        assert (State.CLOSED, CloseReason.PEER_CLOSED) == (connection.state, connection.reason)


def test_stalls_after_so_many_bytes() -> None:
    """Nothing more goes out, input is read until the buffer is full, and the idle timeout cuts in the end."""
    connection = faulty(limits={"idle_timeout": 9.0}, stall_after="5B")

    assert b"abcde" == give(connection, b"abcdefgh")
    assert connection.wants_read

    give(connection, bytes(connection.room), START + 1)

    assert (0, False, b"", START + 10) == (
        connection.room,
        connection.wants_read,
        connection.outgoing,
        connection.deadline,
    )

    connection.expire(START + 10)

    assert (State.CLOSED, CloseReason.IDLE_TIMEOUT, True) == (
        connection.state,
        connection.reason,
        connection.wants_reset,
    )


def test_a_client_that_finishes_a_stalled_connection_is_cut() -> None:
    """It is owed bytes that never come: after the half-close timeout a reset, and never FIN."""
    connection = faulty(limits={"half_close_timeout": 3.0}, stall_after="1B")
    give(connection, b"abc")
    connection.receive_eof(START)
    connection.expire(START + 3)

    assert (CloseReason.HALF_CLOSE_TIMEOUT, True) == (connection.reason, connection.wants_reset)


def test_a_drain_waits_for_what_is_delayed() -> None:
    """It goes out when its time has come, then FIN; what is stalled is cut at once, and what stalls later then."""
    connection = faulty(delay="5s")
    give(connection, b"hello")
    connection.drain(START + 1)

    assert connection.deadline >= START + 5
    assert [b"hello"] == [data for _, data in follow(connection)]

    connection.expire(connection.deadline)

    assert (State.FLUSHING, CloseReason.DRAINED, True) == (connection.state, connection.reason, connection.wants_fin)

    stalled = faulty(stall_after="1B")
    give(stalled, b"ab")
    stalled.drain(START)

    assert (State.CLOSED, CloseReason.DRAINED, True) == (stalled.state, stalled.reason, stalled.wants_reset)

    later = faulty(stall_after="1B", delay="5s")
    give(later, b"ab")
    later.drain(START)
    follow(later)
    later.expire(later.deadline, in_flight=True)

    assert (State.CLOSED, CloseReason.DRAINED) == (later.state, later.reason)


def test_a_delay_is_not_idle() -> None:
    """Timeouts that are shorter than the delay count from the moment at which bytes leave; the greatest age holds."""
    short = {"idle_timeout": 1.0, "half_close_timeout": 1.0}
    connection = faulty(limits=short, delay="10s")
    give(connection, b"hello")
    connection.expire(START + 9)

    assert State.OPEN is connection.state

    connection.receive_eof(START + 9)

    assert [b"hello"] == [data for _, data in follow(connection)]
    assert CloseReason.PEER_CLOSED is connection.reason

    aged = faulty(limits={"max_lifetime": 4.0}, delay="10s")
    give(aged, b"hello")

    assert START + 4 == aged.deadline

    aged.expire(START + 4)

    assert (State.FLUSHING, CloseReason.MAX_LIFETIME, False) == (aged.state, aged.reason, aged.wants_fin)
    assert [b"hello"] == [data for _, data in follow(aged)]
    assert aged.wants_fin


def test_many_small_messages_take_little_memory() -> None:
    """Bytes that leave together are remembered together: who sends single ones costs no more than the rest."""
    faults = Faults.model_validate({"delay": "60s", "jitter": "60s"})
    line = Line(faults, dice(faults, 1))
    for number in range(BUFFER):
        line.put(memoryview(b"x"), START + number / 1000)

    assert BUFFER == len(line)
    assert len(line._marks) < 1500


def test_datagrams_are_lost_and_doubled_as_often_as_asked() -> None:
    """The parts are kept, and the same seed loses the same ones again."""
    faults = Faults(drop=0.3, duplicate=0.2, seed=11)

    def run(number: int) -> list[int]:
        chance = dice(faults, number)
        return [copies(faults, chance) for _ in range(10_000)]

    once = run(0)

    assert 2800 < once.count(0) < 3200
    assert 1200 < once.count(2) < 1600
    assert once == run(0)
    assert once != run(1)
    assert [0] * 9 == [copies(Faults(drop=1.0), dice(faults, 0)) for _ in range(9)]
    assert [2] * 9 == [copies(Faults(duplicate=1.0), dice(faults, 0)) for _ in range(9)]


def test_times_of_leaving_never_go_back() -> None:
    """With the widest jitter, what came later leaves later."""
    connection = faulty(delay="50ms", jitter="50ms")
    for number in range(200):
        connection.receive(memoryview(b"x"), START + number / 10_000)
    times = [late for late, _ in follow(connection)]

    assert len(times) > 1
    assert all(first < second for first, second in pairwise(times))
