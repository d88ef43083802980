"""One peer's life: the table, the deadlines, the bounds and the borrowed view, each by the inputs a socket can give."""

from __future__ import annotations

from itertools import product
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from echod.config.models import Limits
from echod.core.connection import LINGER, LINGER_BYTES, LINGER_DRAINING, QUIET, Connection
from echod.core.lifecycle import TRANSITIONS, Cue, State
from echod.events import CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable

BUFFER = 8
IDLE = 100.0
ESTABLISH = 5.0
HALF_CLOSE = 10.0
START = 1000.0


def make(**changes: Any) -> Connection:
    """Return a fresh connection; `changes` are other limits."""
    limits = {"buffer": BUFFER, "idle_timeout": IDLE, "half_close_timeout": HALF_CLOSE, "max_lifetime": 0.0}
    return Connection(Limits.model_construct(**(limits | changes)), START)


def establishing(**changes: Any) -> Connection:
    """Return a fresh connection of which somebody has to say first whose it is."""
    limits = {"buffer": BUFFER, "idle_timeout": IDLE, "half_close_timeout": HALF_CLOSE, "max_lifetime": 0.0}
    return Connection(Limits.model_construct(**(limits | changes)), START, ESTABLISH)


def feed(connection: Connection, data: bytes, taken: int = 0, now: float = START) -> None:
    """Receive `data` and have the kernel take `taken` bytes of what is outgoing then."""
    connection.receive(memoryview(data), now)
    connection.sent(taken, now)


def reach(state: State, **limits: Any) -> Connection:
    """Return a connection in `state`; where bytes can be held, two are."""
    if state is State.ESTABLISHING:
        return establishing(**limits)
    connection = make(**limits)
    if state is not State.LINGERING:
        feed(connection, b"ab")
    match state:
        case State.DRAINING:
            connection.drain(START)
        case State.HALF_CLOSED:
            connection.receive_eof(START)
        case State.FLUSHING:
            connection.finish(CloseReason.IDLE_TIMEOUT, START)
        case State.LINGERING:
            connection.finish(CloseReason.IDLE_TIMEOUT, START)
            connection.fin_sent(START)
        case State.CLOSED:
            connection.fail(CloseReason.PEER_RESET, START)
        case State.OPEN:
            pass
    return connection


def snapshot(connection: Connection) -> dict[str, object]:
    """Return everything that a connection knows."""
    return {name: getattr(connection, name) for name in Connection.__slots__} | {"outgoing": bytes(connection.outgoing)}


GIVE: dict[Cue, Callable[[Connection], None]] = {
    Cue.ESTABLISHED: lambda connection: connection.established(START),
    Cue.EOF: lambda connection: connection.receive_eof(START),
    Cue.DRAIN: lambda connection: connection.drain(START),
    Cue.FINISH: lambda connection: connection.finish(CloseReason.STOPPED, START),
    Cue.FLUSHED: lambda connection: connection.sent(len(connection.outgoing), START),
    Cue.FIN_SENT: lambda connection: connection.fin_sent(START),
    Cue.FAIL: lambda connection: connection.fail(CloseReason.STOPPED, START),
}

ILLEGAL = sorted(set(product(State, Cue)) - set(TRANSITIONS), key=str)


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "expected"), TRANSITIONS.items(), ids=str)
def test_each_line_of_the_table(step: tuple[State, Cue], expected: State) -> None:
    """Every line of TRANSITIONS can be reached by the inputs, and leads where it says."""
    state, cue = step
    connection = reach(state)
    GIVE[cue](connection)
    if (state, cue) == (State.ESTABLISHING, Cue.EOF):
        expected = State.CLOSED  # at once, since nothing is held that could be sent

    assert expected is connection.state


@pytest.mark.parametrize(("state", "cue"), ILLEGAL, ids=str)
def test_an_illegal_cue_changes_nothing(state: State, cue: Cue) -> None:
    """A cue that the state does not allow raises, and leaves everything as it was."""
    connection = reach(state)
    before = snapshot(connection)

    with pytest.raises(KeyError):
        connection._move(cue, START + 1, CloseReason.STOPPED)
    assert before == snapshot(connection)


@pytest.mark.parametrize(("state", "cue"), [pair for pair in ILLEGAL if pair[1] in {Cue.EOF, Cue.FIN_SENT}], ids=str)
def test_an_illegal_input_changes_nothing(state: State, cue: Cue) -> None:
    """The same holds for the inputs that could give such a cue."""
    connection = reach(state)
    before = snapshot(connection)

    with pytest.raises(KeyError):
        GIVE[cue](connection)
    assert before == snapshot(connection)


