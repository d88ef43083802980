"""What holds for a connection whatever its peer, its kernel and its daemon do, in any order."""

from __future__ import annotations

from itertools import product
from math import inf
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from echod.config.models import Limits
from echod.core.connection import LINGER_BYTES, Connection
from echod.core.lifecycle import State
from echod.events import CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable

BUFFER = 16
ECHOING = {State.OPEN, State.DRAINING}
UNDECIDED = {State.ESTABLISHING, *ECHOING, State.HALF_CLOSED}
RANKS = [
    {State.ESTABLISHING},
    {State.OPEN},
    {State.DRAINING},
    {State.HALF_CLOSED, State.FLUSHING},
    {State.LINGERING},
    {State.CLOSED},
]

timeouts = st.sampled_from([0.0, 0.001, 5.0, 600.0])
handshakes = st.sampled_from([0.0, 0.001, 5.0])
pauses = st.sampled_from([0.0, 0.001, 0.25, 3.0, 700.0])
reasons = st.sampled_from(CloseReason)
counts = st.integers(min_value=0, max_value=BUFFER)


def rank(state: State) -> int:
    """Tell how far along its life a connection is."""
    return next(number for number, states in enumerate(RANKS) if state in states)


class Life(RuleBasedStateMachine):
    """An owner that keeps to the contract, over a kernel and a peer that do what they like."""

    connection: Connection
    can_bypass = True
    """Whether this kind of connection ever lets bytes pass without looking at them."""

    @initialize(idle=timeouts, half_close=timeouts, lifetime=timeouts, establish=handshakes)
    def open(self, idle: float, half_close: float, lifetime: float, establish: float) -> None:
        """Accept a connection under any limits, with or without something to read before its payload."""
        self.now = 1000.0
        limits = Limits.model_construct(
            buffer=BUFFER, idle_timeout=idle, half_close_timeout=half_close, max_lifetime=lifetime
        )
        self.connection = Connection(limits, self.now, establish)
        self.handshake_deadline = self.now + establish
        self.end = self.now + (lifetime or inf)
        self.idle = idle or inf
        self.moved = self.now
        self.memory = bytearray(BUFFER)
        self.given = bytearray()
        self.returned = bytearray()
        self.reason: CloseReason | None = None
        self.rank = 0

    # -- what may happen ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.connection.state is State.ESTABLISHING)
    @rule(timeout=handshakes.filter(bool), seconds=pauses)
    def prolong(self, timeout: float, seconds: float) -> None:
        """Complete the PROXY header, which the owner reads by itself; the handshake of TLS has its own time."""
        self.now += seconds
        self.connection.prolong(timeout, self.now)
        self.handshake_deadline = self.now + timeout

    @precondition(lambda self: self.connection.state is State.ESTABLISHING)
    @rule(seconds=pauses)
    def establish(self, seconds: float) -> None:
        """Complete what comes before the payload."""
        self.now += seconds
        self.connection.established(self.now)
        self.moved = self.now

    @precondition(lambda self: self.connection.passing)
    @rule(data=st.binary(min_size=1, max_size=BUFFER), taken=st.one_of(st.none(), counts))
    def bypass(self, data: bytes, taken: int | None) -> None:
        """Receive and send as `Stream.on_readable` does on its short way; None is a send that fails."""
        connection = self.connection
        self.moved = self.now
        self.given += data
        self.memory[: len(data)] = data
        view = memoryview(self.memory)[: len(data)]
        if taken is None:
            connection.receive(view, self.now)
            connection.fail(CloseReason.WRITE_FAILED, self.now)
        elif taken >= len(data):
            self.returned += data
            connection.passed += len(data)
            connection.moved = self.now
        else:
            self.returned += data[:taken]
            connection.receive(view, self.now)
            connection.sent(taken, self.now)
        self.memory[:] = bytes(BUFFER)

    @precondition(lambda self: self.connection.wants_read and self.connection.state is not State.ESTABLISHING)
    @rule(data=st.binary(min_size=1, max_size=BUFFER), most=counts)
    def receive(self, data: bytes, most: int) -> None:
        """Read some bytes into the shared buffer, offer them to the kernel, and let others use the buffer."""
        connection = self.connection
        content = data[: connection.room]
        echoing = connection.state in ECHOING
        self.memory[: len(content)] = content
        connection.receive(memoryview(self.memory)[: len(content)], self.now)
        if echoing:
            self.given += content
            self.moved = self.now
        if connection.outgoing:
            self.take(most)
        self.memory[:] = bytes(BUFFER)

    @precondition(lambda self: self.connection.wants_write)
    @rule(most=counts)
    def take(self, most: int) -> None:
        """Have the kernel take some of what is outgoing, or nothing of it."""
        connection = self.connection
        count = min(most, len(connection.outgoing))
        self.returned += bytes(connection.outgoing[:count])
        connection.sent(count, self.now)
        if count:
            self.moved = self.now

    @precondition(lambda self: self.connection.wants_read)
    @rule()
    def receive_eof(self) -> None:
        """Read the end of input."""
        self.connection.receive_eof(self.now)

    @precondition(lambda self: self.connection.wants_fin)
    @rule()
    def send_fin(self) -> None:
        """Shut down echod's side: the peer has been sent everything."""
        assert self.given == self.returned

        self.connection.fin_sent(self.now)

    @rule()
    def drain(self) -> None:
        """Stop the daemon."""
        self.connection.drain(self.now)

    @rule(reason=reasons)
    def finish(self, reason: CloseReason) -> None:
        """End in good order."""
        self.connection.finish(reason, self.now)

    @rule(reason=reasons)
    def fail(self, reason: CloseReason) -> None:
        """Lose or cut the connection."""
        self.connection.fail(reason, self.now)

    @rule(seconds=pauses)
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule(in_flight=st.booleans())
    def expire(self, in_flight: bool) -> None:
        """Act on the deadline, passed or not; none is in the past afterwards."""
        self.connection.expire(self.now, in_flight=in_flight)

        assert self.connection.deadline > self.now

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def output_is_a_prefix_of_input(self) -> None:
        """Hold that what comes back is what was sent, in order, and the rest is held unless the connection was cut."""
        connection = self.connection
        cut = connection.state is State.CLOSED and connection.wants_reset

        assert self.given.startswith(self.returned)
        assert (len(self.given), len(self.returned)) == (connection.received, connection.echoed)
        assert cut or self.given == self.returned + bytes(connection.outgoing)

    @invariant()
    def memory_is_bounded(self) -> None:
        """Hold no more than `buffer` bytes ever, with room wherever input is wanted, and lingering ends."""
        connection = self.connection

        assert len(connection.outgoing) <= BUFFER
        assert BUFFER - len(connection.outgoing) == connection.room
        assert connection.room >= 1 or not connection.wants_read
        assert connection.discarded <= LINGER_BYTES + BUFFER

    @invariant()
    def nothing_borrowed_is_kept(self) -> None:
        """Keep bytes of its own between inputs, never a view of the shared buffer."""
        assert not isinstance(self.connection.outgoing, memoryview)

    @invariant()
    def the_living_want_something(self) -> None:
        """Wish for something until CLOSED, and then want nothing, not even time."""
        connection = self.connection
        wishes = [connection.wants_read, connection.wants_write, connection.wants_fin]

        assert any(wishes) is (connection.state is not State.CLOSED)
        assert connection.state is not State.CLOSED or (connection.outgoing, connection.deadline) == (b"", inf)

    @invariant()
    def fin_is_the_last_wish(self) -> None:
        """Want FIN only after everything is sent and nothing more is read."""
        connection = self.connection

        assert not (connection.wants_fin and (connection.wants_write or connection.wants_read))

    @invariant()
    def rest_means_reading(self) -> None:
        """Hold that a connection at rest wants to read and nothing else."""
        connection = self.connection

        assert not connection.at_rest or (True, False, False) == (
            connection.wants_read,
            connection.wants_write,
            connection.wants_fin,
        )

    @invariant()
    def deadlines_count_from_the_last_byte(self) -> None:
        """Give what comes before the payload its timeout, and an open connection that of idleness, on either way."""
        connection = self.connection

        if connection.state is State.ESTABLISHING:
            assert connection.deadline == self.handshake_deadline
        if connection.state is State.OPEN and self.can_bypass:  # faults make deadlines of their own
            assert connection.deadline == min(self.moved + self.idle, self.end)

    @invariant()
    def bypass_means_rest(self) -> None:
        """Allow the short way exactly while reading is the only wish and the whole buffer is free."""
        connection = self.connection

        assert connection.passing is (connection.at_rest and self.can_bypass)
        assert not connection.passing or connection.room == BUFFER

    @invariant()
    def the_reason_is_set_once(self) -> None:
        """Hold that a reason stands from the moment the end is decided, and never changes."""
        reason = self.connection.reason

        assert (reason is None) is (self.connection.state in UNDECIDED)
        assert self.reason is None or self.reason is reason

        self.reason = reason

    @invariant()
    def life_goes_one_way(self) -> None:
        """Enter no state twice: the table has no way back."""
        now = rank(self.connection.state)

        assert self.rank <= now

        self.rank = now

    @invariant()
    def only_a_cut_resets(self) -> None:
        """Hold that a connection which ended without a reset has given back everything."""
        connection = self.connection

        assert connection.state is not State.CLOSED or connection.wants_reset or self.given == self.returned

    def teardown(self) -> None:
        """Bring the connection to its end from wherever the machine has left it."""
        if hasattr(self, "connection"):  # not when hypothesis gave up before the start
            bring_to_an_end(self.connection, self.now)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)


