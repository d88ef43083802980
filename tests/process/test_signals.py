"""Signals: a handler raises a flag, the loop acts on it, and nothing of the parent's is left."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from echod.process import signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.net.reactor import Reactor

Acts = list[signal.Signals]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Leave the test run's own signals as they were."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture
def acts(reactor: Reactor) -> Acts:
    """Collect what the loop was asked to act on."""
    found: Acts = []
    reactor.add(signals.Signals(lambda number, _now: found.append(signal.Signals(number))))
    return found


def test_a_signal_wakes_the_loop(reactor: Reactor, acts: Acts) -> None:
    """A wait without a timeout ends with the signal, which is acted on in that very turn."""
    os.kill(os.getpid(), signal.SIGHUP)
    reactor.turn()

    assert [signal.SIGHUP] == acts


def test_the_most_urgent_signal_comes_first(reactor: Reactor, acts: Acts) -> None:
    """Of several signals TERM comes first, whatever the order in which they were sent."""
    for number in (signal.SIGUSR1, signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM):
        signal.raise_signal(number)
    reactor.turn()

    assert [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD] == acts


def test_a_storm_loses_no_signal(reactor: Reactor, acts: Acts) -> None:
    """Ten thousand USR1 fill the pair that wakes; the TERM after them counts, and a signal many times counts once."""
    for _ in range(10_000):
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    reactor.turn()
    reactor.turn(0)

    assert [signal.SIGTERM, signal.SIGUSR1] == acts


def test_a_signal_during_the_act_counts_anew(reactor: Reactor, turn: Callable[..., None]) -> None:
    """A flag is lowered before it is acted on: the same signal, come meanwhile, is acted on once more."""
    found: Acts = []

    def act(number: signal.Signals, _now: float) -> None:
        found.append(number)
        if len(found) == 1:
            signal.raise_signal(signal.SIGHUP)

    reactor.add(signals.Signals(act))
    signal.raise_signal(signal.SIGHUP)
    turn(reactor, lambda: len(found) == 2)

    assert [signal.SIGHUP, signal.SIGHUP] == found


def test_close_gives_the_signals_back() -> None:
    """After the end each signal does again what the system says."""
    handler = signals.Signals(lambda _number, _now: None)
    handler.close()

    assert {signal.SIG_DFL} == {signal.getsignal(number) for number in signals.ACTED_ON}
    assert signal.set_wakeup_fd(-1) == -1


def test_reset_undoes_what_a_parent_did() -> None:
    """Blocked signals are let through, ignored ones reset, but those that the interpreter itself ignores."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGTSTP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signals.reset()

    assert set() == signal.pthread_sigmask(signal.SIG_BLOCK, ())
    reset = (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGTSTP)
    assert {signal.SIG_DFL} == {signal.getsignal(number) for number in reset}
    assert signal.SIG_IGN == signal.getsignal(signal.SIGPIPE)


def test_a_worker_leaves_commands_to_its_supervisor() -> None:
    """A worker ignores what systemd and terminals send to the whole group, and no byte goes to its parent's loop."""
    handler = signals.Signals(lambda _number, _now: None)
    signals.hold()
    signals.become_worker()

    assert {signal.SIG_IGN} == {signal.getsignal(n) for n in signals.ACTED_ON if n is not signal.SIGCHLD}
    assert signal.SIG_DFL == signal.getsignal(signal.SIGCHLD)
    assert set() == signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.set_wakeup_fd(-1) == -1
    handler.close()


def test_at_the_end_no_signal_has_an_effect() -> None:
    """Between the end of the loop and that of the process no signal can turn the exit code into a death."""
    handler = signals.Signals(lambda _number, _now: None)
    signals.ignore()

    assert {signal.SIG_IGN} == {signal.getsignal(number) for number in signals.ACTED_ON}
    handler.close()


def test_signals_held_around_a_fork_come_afterwards(reactor: Reactor, acts: Acts) -> None:
    """Between `hold` and `let_go` no handler runs; the signal is not lost."""
    signals.hold()
    signal.raise_signal(signal.SIGTERM)
    reactor.turn(0)

    assert [] == acts
    signals.let_go()
    reactor.turn()
    assert [signal.SIGTERM] == acts


def test_what_was_ignored_is_told() -> None:
    """Whoever starts echod by nohup(1) has HUP ignored, and means it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    assert signal.SIGHUP in signals.reset()
    assert signal.SIGHUP not in signals.reset()


def test_every_signal_has_a_name() -> None:
    """Those that the system does not name are told by number."""
    assert ("SIGTERM", "SIG37", "SIG63") == tuple(map(signals.name, (signal.SIGTERM, 37, 63)))


def exit_code(body: Callable[[], object]) -> int:
    """Run `body` in a child of this process and return how it ended, a signal as a negative number."""
    pid = os.fork()
    if not pid:
        try:
            body()
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("number", signals.ENDING)
def test_process_ends_by_the_signal_it_got(number: signal.Signals) -> None:
    """A start that has made nothing yet ends in the handler, so that its parent sees which signal it was."""

    def body() -> None:
        signals.end_at_once()
        signal.raise_signal(number)

    assert exit_code(body) == -number


def test_process_exits_where_no_signal_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PID 1, whose default actions the kernel ignores, leaves with 128 and the number."""
    monkeypatch.setattr(os, "kill", lambda *_: None)

    assert exit_code(lambda: signals.end_by(signal.SIGTERM)) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", signals.ENDING)
def test_interrupt_raises_once(number: signal.Signals) -> None:
    """The first signal raises what no `except Exception` stops; a second does not disturb the cleaning up."""
    interruption = signals.Interruption()
    with pytest.raises(signals.Interrupted) as interrupted:
        signal.raise_signal(number)
    for again in signals.ENDING:
        signal.raise_signal(again)

    assert interrupted.value.number == number
    assert not isinstance(interrupted.value, Exception)
    with pytest.raises(signals.Interrupted):
        interruption.check()


def test_interruption_in_a_finalizer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that Python swallows is raised again by the next check; without a signal, none is."""

    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    swallowed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)
    interruption = signals.Interruption()
    interruption.check()
    Finalized()

    assert len(swallowed) == 1
    with pytest.raises(signals.Interrupted):
        interruption.check()


def test_resolver_is_ended_but_not_commanded() -> None:
    """A lookup ends by TERM, INT and QUIT, and ignores what the whole group is sent for the supervisor."""
    handler = signals.Signals(lambda _number, _now: None)
    signals.hold()
    signals.reset_in_child()
    ignored = {number for number in signals.ACTED_ON if signal.getsignal(number) is signal.SIG_IGN}

    assert ignored == {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert signal.set_wakeup_fd(-1) == -1
    handler.close()