# -- before the payload -----------------------------------------------------------------------------------------------


def test_what_comes_first_is_no_payload() -> None:
    """Until it is established a connection wants to read, echoes nothing, and has a deadline of its own."""
    connection = establishing(idle_timeout=1.0, max_lifetime=0.5)

    assert (True, False, False, False) == wishes(connection)
    assert (False, START + ESTABLISH) == (connection.at_rest, connection.deadline)
    connection.established(START + 3)
    assert (State.OPEN, True) == (connection.state, connection.at_rest)
    feed(connection, b"ab", 2, START + 3)
    assert (2, 2) == (connection.received, connection.echoed)


def test_who_does_not_say_is_cut() -> None:
    """At the deadline and not before, with the reason."""
    connection = establishing()
    connection.expire(START + ESTABLISH - 0.1)
    assert State.ESTABLISHING is connection.state
    connection.expire(START + ESTABLISH)

    assert (State.CLOSED, CloseReason.HANDSHAKE_TIMEOUT) == (connection.state, connection.reason)
    assert connection.wants_reset


@pytest.mark.parametrize(
    ("end", "state", "reason"),
    [
        (lambda connection: connection.receive_eof(START), State.CLOSED, CloseReason.PEER_CLOSED),
        (lambda connection: connection.drain(START), State.FLUSHING, CloseReason.DRAINED),
        (
            lambda connection: connection.fail(CloseReason.BAD_PROXY_HEADER, START),
            State.CLOSED,
            CloseReason.BAD_PROXY_HEADER,
        ),
    ],
)
def test_it_may_end_before_it_begins(end: Callable[[Connection], None], state: State, reason: CloseReason) -> None:
    """By a peer that says nothing, by a stop, by a header that is none."""
    connection = establishing()
    end(connection)

    assert (state, reason) == (connection.state, connection.reason)


# -- echo -------------------------------------------------------------------------------------------------------------


def test_a_fresh_connection_wants_to_read() -> None:
    """A new connection is open, at rest, has all its room, and wishes nothing but input."""
    connection = make()

    assert State.OPEN is connection.state
    assert (True, False, False, False) == wishes(connection)
    assert (BUFFER, True, None) == (connection.room, connection.at_rest, connection.reason)
    assert (0, 0, 0, START) == (connection.received, connection.echoed, connection.discarded, connection.opened)


def wishes(connection: Connection) -> tuple[bool, bool, bool, bool]:
    """Return (read, write, FIN, reset)."""
    return connection.wants_read, connection.wants_write, connection.wants_fin, connection.wants_reset


def test_what_the_kernel_takes_whole_is_never_copied() -> None:
    """`outgoing` is the caller's own view while it is offered, and nothing is left once all of it is taken."""
    connection = make()
    view = memoryview(bytearray(b"hello"))
    connection.receive(view, START)

    assert view is connection.outgoing

    connection.sent(5, START)

    assert not connection.outgoing
    assert (5, 5, True) == (connection.received, connection.echoed, connection.at_rest)


@pytest.mark.parametrize(("taken", "left"), [(0, b"hello"), (2, b"llo"), (4, b"o")])
def test_leftovers_survive_the_reuse_of_the_buffer(taken: int, left: bytes) -> None:
    """What the kernel did not take is copied, so that the memory behind the view may be used for the next peer."""
    connection = make()
    memory = bytearray(b"hello")
    connection.receive(memoryview(memory), START)
    connection.sent(taken, START)
    memory[:] = b"XXXXX"

    assert left == connection.outgoing
    assert (False, True) == (connection.at_rest, connection.wants_write)


def test_more_input_joins_what_is_held() -> None:
    """Bytes that arrive while others are held go out behind them, in order, as the kernel takes them."""
    connection = make()
    memory = bytearray(b"abc")
    connection.receive(memoryview(memory), START)
    connection.sent(1, START)
    memory[:] = b"def"
    connection.receive(memoryview(memory), START)
    memory[:] = b"XXX"

    assert b"bcdef" == connection.outgoing

    connection.sent(3, START)

    assert (b"ef", 6, 4) == (connection.outgoing, connection.received, connection.echoed)

    connection.sent(2, START)

    assert (b"", 6, 6) == (connection.outgoing, connection.received, connection.echoed)


# -- backpressure -----------------------------------------------------------------------------------------------------


