"""One worker as its supervisor sees it: what it says is noted, and who cannot be told is killed."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from echod.observe.scoreboard import Scoreboard
from echod.process import channel
from echod.process.hand import Hand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from echod.process.channel import Channel


@pytest.fixture
def ends() -> Iterator[tuple[Hand, Channel]]:
    """Give a hand whose process sleeps, and the worker's end of its channel."""
    ours, theirs = channel.pair()
    board = Scoreboard()
    pid = os.fork()
    if not pid:
        theirs.close()  # a second holder would keep the other end from ever seeing its end
        signal.alarm(60)
        signal.pause()
        os._exit(0)
    hand = Hand(ours, board.row(1), pid, now=1.0)
    yield hand, theirs
    with suppress(ProcessLookupError):
        hand.kill()
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    hand.close()
    theirs.close()
    os.close(board.lock)


def test_what_a_worker_says_is_noted(ends: tuple[Hand, Channel]) -> None:
    """Every message is a sign of life; an answer tells the generation, a release that the sockets are free."""
    hand, worker = ends
    worker.send(channel.Pong())
    hand.on_readable(2.0)
    assert (2.0, 0, False) == (hand.heard, hand.generation, hand.released)
    worker.send(channel.Answer(7))
    worker.send(channel.Released())
    hand.on_exceptional(3.0)

    assert (3.0, 7, True) == (hand.heard, hand.generation, hand.released)


def test_the_end_of_the_channel_is_no_spin(ends: tuple[Hand, Channel]) -> None:
    """A worker that has hung up is not listened to any more; its end is noted when it is reaped."""
    hand, worker = ends
    worker.close()
    hand.on_readable(2.0)

    assert (0, 1.0) == (hand.interest, hand.heard)


def test_who_cannot_be_told_is_killed(ends: tuple[Hand, Channel]) -> None:
    """A full channel, or one without another end, is the end of the worker."""
    hand, _ = ends
    with suppress(BlockingIOError):
        while True:
            hand.channel.send(channel.Ping())
    hand.tell(channel.Stop())
    _, status = os.waitpid(hand.pid, 0)

    assert -signal.SIGKILL == os.waitstatus_to_exitcode(status)
