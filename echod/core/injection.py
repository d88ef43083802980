"""Faults on purpose: a connection that holds back, slows down or breaks off what it owes.

Rules
    Pure, as `connection` is. To the owner of the socket a faulty connection is one like any other, so that it goes with
    every kind of stream: behind a proxy, on a path, under TLS.
    Faults move bytes in time and end connections early. They never change a byte, nor the order; no more than `buffer`
    bytes are held; every timeout, limit and drain holds as without them.
    What a fault keeps from the peer for ever is never followed by FIN, but for `close_after`, whose purpose that is.
    Chance comes from the seed and the number of the connection: the same arrivals meet the same fate again.

Theory of operation
    What was received goes on a line, and from there to `outgoing` when its time has come. A byte that is under way
    counts as one that moves: no idle or half-close timeout ends a connection for a delay that it was asked to have.

Known limits
    A reset may overtake bytes that the peer has not acknowledged; between two machines the last ones can be lost.
    A rate costs fifty turns of the loop a second for each connection that it slows; some thousand are no trouble.
    Chance is drawn for each arrival, so that a network that cuts a stream differently leads to another run.
"""

from __future__ import annotations

import random
from collections import deque
from math import ceil, inf
from typing import TYPE_CHECKING

from echod.core.connection import Connection
from echod.core.lifecycle import ECHOING, Cue, State
from echod.events import CloseReason

if TYPE_CHECKING:
    from echod.config.injection import Faults
    from echod.config.models import Limits

SLICE = 0.02
"""Seconds of a rate that leave at once: fifty times a second is smooth, and costs little."""

GRAIN = 0.001
"""Seconds between two times of leaving, at least; and by so much of its delay a byte may be late."""

_OVER = (State.LINGERING, State.CLOSED)


def dice(faults: Faults, number: int) -> random.Random:
    """Return the chance of one connection or socket."""
    return random.Random(f"{faults.seed}/{number}")  # noqa: S311  # it must be possible to have it again


def copies(faults: Faults, chance: random.Random) -> int:
    """Tell how often a datagram is answered."""
    if chance.random() < faults.drop:
        return 0
    return 2 if chance.random() < faults.duplicate else 1


class Line:
    """Bytes on their way: each leaves when its delay is over, in order, and not faster than the rate."""

    __slots__ = ("_bytes", "_chance", "_faults", "_free", "_grain", "_marks", "_ripe")

    def __init__(self, faults: Faults, chance: random.Random) -> None:
        self._faults = faults
        self._chance = chance
        self._grain = max(GRAIN, GRAIN * (faults.delay + faults.jitter))  # some thousand marks, not one for each byte
        self._bytes = bytearray()
        self._marks: deque[tuple[float, int]] = deque()
        self._ripe = 0
        self._free = 0.0

    def __len__(self) -> int:
        """Count the bytes that are under way."""
        return len(self._bytes)

    @property
    def due(self) -> float:
        """When the next byte may leave; infinity when there is none."""
        if self._ripe:
            return self._free
        return max(self._marks[0][0], self._free) if self._marks else inf

    def put(self, data: memoryview, now: float) -> None:
        """Send `data` on its way."""
        self._bytes += data
        due = self._due(now) if self._faults.delay else now
        if self._marks and self._marks[-1][0] >= due:
            due, before = self._marks.pop()
            self._marks.append((due, before + len(data)))
        else:
            self._marks.append((due, len(data)))

    def take(self, now: float, most: float) -> bytearray:
        """Return what leaves now, at most so much."""
        self._ripen(now)
        count = min(self._ripe, most) if not self._faults.rate else self._paced(now, min(self._ripe, most))
        taken = self._bytes[: int(count)]
        del self._bytes[: int(count)]
        self._ripe -= len(taken)
        return taken

    def clear(self) -> None:
        """Forget all."""
        self._bytes.clear()
        self._marks.clear()
        self._ripe = 0

    def _due(self, now: float) -> float:
        jitter = self._faults.jitter
        due = now + self._faults.delay + self._chance.uniform(-jitter, jitter)
        return ceil(due / self._grain) * self._grain

    def _ripen(self, now: float) -> None:
        while self._marks and self._marks[0][0] <= now:
            due, count = self._marks.popleft()
            if not self._ripe:
                self._free = max(self._free, due)
            self._ripe += count

    def _paced(self, now: float, most: float) -> float:
        rate, count = self._faults.rate, 0.0
        share = max(1, int(rate * SLICE))
        while count < most and self._free <= now:
            step = min(share, most - count)
            self._free = max(self._free, now - SLICE) + step / rate
            count += step
        return count


