"""What `[admin]` answers, by path and Accept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.observe.pages import Pages
from echod.observe.scoreboard import Column, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def board() -> Iterator[Scoreboard]:
    """Make a scoreboard."""
    made = Scoreboard()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("accept", "media_type", "end"),
    [
        ("", "text/plain; version=0.0.4", b"\n"),
        ("*/*", "text/plain; version=0.0.4", b"\n"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text", b"# EOF\n"),
    ],
)
def test_metrics(board: Scoreboard, accept: str, media_type: str, end: bytes) -> None:
    """The format is the one that is asked for, and Prometheus' text where none is."""
    page = Pages(board)("/metrics", accept)

    assert page.status == 200
    assert page.media_type.startswith(media_type)
    assert b"echod_connections_active 0.0\n" in page.body
    assert page.body.endswith(end)


def test_health(board: Scoreboard) -> None:
    """Who answers lives; ready is what the supervisor says."""
    pages, row = Pages(board), board.row(0)
    before = pages("/readyz", "").status
    row[Column.READY] = 1
    within = pages("/readyz", "").status
    row[Column.READY] = 0

    assert (503, 200, 503) == (before, within, pages("/readyz", "").status)
    assert 200 == pages("/livez", "").status


@pytest.mark.parametrize("path", ["", "/", "/metrics/", "/../metrics", "metrics", "*"])
def test_other_paths(board: Scoreboard, path: str) -> None:
    """There is nothing else, and a path is what it is."""
    assert 404 == Pages(board)(path, "").status


@given(st.text() | st.from_regex(r"(application/openmetrics-text|text/plain)(;(version|escaping|q)=?[^,]{0,9}){0,3}"))
def test_whatever_accept_says(accept: str) -> None:
    """No value of the header makes anything but a page."""
    board = Scoreboard()
    try:
        assert 200 == Pages(board)("/metrics", accept).status
    finally:
        board.close()
