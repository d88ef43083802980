"""The lookup of names in a child process: what comes back, what is refused and why, and that the child never stays."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.config.listeners import Listener
from echod.errors import ConfigError, StartError
from echod.net import binding
from echod.process import privileges, resolver, signals
from echod.process.resolver import Question, Resolver
from tests.system.daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.net.reactor import Reactor

LITERAL = Listener(name="literal", address="127.0.0.1:7")
NAMED = Listener(name="web", address="echo.example:7")
OWNED = Listener(name="path", kind="unix", address="/run/echo", owner="daemon:sys")
ANSWER = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 7))]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root asks which user workers become")


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Hold that neither a descriptor nor a child is left over."""
    before = descriptors()
    yield

    assert before == descriptors()
    wait_until(childless, 5.0, "the end of all children")


@pytest.fixture
def getaddrinfo(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Replace the lookup of host names in this process and in the child that it forks."""
    return lambda function: monkeypatch.setattr(socket, "getaddrinfo", function)


def descriptors() -> set[str]:
    """Return the numbers of all open descriptors, but for the one that reads them."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


def childless() -> bool:
    """Reap what has ended, and tell whether no child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def test_question_without_names_forks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Literal addresses are answered in the process that asks."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    names = resolver.resolve(Question((LITERAL,)))

    assert names.targets["literal"] == binding.BindTarget(((socket.AF_INET, ("127.0.0.1", 7)),), (-1, -1))
    assert names.run_as is None


def test_user_needs_no_lookup_when_none_is_named_and_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user's workers stay what they are; as root even the empty user stands for an account."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not Question((LITERAL,), account=("", "")).needs_name_service
    assert Question((LITERAL,), account=("echod", "")).needs_name_service
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Question((LITERAL,), account=("", "")).needs_name_service


@as_root
def test_answer_of_child_equals_answer_in_process(getaddrinfo: Callable[[Callable[..., Any]], None]) -> None:
    """Addresses of both families, owners and the user of the workers come back as they were found."""
    more = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 7, 0, 0))
    getaddrinfo(lambda host, *_args, **_options: [*ANSWER, more] if host == b"echo.example" else ANSWER[:1])
    question = Question((NAMED, LITERAL, OWNED), account=("daemon", ""))
    names = resolver.resolve(question)

    assert names == question.answer()
    assert names.targets["web"].addresses == ((socket.AF_INET, ANSWER[0][4]), (socket.AF_INET6, more[4]))
    assert names.targets["path"].owner == (1, 3)
    assert names.run_as == privileges.resolve("daemon", "")


def test_unknown_name_is_refused_in_words_of_resolver(getaddrinfo: Callable[[Callable[..., Any]], None]) -> None:
    """The error of the child is raised in the parent, with listener and name."""

    def fail(*_args: Any, **_options: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    getaddrinfo(fail)
    with pytest.raises(StartError, match=r'^listener "web": echo\.example:7: Name or service not known$'):
        resolver.resolve(Question((NAMED,)))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (Question((OWNED,)), 'listener "path": owner: name service did not answer within 1 s'),
        (Question((), account=("echod", "")), "daemon.user: name service did not answer within 1 s"),
    ],
)
def test_slow_user_is_named(monkeypatch: pytest.MonkeyPatch, question: Question, expected: str) -> None:
    """The limit holds for users and groups too, and the message says whose lookup it was."""
    monkeypatch.setattr(resolver, "TIMEOUT", 1)
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: time.sleep(60))
    monkeypatch.setattr(pwd, "getpwall", lambda: time.sleep(60))
    with pytest.raises(StartError) as refused:
        resolver.resolve(question)

    assert refused.value.lines == (expected,)


def test_first_unanswered_name_is_named(
    monkeypatch: pytest.MonkeyPatch, getaddrinfo: Callable[[Callable[..., Any]], None]
) -> None:
    """All names share the limit; the message names the one that used it up."""
    monkeypatch.setattr(resolver, "TIMEOUT", 1)
    getaddrinfo(lambda host, *_args, **_options: time.sleep(60) if host == b"slow.example" else ANSWER)
    slow = Listener(name="slow", address="slow.example:7")
    with pytest.raises(StartError, match=r'^listener "slow": slow\.example:7: name server did not answer within 1 s$'):
        resolver.resolve(Question((NAMED, slow, LITERAL)))


def test_child_without_alarm_is_killed_after_limit(
    monkeypatch: pytest.MonkeyPatch, getaddrinfo: Callable[[Callable[..., Any]], None]
) -> None:
    """A name service that blocks all signals cannot hold up the parent."""
    monkeypatch.setattr(resolver, "TIMEOUT", 1)
    monkeypatch.setattr(resolver, "KILL_DELAY", 0.2)

    def block(*_args: Any, **_options: Any) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        time.sleep(60)

    getaddrinfo(block)
    began = time.monotonic()
    with pytest.raises(StartError, match="did not answer within 1 s"):
        resolver.resolve(Question((NAMED,)))

    assert time.monotonic() - began >= 1.2


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (b"", 'listener "web": echo.example:7: name server lookup ended without an answer'),
        (b"\n\n\n\n", "names: lookup ended without an answer"),
        (b"\n{", "names: the lookup process gave an invalid answer"),
        (b'\n{"targets": {"web": 7}, "run_as": null}', "names: the lookup process gave an invalid answer"),
        (b"\nx" + bytes(300), "names: the lookup process gave an invalid answer"),
    ],
    ids=["nothing", "newlines", "truncated", "wrong type", "too long"],
)
def test_bad_answer_is_refused(monkeypatch: pytest.MonkeyPatch, output: bytes, expected: str) -> None:
    """What a child writes is bounded and checked before it is used."""
    monkeypatch.setattr(resolver, "MAX_ANSWER", 200)

    def run(_question: Question, pipe: int) -> None:
        os.write(pipe, output)
        os._exit(0)

    monkeypatch.setattr(resolver, "_run_child", run)
    with pytest.raises(StartError) as refused:
        resolver.resolve(Question((NAMED,)))

    assert refused.value.lines == (expected,)


def test_unexpected_error_is_one_line(getaddrinfo: Callable[[Callable[..., Any]], None]) -> None:
    """A fault in a name service's module is a sentence, and no traceback."""
    getaddrinfo(lambda *_args, **_options: 1 / 0)
    with pytest.raises(StartError, match=r"^names: lookup failed: ZeroDivisionError: division by zero$"):
        resolver.resolve(Question((NAMED,)))


def test_error_keeps_its_kind_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the configuration stays one, so that the exit code is 78."""

    def refuse(*_names: str) -> None:
        raise ConfigError("daemon.user: first", "daemon.group: second", errno=22)

    monkeypatch.setattr(privileges, "resolve", refuse)
    with pytest.raises(ConfigError) as refused:
        resolver.resolve(Question((), account=("echod", "echod")))

    assert refused.value.lines == ("daemon.user: first", "daemon.group: second")
    assert refused.value.errno == 22


def test_child_holds_no_descriptor_and_no_handler_of_its_parent(
    getaddrinfo: Callable[[Callable[..., Any]], None], tmp_path: Path
) -> None:
    """The lookup runs with its pipe and /dev/null alone, and TERM, INT and QUIT end it."""
    handler = signals.Signals(lambda _number, _now: None)
    seen = tmp_path / "seen"

    def look(*_args: Any, **_options: Any) -> Any:
        opened = sorted(str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.exists())
        ending = {signal.getsignal(number) for number in signals.ENDING}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        kinds = [name for name in opened if "/proc/" not in name]
        seen.write_text(f"{[name.partition(':')[0] for name in kinds]} {ending} {blocked}")
        return ANSWER

    getaddrinfo(look)
    try:
        resolver.resolve(Question((NAMED,)))
    finally:
        handler.close()

    assert seen.read_text() == f"['/dev/null', '/dev/null', '/dev/null', 'pipe'] {{{signal.SIG_DFL!r}}} set()"


def test_lookup_does_not_block_loop_and_close_ends_it(
    reactor: Reactor, getaddrinfo: Callable[[Callable[..., Any]], None]
) -> None:
    """A resolver that is retired is closed by the reactor, which kills the child."""
    getaddrinfo(lambda *_args, **_options: time.sleep(60))
    lookup = Resolver(Question((NAMED,)))
    lookup.start()
    reactor.adopt(lookup)
    reactor.turn(0.05)
    assert not lookup.done
    lookup.retire()
    reactor.touch(lookup)
    reactor.turn(0)

    assert os.waitstatus_to_exitcode(os.waitpid(lookup.pid, 0)[1]) == -signal.SIGKILL


def test_close_signals_no_process_that_was_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that the supervisor has reaped on SIGCHLD is gone, and its number may be another process's."""
    monkeypatch.setattr(resolver, "_run_child", lambda _question, _pipe: os._exit(0))
    lookup = Resolver(Question((NAMED,)))
    lookup.start()
    os.waitpid(lookup.pid, 0)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("killed"))
    lookup.close()


@pytest.mark.parametrize("call", ["pipe", "fork"])
def test_exhausted_machine_is_one_line(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """When no pipe or process can be had, that is said in one line, and nothing stays open."""

    def fail() -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StartError, match="to look up names: Resource temporarily unavailable"):
        resolver.resolve(Question((NAMED,)))
