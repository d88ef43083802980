"""One worker as its supervisor sees it: what it says is noted, and who cannot be told is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from echod.observe import sink
from echod.observe.scoreboard import Scoreboard
from echod.process import channel
from echod.process.hand import MAX_ANSWERS_PER_TURN, Hand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from echod.process.channel import WorkerChannel


@pytest.fixture
def ends() -> Iterator[tuple[Hand, WorkerChannel]]:
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
    board.close()


def test_answers_are_noted(ends: tuple[Hand, WorkerChannel]) -> None:
    """Every answer shows that the worker runs, and says what it was told to say."""
    hand, worker = ends
    hand.ping()
    worker.send(channel.HeartbeatReply())
    hand.on_readable(2.0)
    assert (2.0, 0, False) == (hand.heard, hand.generation, hand.released)
    hand.tell(channel.Configure(7, ()))
    hand.tell(channel.Drain(1.0))
    hand.tell(channel.Configure(8, ()))
    worker.send(channel.Configured(7))
    worker.send(channel.ListenersClosed())
    worker.send(channel.DescriptorsLost())
    hand.on_exceptional(3.0)

    assert (3.0, 7, True, True) == (hand.heard, hand.generation, hand.released, hand.behind)
    assert hand.violation is None


def test_log_is_reopened_once_the_newest_serial_is_confirmed(ends: tuple[Hand, WorkerChannel]) -> None:
    """A worker confirms each descriptor of the log; one that was forked with the newest has nothing to confirm."""
    hand, worker = ends
    assert hand.log_reopened
    hand.reopen_log(1, 0)
    hand.reopen_log(2, 0)
    worker.send(channel.LogReopened(1))
    hand.on_readable(2.0)
    assert not hand.log_reopened
    worker.send(channel.LogReopened(2))
    hand.on_readable(3.0)

    assert hand.log_reopened


def test_worker_that_lost_the_descriptor_of_the_log_has_not_reopened_it(ends: tuple[Hand, WorkerChannel]) -> None:
    """It counts again once it was told again."""
    hand, worker = ends
    hand.reopen_log(1, 0)
    worker.send(channel.DescriptorsLost())
    hand.on_readable(2.0)

    assert not hand.log_reopened


def test_log_without_a_descriptor_left_is_sent_again(
    ends: tuple[Hand, WorkerChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that has no descriptor for a copy kills nobody: the worker is behind."""
    hand, _ = ends

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(sink, "open_again", fail)
    hand.reopen_log(1, 0)

    assert hand.behind
    assert not hand.log_reopened


def test_the_end_of_the_channel_is_no_spin(ends: tuple[Hand, WorkerChannel]) -> None:
    """A worker that has hung up is not listened to any more; its end is noted when it is reaped."""
    hand, worker = ends
    for fd in worker.filenos():
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)  # the fixture closes both
    select.select([hand.channel], [], [], 5)  # the process has closed what it was forked with
    hand.on_readable(2.0)

    assert (0, 1.0) == (hand.interest, hand.heard)


def ended_by(hand: Hand) -> int:
    """Wait for the process, and return how it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(hand.pid, 0)[1])


def test_who_cannot_be_told_is_killed(ends: tuple[Hand, WorkerChannel]) -> None:
    """A full channel, or one without another end, is the end of the worker."""
    hand, _ = ends
    with suppress(BlockingIOError):
        while True:
            hand.channel.send(channel.Heartbeat())
    hand.ping()
    assert os.waitpid(hand.pid, os.WNOHANG) == (0, 0), "a heartbeat that cannot be sent kills nobody"
    hand.tell(channel.Stop())

    assert -signal.SIGKILL == ended_by(hand)


@pytest.mark.parametrize(
    ("answers", "violation"),
    [
        ([b"\0\xff"], "sent an answer that is not JSON"),
        ([b'["Pang", {}]'], "sent an unknown answer"),
        ([b'["Configured", {"generation": 8}]'], "confirmed a configuration that it was not sent"),
        ([b'["Configured", {"generation": 7}]', b'["Configured", {"generation": 6}]'], "confirmed a configuration"),
        ([b'["LogReopened", {"serial": 1}]'], "confirmed a log that it was not sent"),
        ([b'["HeartbeatReply", {}]'] * 3, "sent an answer to no command"),
    ],
)
def test_worker_that_breaks_a_rule_is_killed(
    ends: tuple[Hand, WorkerChannel], answers: list[bytes], violation: str
) -> None:
    """It is named by the rule, in echod's own words, and is not listened to any more."""
    hand, worker = ends
    hand.tell(channel.Configure(7, ()))
    hand.ping()
    for answer in answers:
        os.write(worker.filenos()[1], answer)
    hand.on_readable(2.0)

    assert -signal.SIGKILL == ended_by(hand)
    assert hand.violation
    assert violation in hand.violation
    assert 0 == hand.interest


def test_flood_of_answers_does_not_hold_the_loop(ends: tuple[Hand, WorkerChannel]) -> None:
    """One turn reads some answers and leaves the others for the next, also of a worker that may send as many."""
    hand, worker = ends
    hand.behind = True
    for _ in range(MAX_ANSWERS_PER_TURN + 5):
        hand.ping()
    fcntl.fcntl(worker.filenos()[1], fcntl.F_SETPIPE_SZ, 1 << 20)
    for _ in range(MAX_ANSWERS_PER_TURN + 5):
        worker.send(channel.HeartbeatReply())
    hand.on_readable(2.0)
    hand.on_readable(3.0)
    with pytest.raises(BlockingIOError):
        hand.channel.receive()

    assert 3.0 == hand.heard


def test_worker_that_cannot_be_listened_to_is_killed(ends: tuple[Hand, WorkerChannel]) -> None:
    """Whatever reading it raises must not end the supervisor."""
    hand, _ = ends
    hand.on_crash(OSError(errno.EIO, "Input/output error"), 2.0)

    assert -signal.SIGKILL == ended_by(hand)
    assert hand.violation == "could not be listened to"


@pytest.mark.parametrize(
    ("number", "behind"), [(errno.ETOOMANYREFS, True), (errno.ENOBUFS, True), (errno.EPIPE, False)]
)
def test_what_passes_is_no_reason_to_kill(
    ends: tuple[Hand, WorkerChannel], monkeypatch: pytest.MonkeyPatch, number: int, behind: bool
) -> None:
    """An assignment that cannot be sent for want of memory is sent again; a worker that is gone is killed."""
    hand, _ = ends
    killed: list[bool] = []

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hand.channel, "send", fail)
    monkeypatch.setattr(Hand, "kill", lambda _: killed.append(True))
    hand.tell(channel.Configure(1, ()), [0])

    assert (behind, not behind) == (hand.behind, bool(killed))
