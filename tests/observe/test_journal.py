"""Whether a descriptor leads to systemd's journal."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from echod.events import Level
from echod.observe import journal

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def stream() -> Iterator[int]:
    """Give a stream that could be the journal's."""
    here, there = socket.socketpair()
    with here, there:
        yield here.fileno()


def test_the_journal_is_the_stream_that_is_named(stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Device and inode of the descriptor are those of the variable; so are those of a copy."""
    found = os.fstat(stream)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    copy = os.dup(stream)

    assert (True, True) == (journal.receives(stream), journal.receives(copy))
    os.close(copy)


@pytest.mark.parametrize("named", [None, "", "0:0", "8:12345", "rubbish", ":"])
def test_anything_else_is_not(named: str | None, stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable alone is no proof: a program started by a service inherits it and may write elsewhere."""
    if named is None:
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    else:
        monkeypatch.setenv("JOURNAL_STREAM", named)

    assert not journal.receives(stream)


def test_a_closed_descriptor_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell where it leads."""
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")

    assert not journal.receives(1_000_000)


def test_each_level_has_its_priority() -> None:
    """The priorities are those of syslog(3)."""
    assert {"debug": b"<7>", "info": b"<6>", "warning": b"<4>", "error": b"<3>"} == {
        str(level): journal.PREFIXES[level] for level in Level
    }