def bring_to_an_end(connection: Connection, now: float) -> None:
    """Obey every wish, let time pass where there is none, and hold that CLOSED is reached in a few steps."""
    for _ in range(8):
        if connection.state is State.CLOSED:
            break
        if connection.wants_write:
            connection.sent(len(connection.outgoing), now)
        elif connection.wants_fin:
            connection.fin_sent(now)
        elif connection.deadline < inf:
            now = max(now, connection.deadline)
            connection.expire(now)
        else:
            connection.finish(CloseReason.STOPPED, now)

    assert State.CLOSED is connection.state


def receive(count: int, taken: int) -> Callable[[Connection, float], None]:
    """Make an input: `count` bytes arrive as far as there is room, and the kernel takes `taken` of what is held."""

    def step(connection: Connection, now: float) -> None:
        if connection.wants_read:
            connection.receive(memoryview(bytes(min(count, connection.room))), now)
            connection.sent(min(taken, len(connection.outgoing)), now)

    return step


def eof(connection: Connection, now: float) -> None:
    """Read the end of input, if anything is read."""
    if connection.wants_read:
        connection.receive_eof(now)


def send(connection: Connection, now: float) -> None:
    """Send all that is held, or FIN if that is wanted."""
    if connection.wants_fin:
        connection.fin_sent(now)
    else:
        connection.sent(len(connection.outgoing), now)