def test_backpressure_from_the_brim_to_the_half() -> None:
    """A connection stops reading when its buffer is full and reads again once no more than half of it is held."""
    connection = make()
    feed(connection, b"1234567")
    reading = [connection.wants_read]
    feed(connection, b"8")
    for _ in range(4):
        reading.append(connection.wants_read)
        connection.sent(1, START)

    assert [True, False, False, False, False] == reading
    assert connection.wants_read
    assert (b"5678", BUFFER - 4) == (connection.outgoing, connection.room)


def test_no_pause_below_the_brim() -> None:
    """Between half and full it goes on reading if it was reading: room is left, and it is what may be read."""
    connection = make()
    feed(connection, b"123456")

    assert (True, 2) == (connection.wants_read, connection.room)


def test_a_full_read_taken_whole_does_not_pause() -> None:
    """A read as large as the buffer that the kernel takes at once leaves the connection at rest."""
    connection = make()
    feed(connection, b"12345678", taken=BUFFER)

    assert (True, True) == (connection.wants_read, connection.at_rest)


def test_a_paused_connection_that_is_emptied_at_once_reads_on() -> None:
    """The pause ends also when everything that is held goes out in one piece."""
    connection = make()
    feed(connection, b"12345678")
    connection.sent(BUFFER, START)

    assert (True, BUFFER) == (connection.wants_read, connection.room)


# -- ends -------------------------------------------------------------------------------------------------------------


def test_peer_closes_with_nothing_held() -> None:
    """End of input closes at once when nothing is owed, without a reset."""
    connection = make()
    connection.receive_eof(START + 3)

    assert (State.CLOSED, CloseReason.PEER_CLOSED, 3.0) == (connection.state, connection.reason, connection.lifetime)
    assert (False, False, False, False) == wishes(connection)


def test_half_closed_peer_gets_what_is_held() -> None:
    """End of input stops the reading only; the connection closes once everything is sent."""
    connection = reach(State.HALF_CLOSED)

    assert (False, True, False, False) == wishes(connection)

    connection.sent(1, START)

    assert (State.HALF_CLOSED, None) == (connection.state, connection.reason)

    connection.sent(1, START)

    assert (State.CLOSED, CloseReason.PEER_CLOSED, False) == (
        connection.state,
        connection.reason,
        connection.wants_reset,
    )


def test_finish_flushes_sends_fin_and_lingers() -> None:
    """Echod's own end: send what is held, then FIN, then read on until the peer has ended too."""
    connection = reach(State.FLUSHING)

    assert (False, True, False, False) == wishes(connection)

    connection.sent(2, START)

    assert (False, False, True, False) == wishes(connection)

    connection.fin_sent(START)

    assert (True, False, False, False) == wishes(connection)

    connection.receive_eof(START)

    assert (False, False, False, False) == wishes(connection)
    assert (State.CLOSED, CloseReason.IDLE_TIMEOUT) == (connection.state, connection.reason)


def test_lingering_discards_and_counts() -> None:
    """Bytes that arrive while lingering are counted as discarded, not as received, and never come back."""
    connection = reach(State.LINGERING)
    feed(connection, b"late")

    assert (0, 0, 4, b"") == (connection.received, connection.echoed, connection.discarded, connection.outgoing)
    assert BUFFER == connection.room


def test_lingering_is_bounded_in_bytes() -> None:
    """A peer that goes on sending is given up after LINGER_BYTES, not one byte earlier."""
    connection = reach(State.LINGERING)
    connection.receive(memoryview(bytes(LINGER_BYTES)), START)

    assert State.LINGERING is connection.state

    connection.receive(memoryview(b"!"), START)

    assert (State.CLOSED, CloseReason.IDLE_TIMEOUT, False) == (
        connection.state,
        connection.reason,
        connection.wants_reset,
    )


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.OPEN, True),
        (State.DRAINING, True),
        (State.HALF_CLOSED, True),
        (State.FLUSHING, True),
        (State.LINGERING, False),
    ],
)
def test_a_cut_connection_is_reset(state: State, expected: bool) -> None:
    """Who is cut sees a reset, lest a cut stream be taken for a whole one; who lingers has been sent everything."""
    connection = reach(state)
    connection.fail(CloseReason.STOPPED, START)

    assert (State.CLOSED, expected, b"") == (connection.state, connection.wants_reset, connection.outgoing)


