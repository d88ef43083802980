"""An event by itself; `test_catalogue` holds all of them against the rules that they share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from echod import events

ROOT = Path(__file__).parents[1]


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


def test_event_refuses_an_unknown_field() -> None:
    """A misspelt field raises where the event is made, with the names of both; without this its line is dropped."""
    with pytest.raises(TypeError, match=r"^ConnectionRefused has no field raeson, where$"):
        events.ConnectionRefused(id=7, raeson="denied", where="here")  # type: ignore[call-arg]


def test_event_of_a_dictionary_refuses_an_unknown_field_where_all_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does a dictionary under `-X dev`; without it the record of a connection costs no more than before."""
    monkeypatch.setattr(events, "CHECK_ALL", True)

    with pytest.raises(TypeError, match=r"^ConnectionClosed has no field raeson$"):
        events.ConnectionClosed.of({"id": 7, "raeson": "peer_closed"})


def test_development_mode_checks_all_events_and_explains_drops() -> None:
    """The harness starts the daemon with -X dev, so that system tests see every unknown field and every lost record."""
    code = "from echod import events; from echod.observe import log; print(events.CHECK_ALL, log.EXPLAIN_DROPS)"

    def flags(*options: str) -> str:
        command = [sys.executable, *options, "-c", code]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert flags("-X", "dev") == "True True\n"
    assert flags() == "False False\n"