INPUTS: list[Callable[[Connection, float], None]] = [
    receive(3, 0),
    receive(BUFFER, 5),
    eof,
    send,
    Connection.drain,
    lambda connection, now: connection.finish(CloseReason.STOPPED, now),
    Connection.expire,
]


def reachable(*, idle: float, half_close: float) -> list[tuple[Connection, float]]:
    """Return what every sequence of three inputs leaves behind, with the time at which it does."""
    limits = Limits.model_construct(buffer=BUFFER, idle_timeout=idle, half_close_timeout=half_close, max_lifetime=0.0)
    found = []
    for sequence, establish in product(product(INPUTS, repeat=3), (0.0, 5.0)):
        connection = Connection(limits, 0.0, establish)
        now = 0.0
        for step in sequence:
            now = connection.deadline if step is Connection.expire and connection.deadline < inf else now + 0.01
            step(connection, now)
        found.append((connection, now))
    return found


@pytest.mark.parametrize(("idle", "half_close"), [(0.0, 0.0), (10.0, 0.0), (0.0, 4.0), (10.0, 4.0)])
def test_some_input_always_leads_to_closed(idle: float, half_close: float) -> None:
    """From every state that three inputs can reach, a few more lead to CLOSED, whichever limits are switched off."""
    found = reachable(idle=idle, half_close=half_close)

    assert set(State) == {connection.state for connection, _ in found}

    for connection, now in found:
        bring_to_an_end(connection, now)


def test_time_alone_leads_to_closed() -> None:
    """With a peer that does nothing at all, deadlines end every connection that is not draining, in two steps."""
    for connection, before in reachable(idle=10.0, half_close=4.0):
        now = before
        if connection.state is State.DRAINING and connection.outgoing:
            connection.fail(CloseReason.DRAIN_TIMEOUT, now)  # the daemon's own deadline is what ends these
        for _ in range(2):
            now = max(now, min(connection.deadline, 1e6))
            connection.expire(now)
            if connection.wants_fin:
                connection.fin_sent(now)
                now = connection.deadline
                connection.expire(now)

        assert State.CLOSED is connection.state