def test_failing_a_closed_connection_does_not_reset_it() -> None:
    """What has ended in good order stays so."""
    connection = make()
    connection.receive_eof(START)
    connection.fail(CloseReason.STOPPED, START)

    assert (CloseReason.PEER_CLOSED, False) == (connection.reason, connection.wants_reset)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.OPEN, CloseReason.WRITE_FAILED),
        (State.DRAINING, CloseReason.WRITE_FAILED),
        (State.HALF_CLOSED, CloseReason.WRITE_FAILED),
        (State.FLUSHING, CloseReason.IDLE_TIMEOUT),
        (State.LINGERING, CloseReason.IDLE_TIMEOUT),
        (State.CLOSED, CloseReason.PEER_RESET),
    ],
)
def test_the_first_reason_wins(state: State, expected: CloseReason) -> None:
    """What ends a connection for good is what is reported, whatever goes wrong on the way out."""
    connection = reach(state)
    connection.fail(CloseReason.WRITE_FAILED, START)
    connection.fail(CloseReason.INTERNAL_ERROR, START)

    assert expected is connection.reason


def test_a_peer_that_ended_first_closed() -> None:
    """A finish after the peer's end changes nothing: it gets what it is owed, and it was the one who closed."""
    connection = reach(State.HALF_CLOSED)
    connection.finish(CloseReason.SUPERVISOR_LOST, START)
    connection.sent(2, START)

    assert (State.CLOSED, CloseReason.PEER_CLOSED) == (connection.state, connection.reason)


def test_lifetime_is_from_open_to_close() -> None:
    """`lifetime` is what the closed record calls the duration."""
    connection = make()
    connection.drain(START + 1)
    connection.fail(CloseReason.DRAIN_TIMEOUT, START + 2.5)
    connection.drain(START + 9)

    assert 2.5 == connection.lifetime


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.OPEN, IDLE),
        (State.DRAINING, QUIET),
        (State.HALF_CLOSED, HALF_CLOSE),
        (State.FLUSHING, HALF_CLOSE),
        (State.LINGERING, LINGER),
        (State.CLOSED, inf),
    ],
)
def test_each_state_has_its_deadline(state: State, expected: float) -> None:
    """Every state but CLOSED ends by itself, and an early call of `expire` does nothing."""
    connection = reach(state)
    before = snapshot(connection)
    connection.expire(START + min(expected, 1e9) - 0.001)

    assert START + expected == connection.deadline
    assert before == snapshot(connection)


@pytest.mark.parametrize("state", [State.OPEN, State.HALF_CLOSED, State.FLUSHING])
def test_no_limit_no_deadline(state: State) -> None:
    """A limit of 0 switches its deadline off."""
    assert inf == reach(state, idle_timeout=0.0, half_close_timeout=0.0).deadline


@pytest.mark.parametrize(
    ("state", "expected", "reason"),
    [
        (State.OPEN, State.FLUSHING, CloseReason.IDLE_TIMEOUT),
        (State.HALF_CLOSED, State.CLOSED, CloseReason.HALF_CLOSE_TIMEOUT),
        (State.FLUSHING, State.CLOSED, CloseReason.IDLE_TIMEOUT),
        (State.LINGERING, State.CLOSED, CloseReason.IDLE_TIMEOUT),
    ],
)
def test_each_deadline_ends_its_state(state: State, expected: State, reason: CloseReason) -> None:
    """At its deadline, and not after it, a state is left, for the reason that came first."""
    connection = reach(state)
    connection.expire(connection.deadline)

    assert (expected, reason) == (connection.state, connection.reason)


@pytest.mark.parametrize(
    ("state", "reset"), [(State.HALF_CLOSED, True), (State.FLUSHING, True), (State.LINGERING, False)]
)
def test_a_peer_that_takes_nothing_back_is_reset(state: State, reset: bool) -> None:
    """A deadline that destroys bytes shows as a reset; one that destroys none does not."""
    connection = reach(state)
    connection.expire(connection.deadline)

    assert reset is connection.wants_reset


@pytest.mark.parametrize("state", [State.OPEN, State.DRAINING, State.HALF_CLOSED, State.FLUSHING])
def test_sent_bytes_move_the_deadline(state: State) -> None:
    """A deadline counts from the last byte that moved; being offered to a full kernel is no movement."""
    connection = reach(state)
    timeout = connection.deadline - START
    connection.sent(0, START + 0.1)
    unmoved = connection.deadline
    connection.sent(1, START + 0.2)

    assert (START + timeout, START + 0.2 + timeout) == (unmoved, connection.deadline)


