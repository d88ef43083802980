"""An event by itself; `test_catalogue` holds all of them against the rules that they share."""

from __future__ import annotations

import pytest

from echod import events


def test_what_is_not_given_is_none() -> None:
    """A fact is built from what is known; the rest can be asked for all the same, and nothing changes it later."""
    refused = events.ConnectionRefused(id=7)

    assert (7, None) == (refused.id, refused.client_address)
    assert events.ConnectionRefused(id=7) == refused
    assert events.ConnectionRefused(id=8) != refused
    assert events.ConnectionRefused(id=7) != events.ConnectionOpened(id=7)
    assert repr(refused) == "ConnectionRefused(id=7)"
    with pytest.raises(AttributeError, match="ConnectionRefused"):
        refused.id = 8  # type: ignore[misc]
    with pytest.raises(AttributeError, match="ConnectionRefused"):
        del refused.id


def test_both_ways_to_make_one_are_the_same() -> None:
    """What is made of a dictionary is equal to what is made of keywords."""
    facts = {"id": 7, "reason": events.RefuseReason.OVER_LIMIT}

    assert events.ConnectionRefused(id=7, reason=events.RefuseReason.OVER_LIMIT) == events.ConnectionRefused.of(facts)
