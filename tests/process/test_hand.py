"""One worker as its supervisor sees it: what it says is noted, and who cannot be told is killed."""

from __future__ import annotations

import errno
import os
import select
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
    worker.send(channel.Missed())
    hand.on_exceptional(3.0)

    assert (3.0, 7, True, True) == (hand.heard, hand.generation, hand.released, hand.behind)


def test_the_end_of_the_channel_is_no_spin(ends: tuple[Hand, Channel]) -> None:
    """A worker that has hung up is not listened to any more; its end is noted when it is reaped."""
    hand, worker = ends
    worker.close()
    select.select([hand.channel], [], [], 5)  # the process has closed what it was forked with
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


@pytest.mark.parametrize(
    "nonsense", [b"{", b"[]", b'["Pang", {}]', b'["Answer", {}]', b'["Answer", {"generation": "x"}]']
)
def test_who_says_nonsense_is_killed(ends: tuple[Hand, Channel], nonsense: bytes) -> None:
    """A worker speaks to the network: what it says must not end the supervisor, and it is not listened to any more."""
    hand, worker = ends
    worker._socket.send(nonsense)
    with pytest.raises(Exception) as crash:  # noqa: PT011  # whatever it is, the reactor hands it to the handler
        hand.on_readable(2.0)
    hand.on_crash(crash.value, 2.0)
    _, status = os.waitpid(hand.pid, 0)

    assert (-signal.SIGKILL, 0) == (os.waitstatus_to_exitcode(status), hand.interest)


def test_descriptors_of_a_worker_are_not_kept(ends: tuple[Hand, Channel]) -> None:
    """None is ever asked for, so none may pile up."""
    hand, worker = ends
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a Path would hold one more
    worker.send(channel.Pong(), [0, 1, 2])
    hand.on_readable(2.0)

    assert before == len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # as above


@pytest.mark.parametrize(
    ("number", "behind"), [(errno.ETOOMANYREFS, True), (errno.ENOBUFS, True), (errno.EPIPE, False)]
)
def test_what_passes_is_no_reason_to_kill(
    ends: tuple[Hand, Channel], monkeypatch: pytest.MonkeyPatch, number: int, behind: bool
) -> None:
    """An assignment that cannot be sent for want of memory is sent again; a worker that is gone is killed."""
    hand, _ = ends
    killed: list[bool] = []

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hand.channel, "send", fail)
    monkeypatch.setattr(Hand, "kill", lambda _: killed.append(True))
    hand.tell(channel.Assign(1, ()), [0])

    assert (behind, not behind) == (hand.behind, bool(killed))
