"""What holds for a connection also when faults happen to it, in any order of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from echod.config.injection import Faults
from echod.config.models import Limits
from echod.core.injection import FaultyConnection, dice
from echod.core.lifecycle import State
from echod.events import CloseReason
from tests.core.test_connection_rules import BUFFER, Life, bring_to_an_end, handshakes, timeouts

if TYPE_CHECKING:
    from echod.core.connection import Connection

others = st.sampled_from(sorted(set(CloseReason) - {CloseReason.FAULT_CLOSE, CloseReason.FAULT_RESET}))
faults = st.fixed_dictionaries(
    {
        "delay": st.sampled_from(["0s", "1ms", "300ms", "20s"]),
        "rate": st.sampled_from(["0B", "1B", "30B", "1GiB"]),
    }
)
ends = st.sampled_from(
    [{}, *({key: f"{size}B"} for key in ("close_after", "reset_after", "stall_after") for size in (1, 9))]
)


class FaultyLife(Life):
    """The same owner, kernel and peer; the connection holds back what it owes, or breaks it off."""

    connection: FaultyConnection
    can_bypass = False

    @initialize(idle=timeouts, half_close=timeouts, lifetime=timeouts, establish=handshakes, faults=faults, end=ends)
    def open(
        self,
        *,
        idle: float,
        half_close: float,
        lifetime: float,
        establish: float,
        faults: dict[str, object],
        end: dict[str, str],
    ) -> None:
        """Accept a connection under any limits and faults."""
        super().open(idle, half_close, lifetime, establish)
        limits = Limits.model_construct(
            buffer=BUFFER, idle_timeout=idle, half_close_timeout=half_close, max_lifetime=lifetime
        )
        self.faults = Faults.model_validate(faults | end)
        self.connection = FaultyConnection(limits, self.now, establish, self.faults, dice(self.faults, 1))

    @property
    def closes(self) -> bool:
        """Whether the fault has let out all that it lets, and the rest is dropped."""
        return bool(self.faults.close_after and not self.connection._left)

    @rule(reason=others)
    def finish(self, reason: CloseReason) -> None:
        """End in good order, for a reason that is no fault's."""
        super().finish(reason)

    @rule(reason=others)
    def fail(self, reason: CloseReason) -> None:
        """Lose or cut the connection, for a reason that is no fault's."""
        super().fail(reason)

    @precondition(lambda self: self.connection.wants_fin)
    @rule()
    def send_fin(self) -> None:
        """Shut down echod's side: the peer has been sent everything, but for a fault whose purpose that is."""
        assert self.given == self.returned or self.closes

        self.connection.fin_sent(self.now)

    @invariant()
    def output_is_a_prefix_of_input(self) -> None:
        """Hold that what comes back is what was sent, in order; the rest is held until the connection ends."""
        connection = self.connection
        held = bytes(connection.outgoing) + bytes(connection._line._bytes)
        broken_off = self.closes or connection.wants_reset

        assert self.given.startswith(self.returned + held)
        assert (len(self.given), len(self.returned)) == (connection.received, connection.echoed)
        assert self.given == self.returned + held or broken_off

    @invariant()
    def memory_is_bounded(self) -> None:
        """Hold no more than `buffer` bytes ever, under way or due, with room wherever input is wanted."""
        connection = self.connection
        held = len(connection.outgoing) + len(connection._line)

        assert held <= BUFFER
        assert BUFFER - held == connection.room
        assert connection.room >= 1 or not connection.wants_read

    @invariant()
    def never_more_than_the_fault_lets_out(self) -> None:
        """Send not one byte beyond where the connection is to end or to stall."""
        keys = self.faults
        most = keys.close_after or keys.reset_after or keys.stall_after or self.connection.echoed

        assert self.connection.echoed <= most
        assert self.connection.reason is not CloseReason.FAULT_RESET or self.connection.echoed == keys.reset_after

    @invariant()
    def the_living_want_something(self) -> None:
        """Wish for something, or for time, until CLOSED; only who is stalled without a timeout may wait for ever."""
        connection = self.connection
        wishes = [connection.wants_read, connection.wants_write, connection.wants_fin, connection.deadline < 1e9]

        assert any(wishes) or connection.state is State.CLOSED or connection._stuck
        assert connection.state is not State.CLOSED or wishes == [False] * 4

    @invariant()
    def only_a_cut_resets(self) -> None:
        """Hold that who has not been given everything is reset, unless the fault says close."""
        connection = self.connection
        whole = self.given == self.returned or self.closes

        assert connection.state is not State.CLOSED or connection.wants_reset or whole

    def teardown(self) -> None:
        """Bring the connection to its end from wherever the machine has left it."""
        if hasattr(self, "faults"):
            lead_to_the_end(self.connection, self.now)


TestFaultyLife = FaultyLife.TestCase
TestFaultyLife.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)


def lead_to_the_end(connection: FaultyConnection, now: float) -> None:
    """Wait for what is under way, each byte by itself at the lowest rate; the rest ends as any connection does."""
    for _ in range(2 * BUFFER):
        if connection._under_way:
            now = max(now, connection.deadline)
            connection.expire(now)
            connection.sent(len(connection.outgoing), now)
    if connection._stuck:
        connection.drain(now)
    plain: Connection = connection
    bring_to_an_end(plain, now)