class FaultyConnection(Connection):
    """A connection to which faults happen on purpose."""

    __slots__ = ("_faults", "_left", "_line", "_over")

    def __init__(
        self, limits: Limits, now: float, establish_timeout: float, faults: Faults, chance: random.Random
    ) -> None:
        super().__init__(limits, now, establish_timeout)
        self._faults = faults
        self._line = Line(faults, chance)
        self._left: float = faults.close_after or faults.reset_after or faults.stall_after or inf
        self._over = False

    def receive(self, data: memoryview, now: float) -> None:
        """Send `data` on its way, and let out what may leave at once."""
        if self.state not in ECHOING:
            super().receive(data, now)
            return
        self._received += len(data)
        self.moved = now
        self._line.put(data, now)
        self._release(now)

    def sent(self, count: int, now: float) -> None:
        """Note what the kernel has taken, and whether that was all it gets."""
        super().sent(count, now)
        if self._left or self.outgoing or self.state in _OVER:
            return
        # Acted on at the next deadline: what stands between this and the socket may have something to send yet.
        if self._faults.reset_after or (self._faults.close_after and self.state in ECHOING):
            self._over = True

    def drain(self, now: float) -> None:
        """Close as soon as the peer falls quiet; at once if it can never be sent what it is owed."""
        super().drain(now)
        if self._stuck:
            self.fail(CloseReason.DRAINED, now)

    def finish(self, reason: CloseReason, now: float) -> None:
        """End in good order where that is possible."""
        if self._stuck:
            self.fail(reason, now)
        else:
            super().finish(reason, now)

    def expire(self, now: float, *, in_flight: bool = False) -> None:
        """Let out what may leave; act on a deadline that has passed."""
        if self._over:
            self._break_off(now)
        self._release(now)
        if not self._under_way:
            super().expire(now, in_flight=in_flight and not self._stuck)
        elif self.state in ECHOING and now >= self._end:
            self.finish(CloseReason.MAX_LIFETIME, now)

    @property
    def room(self) -> int:
        """How many bytes may be read next; at least one wherever reading is wanted."""
        return super().room - len(self._line)

    @property
    def wants_read(self) -> bool:
        """Whether input should be read."""
        return super().wants_read and self.room > 0 and not self._over

    @property
    def wants_fin(self) -> bool:
        """Whether echod's side should be shut down now."""
        return super().wants_fin and not self._line and not self._about_to_reset

    @property
    def sends_no_more(self) -> bool:
        """Whether nothing can come after what is outgoing now."""
        return super().sends_no_more and not self._line and not self._about_to_reset

    @property
    def at_rest(self) -> bool:
        """Whether reading is the only wish and the deadline can only move away."""
        return super().at_rest and not self._line and not self._over

    @property
    def deadline(self) -> float:
        """When `expire` wants to be called."""
        if self._over and self.state is not State.CLOSED:
            return self.moved
        if self._under_way:
            return min(self._line.due, self._end) if self.state in ECHOING else self._line.due
        return super().deadline

    @property
    def _about_to_reset(self) -> bool:
        """Whether what comes next is a reset."""
        return self._over and bool(self._faults.reset_after)

    @property
    def _under_way(self) -> bool:
        """Whether bytes wait for their time."""
        return bool(self._line) and self._left > 0

    @property
    def _stuck(self) -> bool:
        """Whether bytes wait that will never leave."""
        return bool(self._line) and not self._left

    def _break_off(self, now: float) -> None:
        self._over = False
        if self._faults.reset_after:
            self.fail(CloseReason.FAULT_RESET, now)
        else:
            self.finish(CloseReason.FAULT_CLOSE, now)
            self._flushed(now)

    def _release(self, now: float) -> None:
        data = self._line.take(now, self._left)
        self._left -= len(data)
        if not self._left and self._faults.close_after:
            self._line.clear()  # what is outgoing now is the end
        if not data:
            return
        self.moved = now
        if isinstance(self.outgoing, bytearray):
            self.outgoing += data
        else:
            self.outgoing = data

    def _weigh(self) -> None:
        """Let nothing pass by the line."""

    def _move(self, cue: Cue, now: float, reason: CloseReason | None = None) -> None:
        super()._move(cue, now, reason)
        if self.state in _OVER:
            self._line.clear()

    def _flushed(self, now: float) -> None:
        if self._line or self._over or (self._faults.reset_after and not self._left):
            return
        if self.state is State.HALF_CLOSED and not self.outgoing and self.received > self.echoed:
            self._move(Cue.FLUSHED, now, CloseReason.FAULT_CLOSE)
        super()._flushed(now)
