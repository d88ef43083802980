"""The table of a connection's life: it is whole, and the diagram shows it."""

from __future__ import annotations

import re

from echod.core import lifecycle as subject
from echod.core.lifecycle import TRANSITIONS, State


def test_the_diagram_names_the_states() -> None:
    """The diagram at the head of the module shows exactly the states of the enum."""
    diagram, _, _ = (subject.__doc__ or "").partition("\nRule:")

    assert {state.name for state in State} == set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", diagram))


def test_every_state_can_be_left_but_the_last() -> None:
    """Each state but CLOSED has a line that leads elsewhere; no line leads out of CLOSED."""
    leavable = {state for (state, _), target in TRANSITIONS.items() if target is not state}

    assert set(State) - {State.CLOSED} == leavable
