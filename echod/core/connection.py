"""One peer's whole life: what it has sent, what it is still owed, and how this ends.

Rules
    The states and what leads from one to the next are a table, in `lifecycle`; `_move` is the one place that assigns.
    The first reason to leave ESTABLISHING, OPEN, DRAINING or HALF_CLOSED for good is the reason that is reported.
    What was received comes back, in order, or the connection ends by a reset: a peer that sees FIN has got it all.
    Nothing more than `buffer` bytes are ever held, whatever the peer does.

Theory of operation
    The owner of the socket calls an input (`receive`, `receive_eof`, `sent`, `fin_sent`, `drain`, `finish`, `fail`,
    `expire`), each with `now`, a monotonic clock in seconds, and then reads the wishes: `outgoing`, `wants_read`,
    `wants_write`, `wants_fin`, `wants_reset`, `room`, `deadline`, `state`.

    End of input is not a close: RFC 862 says "any data received is sent back", so a half-closed peer still gets
    everything that is held before it gets FIN. When echod itself decides to end, it sends FIN first and reads on for
    a while, since closing a socket with unread input makes the kernel send RST, and a reset destroys echoed bytes
    that the peer has not read yet.

    Idle and half-close deadlines count from the last byte that moved either way; `max_lifetime` ends a connection that
    still echoes, and from then on the half-close deadline holds, as for every connection that has only to send.

    Bytes that the kernel takes at once are never copied: `receive` keeps a view of the caller's buffer as `outgoing`,
    and `sent` copies only what was left over. Nearly all messages pass like that on a connection with nothing else to
    do: as long as it is `passing`, its owner may receive up to `buffer` bytes and send them at once, without a call of
    any input, if it adds their number to `passed` and notes the time in `moved`.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from echod.core.lifecycle import (
    CLOSED,
    DRAIN,
    DRAINING,
    ECHOING,
    EOF,
    ESTABLISHED,
    ESTABLISHING,
    FAIL,
    FIN_SENT,
    FINISH,
    FLUSHED,
    FLUSHING,
    HALF_CLOSED,
    LINGERING,
    OPEN,
    TRANSITIONS,
)
from echod.events import CloseReason

if TYPE_CHECKING:
    from echod.config.models import Limits
    from echod.core.lifecycle import Cue, State

RECEIVE = 256 * 1024
"""Bytes that are received at once, at most: what a connection holds for a slow peer by default."""

QUIET = 0.25
"""Seconds without a byte after which a draining connection counts as idle."""

LINGER = 2.0
"""Seconds that a lingering close reads on; nginx's lingering_timeout is 5, Apache's MAX_SECS_TO_LINGER 30."""

LINGER_DRAINING = 0.5
"""The same while the daemon stops, where only quiet connections are closed and every second counts."""

LINGER_BYTES = 1024 * 1024
"""Bytes that a lingering close discards before it gives up on the peer."""


_UNDECIDED = (ESTABLISHING, OPEN, DRAINING, HALF_CLOSED)
_ENDING = (HALF_CLOSED, FLUSHING)
_LISTENING = (ESTABLISHING, LINGERING)
_NOTHING = b""


class Connection:
    """What one peer has sent, what it is still owed, and how this ends."""

    __slots__ = (
        "_buffer",
        "_echoed",
        "_end",
        "_entered",
        "_establish_timeout",
        "_half_close_timeout",
        "_idle_timeout",
        "_linger",
        "_paused",
        "_received",
        "discarded",
        "moved",
        "opened",
        "outgoing",
        "passed",
        "passing",
        "reason",
        "state",
        "wants_reset",
    )

    def __init__(self, limits: Limits, now: float, establish_timeout: float = 0.0) -> None:
        """Begin OPEN, or with `establish_timeout` ESTABLISHING until `established` is called."""
        self.state: State = ESTABLISHING if establish_timeout else OPEN
        self.reason: CloseReason | None = None
        self.outgoing: bytes | bytearray | memoryview = _NOTHING
        self.opened = now
        self.passed = 0
        self.discarded = 0
        self.wants_reset = False
        self._buffer = limits.buffer
        self._idle_timeout = limits.idle_timeout or inf
        self._half_close_timeout = limits.half_close_timeout or inf
        self._establish_timeout = establish_timeout
        self._end = now + (limits.max_lifetime or inf)
        self._linger = LINGER
        self._paused = False
        self._received = 0
        self._echoed = 0
        self.moved = now
        self._entered = now
        self.passing = False
        self._weigh()

    # -- inputs -------------------------------------------------------------------------------------------------------

    def established(self, now: float) -> None:
        """Note that payload follows."""
        self.moved = now
        self._move(ESTABLISHED, now)

    def prolong(self, timeout: float, now: float) -> None:
        """Note that one part of what comes before the payload is complete; the next has `timeout` seconds."""
        self._establish_timeout = timeout
        self._entered = now

    def receive(self, data: memoryview, now: float) -> None:
        """Take `data`, at least one byte and at most `room` of them.

        You must next offer `outgoing` to the kernel and call `sent`, with 0 if it took none, before the memory behind
        `data` is used again.
        """
        if self.state not in ECHOING:
            self._discard(len(data), now)
            return
        self._received += len(data)
        self.moved = now
        held = self.outgoing
        if isinstance(held, bytearray):
            held += data
        else:
            self.outgoing = data
        self._paused = len(self.outgoing) >= self._buffer
        self.passing = False

    def receive_eof(self, now: float) -> None:
        """Note that the peer has shut down its side."""
        self._move(EOF, now)
        self._flushed(now)

    def sent(self, count: int, now: float) -> None:
        """Note that the kernel has taken the first `count` bytes of `outgoing`."""
        self._echoed += count
        if count:
            self.moved = now
        if count == len(self.outgoing):
            self.outgoing = _NOTHING
            self._paused = False
            self._flushed(now)
            self._weigh()
        else:
            self._hold(count)

    def fin_sent(self, now: float) -> None:
        """Note that `wants_fin` was obeyed: echod's side is shut down."""
        self._move(FIN_SENT, now)

    def drain(self, now: float) -> None:
        """Close as soon as the peer falls quiet, since the daemon stops."""
        self._linger = LINGER_DRAINING
        self._move(DRAIN, now, CloseReason.DRAINED)

    def finish(self, reason: CloseReason, now: float) -> None:
        """End in good order: read no more, send what is held, then FIN."""
        self._move(FINISH, now, reason)

    def fail(self, reason: CloseReason, now: float) -> None:
        """End at once: the connection is lost, or echod cuts it."""
        # Who lingers has been sent everything: a plain close loses nothing.
        self.wants_reset |= self.state not in (LINGERING, CLOSED)
        self._move(FAIL, now, reason)

    def expire(self, now: float, *, in_flight: bool = False) -> None:
        """Act on `deadline` if it has passed; call it freely, an early call does nothing.

        `in_flight` says that the kernel holds bytes of this connection, in or out, which keeps a draining one alive.
        """
        if now < self.deadline:
            return
        if self.state is LINGERING:
            self._move(FAIL, now)
        elif self.state is ESTABLISHING:
            self.fail(CloseReason.HANDSHAKE_TIMEOUT, now)
        elif self.state not in ECHOING:
            self.fail(CloseReason.HALF_CLOSE_TIMEOUT, now)
        elif now >= self._end:
            self.finish(CloseReason.MAX_LIFETIME, now)
        elif self.state is OPEN:
            self.finish(CloseReason.IDLE_TIMEOUT, now)
        elif in_flight or self.outgoing:
            self.moved = now
        else:
            self.finish(CloseReason.DRAINED, now)

    # -- wishes -------------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many bytes may be read next; at least one wherever reading is wanted."""
        return self._buffer - len(self.outgoing)

    @property
    def wants_read(self) -> bool:
        """Whether input should be read: not while too much is held, nor when the end is only a matter of sending."""
        if self.state in ECHOING:
            return not self._paused
        return self.state in _LISTENING

    @property
    def wants_write(self) -> bool:
        """Whether bytes are waiting for the kernel to take them."""
        return bool(self.outgoing) and self.state is not CLOSED

    @property
    def wants_fin(self) -> bool:
        """Whether echod's side should be shut down now; then call `fin_sent`."""
        return self.state is FLUSHING and not self.outgoing

    @property
    def sends_no_more(self) -> bool:
        """Whether nothing can come after what is outgoing now."""
        return self.state in _ENDING

    @property
    def at_rest(self) -> bool:
        """Whether reading is the only wish and the deadline can only move away: nothing to decide."""
        return not self.outgoing and self.state in ECHOING

    @property
    def deadline(self) -> float:
        """When `expire` wants to be called, in the clock of `now`; infinity for never."""
        state = self.state
        if state is OPEN:
            return min(self.moved + self._idle_timeout, self._end)
        if state is ESTABLISHING:
            return self._entered + self._establish_timeout
        if state is DRAINING:
            return min(self.moved + QUIET, self._end)
        if state in _ENDING:
            return max(self.moved, self._entered) + self._half_close_timeout
        if state is LINGERING:
            return self._entered + self._linger
        assert state is CLOSED, state  # noqa: S101  # a new state must say when it ends
        return inf

    @property
    def received(self) -> int:
        """Bytes that the peer has sent, but for those that were discarded."""
        return self._received + self.passed

    @property
    def echoed(self) -> int:
        """Bytes that the kernel has taken back."""
        return self._echoed + self.passed

    @property
    def lifetime(self) -> float:
        """Seconds from the start to the last change of state: once CLOSED, how long the connection lived."""
        return self._entered - self.opened

    # -- within -------------------------------------------------------------------------------------------------------

    def _move(self, cue: Cue, now: float, reason: CloseReason | None = None) -> None:
        state = TRANSITIONS[self.state, cue]  # an input that the state does not allow raises, and changes nothing
        if state is self.state:
            return
        if self.state in _UNDECIDED and state not in _UNDECIDED:
            self.reason = reason
        self.state = state
        self._entered = now
        if state is CLOSED:
            self.outgoing = _NOTHING
        self._weigh()

    def _weigh(self) -> None:
        """Set `passing`; a connection that looks at bytes leaves it False."""
        self.passing = self.at_rest

    def _flushed(self, now: float) -> None:
        if self.state is HALF_CLOSED and not self.outgoing:
            self._move(FLUSHED, now, CloseReason.PEER_CLOSED)

    def _hold(self, count: int) -> None:
        held = self.outgoing
        if isinstance(held, bytearray):
            del held[:count]
        else:
            self.outgoing = bytearray(held[count:])
        if self._paused:
            self._paused = len(self.outgoing) > self._buffer // 2

    def _discard(self, count: int, now: float) -> None:
        self.discarded += count
        if self.discarded > LINGER_BYTES:
            self._move(FAIL, now)
