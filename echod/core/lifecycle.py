"""The life of a connection, as a table of transitions.

    ESTABLISHING               a proxy says first whose connection this is
     │
     ▼
    OPEN ──► DRAINING          the daemon stops: echo on until the peer falls quiet
     │  └────────┬───┐
     │ peer EOF  │   │ timeout, quiet, supervisor lost
     ▼           │   ▼
    HALF_CLOSED ◄┘  FLUSHING   send what is held, read no more
     │               │ FIN sent
     │ all sent      ▼
     │              LINGERING  read and discard until the peer ends too
     ▼               │
    CLOSED ◄─────────┘         also from anywhere, when the connection is lost or cut

Rule: everything that changes a connection's state is a line of TRANSITIONS. What is not there is a defect, and raises.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """Where a connection is in its life."""

    __hash__ = object.__hash__  # that of Enum is a call for each look into TRANSITIONS

    ESTABLISHING = auto()
    OPEN = auto()
    DRAINING = auto()
    HALF_CLOSED = auto()
    FLUSHING = auto()
    LINGERING = auto()
    CLOSED = auto()


class Cue(Enum):
    """What can move a connection from one state to another."""

    __hash__ = object.__hash__

    ESTABLISHED = auto()  # what came before the payload is complete
    EOF = auto()  # the peer has sent its last byte
    DRAIN = auto()  # the daemon stops
    FINISH = auto()  # echod ends this connection in good order
    FLUSHED = auto()  # a half-closed peer has been sent everything
    FIN_SENT = auto()  # echod has shut down its side
    FAIL = auto()  # the connection is lost, or is cut


ESTABLISHING, OPEN, DRAINING, HALF_CLOSED, FLUSHING, LINGERING, CLOSED = State
ESTABLISHED, EOF, DRAIN, FINISH, FLUSHED, FIN_SENT, FAIL = Cue
"""By themselves for what every connection asks: before Python 3.12 a member of an enumeration costs a call."""

ECHOING = (State.OPEN, State.DRAINING)
"""Where what comes in is sent back."""

TRANSITIONS: dict[tuple[State, Cue], State] = {
    (State.ESTABLISHING, Cue.ESTABLISHED): State.OPEN,
    (State.ESTABLISHING, Cue.EOF): State.HALF_CLOSED,
    (State.ESTABLISHING, Cue.DRAIN): State.FLUSHING,
    (State.ESTABLISHING, Cue.FINISH): State.FLUSHING,
    (State.ESTABLISHING, Cue.FAIL): State.CLOSED,
    (State.OPEN, Cue.EOF): State.HALF_CLOSED,
    (State.OPEN, Cue.DRAIN): State.DRAINING,
    (State.OPEN, Cue.FINISH): State.FLUSHING,
    (State.OPEN, Cue.FAIL): State.CLOSED,
    (State.DRAINING, Cue.EOF): State.HALF_CLOSED,
    (State.DRAINING, Cue.DRAIN): State.DRAINING,
    (State.DRAINING, Cue.FINISH): State.FLUSHING,
    (State.DRAINING, Cue.FAIL): State.CLOSED,
    (State.HALF_CLOSED, Cue.FLUSHED): State.CLOSED,
    (State.HALF_CLOSED, Cue.DRAIN): State.HALF_CLOSED,
    (State.HALF_CLOSED, Cue.FINISH): State.HALF_CLOSED,
    (State.HALF_CLOSED, Cue.FAIL): State.CLOSED,
    (State.FLUSHING, Cue.FIN_SENT): State.LINGERING,
    (State.FLUSHING, Cue.DRAIN): State.FLUSHING,
    (State.FLUSHING, Cue.FINISH): State.FLUSHING,
    (State.FLUSHING, Cue.FAIL): State.CLOSED,
    (State.LINGERING, Cue.EOF): State.CLOSED,
    (State.LINGERING, Cue.DRAIN): State.LINGERING,
    (State.LINGERING, Cue.FINISH): State.LINGERING,
    (State.LINGERING, Cue.FAIL): State.CLOSED,
    (State.CLOSED, Cue.DRAIN): State.CLOSED,
    (State.CLOSED, Cue.FINISH): State.CLOSED,
    (State.CLOSED, Cue.FAIL): State.CLOSED,
}
