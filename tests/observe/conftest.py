"""What the tests of shared memory have in common: a scoreboard, and a stack of what is to be cleared away."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from echod.observe.scoreboard import Scoreboard

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what is entered when the test is over."""
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def board(stack: ExitStack) -> Scoreboard:
    """Make a scoreboard."""
    made = Scoreboard()
    stack.callback(made.close)
    return made