@pytest.mark.parametrize(("state", "timeout"), [(State.OPEN, IDLE), (State.DRAINING, QUIET)])
def test_received_bytes_move_the_deadline(state: State, timeout: float) -> None:
    """So does a byte that came in."""
    connection = reach(state)
    connection.receive(memoryview(b"c"), START + 0.2)

    assert START + 0.2 + timeout == connection.deadline


@pytest.mark.parametrize(
    "end", [lambda c: c.receive_eof(START + 50), lambda c: c.finish(CloseReason.STOPPED, START + 50)]
)
def test_half_close_counts_from_the_end_of_input(end: Callable[[Connection], None]) -> None:
    """A peer that was idle before has the whole half-close timeout from the moment that only sending is left."""
    connection = make()
    feed(connection, b"ab")
    end(connection)

    assert START + 50 + HALF_CLOSE == connection.deadline


def test_lingering_does_not_last_longer_for_a_talker() -> None:
    """The linger deadline counts from FIN, whatever still comes in."""
    connection = reach(State.LINGERING)
    connection.receive(memoryview(b"more"), START + 1)

    assert START + LINGER == connection.deadline


@pytest.mark.parametrize("state", [State.OPEN, State.DRAINING])
def test_max_lifetime_ends_busy_connections(state: State) -> None:
    """A connection of the greatest age ends in good order though bytes move; from then on half-close holds."""
    connection = reach(state, max_lifetime=20.0)
    connection.receive(memoryview(b"c"), START + 19.9)

    assert START + 20 == connection.deadline

    connection.expire(START + 20)

    assert (State.FLUSHING, CloseReason.MAX_LIFETIME) == (connection.state, connection.reason)
    assert START + 20 + HALF_CLOSE == connection.deadline


def test_max_lifetime_does_not_cut_a_half_closed_peer() -> None:
    """Who has only to be sent the rest is given the half-close timeout, at any age."""
    connection = reach(State.HALF_CLOSED, max_lifetime=5.0)
    connection.expire(START + 5)

    assert (State.HALF_CLOSED, START + HALF_CLOSE) == (connection.state, connection.deadline)


# -- drain ------------------------------------------------------------------------------------------------------------


def test_a_draining_connection_still_echoes() -> None:
    """A stop does not interrupt a conversation: bytes go on coming back until the peer falls quiet."""
    connection = make()
    connection.drain(START)
    feed(connection, b"more", taken=4, now=START + 0.2)
    connection.expire(START + QUIET)

    assert (State.DRAINING, 4, True) == (connection.state, connection.echoed, connection.wants_read)

    connection.expire(START + 0.2 + QUIET)

    assert (State.FLUSHING, CloseReason.DRAINED, True) == (connection.state, connection.reason, connection.wants_fin)


def test_a_connection_that_was_quiet_before_drains_at_once() -> None:
    """The quiet counts from the last byte, not from the stop: who has been idle is closed without a wait."""
    connection = make()
    connection.drain(START + 50)
    connection.expire(START + 50)

    assert (State.FLUSHING, CloseReason.DRAINED) == (connection.state, connection.reason)


@pytest.mark.parametrize(("held", "in_flight"), [(b"", True), (b"ab", False), (b"ab", True)])
def test_bytes_on_their_way_keep_a_draining_connection(held: bytes, in_flight: bool) -> None:
    """Quiet is not enough: nothing may be held here, and nothing may be on its way in the kernel."""
    connection = make()
    if held:
        feed(connection, held)
    connection.drain(START)
    connection.expire(START + QUIET, in_flight=in_flight)

    assert (State.DRAINING, START + 2 * QUIET) == (connection.state, connection.deadline)


def test_bytes_in_flight_do_not_save_an_idle_one() -> None:
    """Outside of a drain what the kernel holds does not count: only bytes that move do."""
    connection = make()
    connection.expire(START + IDLE, in_flight=True)

    assert State.FLUSHING is connection.state


def test_lingering_is_short_in_a_drain() -> None:
    """While the daemon stops, a lingering close reads on for less long."""
    connection = make()
    connection.drain(START)
    connection.finish(CloseReason.DRAINED, START)
    connection.fin_sent(START + 1)

    assert START + 1 + LINGER_DRAINING == connection.deadline


def test_a_drain_shortens_a_lingering_that_goes_on() -> None:
    """One that lingers already when the stop comes gets the short time too, and ends at once when that is over."""
    connection = reach(State.LINGERING)
    connection.drain(START + 1)
    deadline = connection.deadline
    connection.expire(START + 1)

    assert (START + LINGER_DRAINING, State.CLOSED) == (deadline, connection.state)
