"""Becoming a daemon: what a starter is told, and what a daemon does not inherit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

import echod
from echod.errors import ConfigError, StartError, UsageError
from echod.process import daemonize

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


def test_a_service_manager_that_is_notified_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """$NOTIFY_SOCKET refuses --daemon; $INVOCATION_ID, which Type=forking sets too, does not."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("INVOCATION_ID", "0" * 32)
    daemonize.check_environment()
    monkeypatch.setenv("NOTIFY_SOCKET", "@notify")

    with pytest.raises(UsageError, match="--daemon makes no sense"):
        daemonize.check_environment()


def test_a_program_that_would_not_be_found_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONPATH is not a daemon's to inherit; whoever needs it to find echod is told so, others need not care."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    daemonize.check_environment()
    monkeypatch.setenv("PYTHONPATH", f"/elsewhere:{Path(echod.__file__).parents[1]}")

    with pytest.raises(UsageError, match="--daemon starts over without PYTHONPATH"):
        daemonize.check_environment()


ALLOWED = {"PATH": "/bin", "LC_ALL": "C", "TZ": "UTC"}
UNWANTED = {"LD_PRELOAD": "", "PYTHONPATH": "/x", "LISTEN_FDS": "1"}


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record the arguments of execve(2) instead of calling it."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    return calls


def test_unwanted_variables_are_cleaned_by_exec(
    monkeypatch: pytest.MonkeyPatch, executed: list[tuple[Any, ...]]
) -> None:
    """Only allowed variables go along, and one that marks it, with the same interpreter and the same arguments."""
    monkeypatch.setattr(os, "environ", ALLOWED | UNWANTED)
    daemonize.clean_environment()

    expected = (sys.executable, [sys.executable, *sys.orig_argv[1:]], ALLOWED | {daemonize.CLEANED: "1"})
    assert [expected] == executed


@pytest.mark.parametrize("extra", [{}, {daemonize.CLEANED: "1"}, {daemonize.CLEANED: "1"} | UNWANTED])
def test_environment_is_not_cleaned_twice_by_exec(
    monkeypatch: pytest.MonkeyPatch, executed: list[tuple[Any, ...]], extra: dict[str, str]
) -> None:
    """A clean environment needs no exec; what is set again after one is removed in place."""
    monkeypatch.setattr(os, "environ", ALLOWED | extra)
    daemonize.clean_environment()

    assert [] == executed
    assert ALLOWED == os.environ


@pytest.mark.parametrize(
    ("say", "code", "lines"),
    [
        (lambda starter: starter.ready(), 0, []),
        (lambda starter: starter.failed(StartError("no worker")), 1, ["no worker"]),
        (lambda starter: starter.failed(ConfigError("one", "two")), 78, ["one", "two"]),
    ],
)
def test_the_starter_is_told_once(say: Callable[[daemonize.Starter], None], code: int, lines: list[str]) -> None:
    """The outcome goes down the pipe as code and lines, and the end of the pipe follows; a second word is not said."""
    reader, writer = os.pipe()
    starter = daemonize.Starter(writer)
    say(starter)
    still_open = starter.fd == -1 and code != 0
    starter.ready()
    if still_open:
        os.close(writer)  # as the end of the process does
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()

    assert [code, lines] == orjson.loads(said)
    assert -1 == starter.fd


def test_a_starter_that_is_gone_is_no_error() -> None:
    """Whoever interrupts the starter does not end the daemon; nor is there anyone to tell in the foreground."""
    reader, writer = os.pipe()
    os.close(reader)
    daemonize.Starter(writer).ready()
    daemonize.Starter(-1).ready()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer)


@pytest.mark.parametrize(
    ("said", "code", "text"),
    [
        (b"[0,[]]", 0, ""),
        (b'[78,["one","two"]]', 78, "echod: one\nechod: two\n"),
        (b"", 1, "echod: the daemon died before it was ready\n"),
    ],
)
def test_the_starter_leaves_as_it_is_told(
    said: bytes, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the reasons and leaves with the code; silence means that the daemon is dead."""

    class LeftError(Exception):
        pass

    def leave(status: int) -> NoReturn:
        raise LeftError(status)

    monkeypatch.setattr(os, "_exit", leave)
    reader, writer = os.pipe()
    os.write(writer, said)
    os.close(writer)
    with pytest.raises(LeftError) as left:
        daemonize._wait(reader)

    assert (code,) == left.value.args
    assert text == capsys.readouterr().err
