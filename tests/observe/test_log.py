"""Events as lines: exact records, what is cut, what is left out, and what can never happen to a log call."""

from __future__ import annotations

import os
import re
import select
import sys
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from itertools import permutations
from math import inf, nan
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echod.config import models
from echod.events import (
    CloseReason,
    CommandFailed,
    ConnectionClosed,
    ConnectionReceived,
    ConnectionRefused,
    Event,
    HandlerCrashed,
    Level,
    ListenerPaused,
    LogDropped,
    RefuseReason,
    ReloadRefused,
    ServiceFailed,
    ServiceStarted,
    SignalReceived,
    StatusReported,
    catalogue,
)
from echod.observe import cap
from echod.observe import log as subject
from echod.observe.log import LONGEST_LIST, Log
from echod.observe.scoreboard import Column, Scoreboard
from echod.observe.sink import QUEUE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = "2026-01-02T03:04:05.678901Z"


class Paper:
    """A log without a cap that writes to a pipe, and what can be read from it."""

    def __init__(self, stack: ExitStack, **changes: Any) -> None:
        self.reader, writer = os.pipe()
        stack.callback(os.close, self.reader)
        os.set_blocking(self.reader, False)
        os.set_blocking(writer, False)
        self.board = Scoreboard()
        stack.callback(self.board.close)
        self.row = self.board.row(0)
        self.log = Log(models.Log(**({"cap": 0} | changes)), writer, self.row)
        stack.callback(lambda: os.close(self.log.sink.fd))

    def configure(self, **changes: Any) -> None:
        """Use other settings."""
        self.log.configure(models.Log(**({"cap": 0} | changes)))

    def raw(self) -> bytes:
        """Flush, and return what there is."""
        found = b""
        self.log.flush()
        with suppress(BlockingIOError):
            while chunk := os.read(self.reader, 65536):
                found += chunk
        return found

    def everything(self) -> bytes:
        """Return what there is, until nothing more comes."""
        found = b""
        while more := self.raw():
            found += more
        return found

    def lines(self) -> list[bytes]:
        """Return the lines, each without its end."""
        found = self.everything()

        assert found == b"" or found.endswith(b"\n")

        return found.split(b"\n")[:-1]

    def records(self) -> list[dict[str, Any]]:
        """Return the records."""
        return [orjson.loads(line) for line in self.lines()]

    def said(self, event: Event) -> dict[str, Any]:
        """Return the record of `event`."""
        self.log.emit(event)
        [record] = self.records()
        return record


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what is entered when the test is over."""
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def paper(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Paper:
    """Make a log of records whose clock stands still."""
    monkeypatch.setattr(subject, "_timestamp", lambda: NOW)
    return Paper(stack, level="debug")


# -- records ----------------------------------------------------------------------------------------------------------

RECORDS: list[tuple[Event, dict[str, Any]]] = [
    (
        ServiceStarted(version="1.2.3", pid=7, workers=2, config=None),
        {"level": "info", "event": "service.started", "service.version": "1.2.3", "process.pid": 7, "echod.workers": 2},
    ),
    (SignalReceived(signal="SIGHUP"), {"level": "info", "event": "signal.received", "echod.signal": "SIGHUP"}),
    (
        ConnectionClosed(
            id=257,
            listener="echo",
            client_address="::1",
            client_port=4711,
            server_address="::1",
            server_port=7,
            transport="tcp",
            network="ipv6",
            reason=CloseReason.PEER_CLOSED,
            duration=0.25,
            received=3,
            echoed=0,
        ),
        {
            "level": "info",
            "event": "connection.closed",
            "echod.connection.id": 257,
            "echod.listener": "echo",
            "client.address": "::1",
            "client.port": 4711,
            "server.address": "::1",
            "server.port": 7,
            "network.transport": "tcp",
            "network.type": "ipv6",
            "echod.close.reason": "peer_closed",
            "echod.connection.duration": 0.25,
            "echod.io.receive": 3,
            "echod.io.transmit": 0,
        },
    ),
    (
        ConnectionRefused(id=1, reason=RefuseReason.OVER_LIMIT),
        {
            "level": "info",
            "event": "connection.refused",
            "echod.connection.id": 1,
            "echod.refuse.reason": "over_limit",
        },
    ),
    (
        ListenerPaused(error="EMFILE"),
        {"level": "warning", "event": "listener.paused", "error.type": "EMFILE"},
    ),
    (
        ReloadRefused(errors=["/etc/echod.toml:3: no", "ÿ"]),
        {"level": "error", "event": "reload.refused", "echod.config.errors": ["/etc/echod.toml:3: no", "ÿ"]},
    ),
    (
        ConnectionReceived(id=1, count=65536),
        {"level": "debug", "event": "connection.received", "echod.connection.id": 1, "echod.io.count": 65536},
    ),
]


@pytest.mark.parametrize(("event", "expected"), RECORDS, ids=lambda value: getattr(value, "name", ""))
def test_exact_records(paper: Paper, event: Event, expected: dict[str, Any]) -> None:
    """A record is the time, the level, the name and the fields that are set, in this order, in the schema's words."""
    record = paper.said(event)

    assert list(({"timestamp": NOW} | expected).items()) == list(record.items())


def test_one_object_a_line(paper: Paper) -> None:
    """Each record is one line of JSON, without spaces."""
    paper.log.emit(SignalReceived(signal="a\nb"))

    assert (
        b'{"timestamp":"%s","level":"info","event":"signal.received","echod.signal":"a\\nb"}\n' % NOW.encode()
        == paper.raw()
    )


def test_the_timestamp(stack: ExitStack) -> None:
    """The time is RFC 3339, in UTC, to the microsecond, even on a whole second; and it is now."""
    stamp = Paper(stack).said(SignalReceived())["timestamp"]

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(stamp)) < timedelta(seconds=60)


@pytest.mark.parametrize("fraction", [0, 1, 99_999, 100_000, 999_999])
def test_a_timestamp_has_six_digits(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, fraction: int) -> None:
    """Microseconds are padded, and nothing is rounded up."""
    monkeypatch.setattr(subject, "time_ns", lambda: 1_000_000_000 * 86_400 + fraction * 1000 + 999)

    assert f"1970-01-02T00:00:00.{fraction:06}Z" == Paper(stack).said(SignalReceived())["timestamp"]


def test_no_key_is_a_prefix_of_another() -> None:
    """A flat key can become a path without a clash: none is another one up to a dot, in any record."""
    keys = {"timestamp", "level", "event"} | {key for event in catalogue() for key in event.keys.values()}

    assert [] == [(short, long) for short, long in permutations(keys, 2) if long.startswith(f"{short}.")]


@pytest.mark.parametrize("event", catalogue(), ids=lambda event: event.name)
def test_every_event_can_be_written(paper: Paper, event: type[Event]) -> None:
    """Each event of the catalogue makes a record of its name, its level and nothing else when no field is set."""
    assert {"timestamp": NOW, "level": str(event.level), "event": event.name} == paper.said(event())


# -- what is written --------------------------------------------------------------------------------------------------

ONE_OF_EACH = [ConnectionReceived(), SignalReceived(), ListenerPaused(), ServiceFailed()]


@pytest.mark.parametrize("level", list(Level))
def test_level(paper: Paper, level: Level) -> None:
    """Events below the level that is asked for are not written, and not counted as lost."""
    paper.configure(level=level)
    for event in ONE_OF_EACH:
        paper.log.emit(event)
    expected = list(Level)[list(Level).index(level) :]

    assert expected == [record["level"] for record in paper.records()]
    assert (0, level is Level.DEBUG) == (paper.row[Column.LOG_DROPPED], paper.log.verbose)


def test_suppress(paper: Paper) -> None:
    """Events that the operator does not want by name are not written; a reload may bring them back."""
    paper.configure(suppress=["signal.received", "service.failed"])
    for event in ONE_OF_EACH:
        paper.log.emit(event)
    first = [record["event"] for record in paper.records()]
    paper.configure()
    paper.log.emit(SignalReceived())

    assert (["listener.paused"], ["signal.received"]) == (first, [record["event"] for record in paper.records()])


def test_a_cap(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an event no more than the cap is written in a period; at its end one line for each event says the rest."""
    now = 0.0
    monkeypatch.setattr(cap.Cap.__init__, "__defaults__", (lambda: now,))
    paper.configure(cap=2)
    for event in [SignalReceived(), ServiceFailed()] * 5:
        paper.log.emit(event)
    first = [record["event"] for record in paper.records()]
    paper.log.tick()
    too_early = paper.records()
    now = cap.PERIOD
    paper.log.tick()
    second = paper.records()
    paper.log.emit(SignalReceived())

    assert (["signal.received", "service.failed"] * 2, []) == (first, too_early)
    assert [
        ("log.suppressed", "warning", "signal.received", 3),
        ("log.suppressed", "warning", "service.failed", 3),
    ] == [
        (record["event"], record["level"], record["echod.log.event"], record["echod.log.suppressed"])
        for record in second
    ]
    assert ["signal.received"] == [record["event"] for record in paper.records()]
    assert 0 == paper.row[Column.LOG_DROPPED]


def test_what_is_below_the_level_takes_no_share(paper: Paper) -> None:
    """What would not have been written is not counted as suppressed, and neither is what the operator suppresses."""
    paper.configure(level="error", suppress=["service.failed"], cap=1)
    for event in ONE_OF_EACH * 3:
        paper.log.emit(event)
    paper.log.drain(0)

    assert [] == paper.records()


@pytest.mark.parametrize("end", ["reload", "drain"])
def test_what_was_suppressed_is_said_in_time(paper: Paper, end: str) -> None:
    """A reload and the end of the process end the period too: no count is forgotten."""
    paper.configure(cap=1)
    for _ in range(3):
        paper.log.emit(SignalReceived())
    if end == "reload":
        paper.configure(cap=5)
    else:
        paper.log.drain(0)
    records = paper.records()

    assert ["signal.received", "log.suppressed"] == [record["event"] for record in records]
    assert 2 == records[-1]["echod.log.suppressed"]


def test_a_suppressed_summary(paper: Paper) -> None:
    """Who does not want the summary does not get it."""
    paper.configure(cap=1, suppress=["log.suppressed"])
    for _ in range(3):
        paper.log.emit(SignalReceived())
    paper.log.drain(0)

    assert ["signal.received"] == [record["event"] for record in paper.records()]


def test_a_fork_takes_no_counts_along(paper: Paper) -> None:
    """What the parent has counted is the parent's to say."""
    paper.configure(cap=1)
    for _ in range(3):
        paper.log.emit(SignalReceived())
    paper.records()
    paper.log.move_to(paper.row)
    paper.log.drain(0)

    assert [] == paper.records()


def test_ecs(paper: Paper) -> None:
    """The same record in the names of the Elastic Common Schema, on a line of its own."""
    paper.configure(format="ecs")
    paper.log.emit(ConnectionRefused(id=1, reason=RefuseReason.DENIED))
    [record] = paper.records()

    assert (NOW, "info", "connection.refused", "denied", ["network"]) == (
        record["@timestamp"],
        record["log.level"],
        record["event.action"],
        record["event.reason"],
        record["event.category"],
    )
    assert not {"timestamp", "level", "event"} & set(record)


def test_crashed(paper: Paper) -> None:
    """A defect is reported with the handler's class, the error and where it happened."""
    error = ZeroDivisionError("a defect")
    try:
        raise error
    except ZeroDivisionError:
        paper.log.crashed(paper, error)
    [record] = paper.records()

    assert ("handler.crashed", "error", "Paper") == (record["event"], record["level"], record["echod.handler"])
    assert 1 == paper.row[Column.CRASHED]
    assert ("ZeroDivisionError", "a defect") == (record["error.type"], record["exception.message"])
    assert record["exception.stacktrace"].endswith("ZeroDivisionError: a defect\n")
    assert "test_log.py" in record["exception.stacktrace"]


def test_a_deep_crash_fits(paper: Paper) -> None:
    """So is one from the depth of a recursion with a long message: its end is what matters."""

    def dive(depth: int) -> None:
        if not depth:
            raise ValueError("x" * 100_000)
        dive(depth - 1)

    try:
        dive(200)
    except ValueError as error:
        paper.log.crashed(paper, error)
    [record] = paper.records()

    assert ("ValueError", 0) == (record["error.type"], paper.row[Column.LOG_DROPPED])


# -- what has to be cut -----------------------------------------------------------------------------------------------


def test_a_lone_surrogate(paper: Paper) -> None:
    """A path that is not UTF-8 is written with its bytes spelt out."""
    assert "/tmp/\\udcff\\udcfe" == paper.said(ServiceStarted(directory="/tmp/\udcff\udcfe"))["echod.runtime_directory"]


def test_a_huge_text(paper: Paper) -> None:
    """A text that would make the record too long for a pipe is cut, and shows it; what is short stays whole."""
    record = paper.said(ServiceStarted(version="1.2.3", directory="x" * 100_000))

    assert ("1.2.3", "x" * 1023 + "…") == (record["service.version"], record["echod.runtime_directory"])


@pytest.mark.parametrize("text", ["\x00", "ÿ", "\U0001f600", "\udcff", '"', "\n"])
def test_a_huge_text_of_what_is_long_in_json(paper: Paper, text: str) -> None:
    """What counts is the length of the line, however many bytes a character takes."""
    paper.log.crashed(paper, RuntimeError(text * 10_000))
    [line] = paper.lines()

    assert len(line) < select.PIPE_BUF
    assert "handler.crashed" == orjson.loads(line)["event"]


def test_a_huge_list(paper: Paper) -> None:
    """A list is cut in the number and the length of its entries."""
    record = paper.said(ReloadRefused(errors=["x" * 1000] * 1000))
    errors = record["echod.config.errors"]

    assert (LONGEST_LIST, True) == (len(errors), all(entry.endswith("…") for entry in errors))


def test_a_list_that_fits_is_whole(paper: Paper) -> None:
    """One that fits is not touched."""
    pids = list(range(4_000_000, 4_000_128))

    assert pids == paper.said(StatusReported(workers=pids))["echod.worker.pids"]


@pytest.mark.parametrize("value", [2**64, -(2**64), 10**40])
def test_a_number_beyond_64_bits(paper: Paper, value: int) -> None:
    """A number that JSON libraries cannot hold does not cost the record."""
    record = paper.said(StatusReported(active=value, uptime=1.5))

    assert (1.5, str(value)) == (record["echod.uptime"], str(record["echod.connections.active"]))


def test_what_is_no_json_type(paper: Paper) -> None:
    """A value of another type, which would be a defect of the caller, is written as Python shows it."""
    path: Any = {1, 2}

    assert "{1, 2}" == paper.said(ServiceStarted(directory=path))["echod.runtime_directory"]


def test_a_record_that_cannot_be_cut(paper: Paper) -> None:
    """One that no cutting makes short enough is dropped and counted, and the next one is written."""
    workers: Any = list(range(2**60, 2**60 + 1000))
    many: Any = {str(number): "x" * 64 for number in range(100)}
    paper.log.emit(StatusReported(workers=workers))
    paper.log.emit(StatusReported(workers=many))

    assert ["status.reported", "log.dropped"] == [record["event"] for record in paper.records()]
    assert 1 == paper.row[Column.LOG_DROPPED]


class Cursed:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


def test_a_value_that_raises(paper: Paper) -> None:
    """A value that raises when it is shown costs its record, and says so."""
    cursed: Any = Cursed()
    paper.log.emit(ServiceStarted(directory=cursed))

    assert {"timestamp": NOW, "level": "warning", "event": "log.dropped", "echod.log.dropped": 1} == paper.records()[0]


@pytest.mark.parametrize("development", [True, False])
def test_record_that_cannot_be_made_explains_itself_in_development(
    paper: Paper, development: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under `-X dev` the cause is on standard error, where the harness of the system tests fails on it."""
    monkeypatch.setattr(subject, "EXPLAIN_DROPS", development)
    cursed: Any = Cursed()
    paper.log.emit(ServiceStarted(directory=cursed))

    assert ("RuntimeError" in capfd.readouterr().err) is development
    assert paper.records()[0]["event"] == "log.dropped"


def test_record_that_cannot_be_made_is_dropped_when_standard_error_is_full(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standard error that takes nothing is no reason for `emit` to raise."""
    monkeypatch.setattr(subject, "EXPLAIN_DROPS", True)
    cursed: Any = Cursed()
    with open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", full)
        paper.log.emit(ServiceStarted(directory=cursed))
        monkeypatch.undo()
        with suppress(OSError):
            full.close()

    assert paper.log.sink.lost == 1


SCALARS = st.one_of(
    st.text(),
    st.text(st.characters(min_codepoint=0xD7FF, max_codepoint=0xE000), max_size=2000),
    st.builds(lambda text, count: text * count, st.text(max_size=5), st.integers(min_value=0, max_value=3000)),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(),
    st.booleans(),
    st.binary(),
    st.none(),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=50), st.builds(Cursed))
EVENTS = st.sampled_from(catalogue()).flatmap(lambda event: st.builds(event, **dict.fromkeys(event.keys, VALUES)))


@pytest.mark.parametrize("format_", ["json", "console"])
@settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(event=EVENTS)
def test_emit_never_raises(format_: str, event: Event) -> None:
    """Whatever the fields hold, a log call returns, and makes one line that a pipe takes whole, or a count."""
    with ExitStack() as stack:
        paper = Paper(stack, level="debug", format=format_)
        paper.log.emit(event)
        lost = paper.log.sink.lost
        [line] = paper.lines()

    assert len(line) < select.PIPE_BUF
    assert ("log.dropped" if lost else event.name).encode() in line


@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_a_number_that_json_lacks(paper: Paper, number: float) -> None:
    """What JSON cannot say of a number is null, so that every line parses."""
    assert None is paper.said(StatusReported(uptime=number))["echod.uptime"]


# -- what is dropped --------------------------------------------------------------------------------------------------


def test_dropped_lines_are_said_once(paper: Paper) -> None:
    """When the log takes lines again, one line says how many were dropped, and the scoreboard says the same."""
    total = 2 * QUEUE_BYTES // 100
    for number in range(total):
        paper.log.emit(ConnectionReceived(id=number, count=1))
    records = [orjson.loads(line) for line in paper.lines()]
    dropped = records[-1]["echod.log.dropped"]

    assert {"timestamp": NOW, "level": "warning", "event": "log.dropped", "echod.log.dropped": dropped} == records[-1]
    assert list(range(total - dropped)) == [record["echod.connection.id"] for record in records[:-1]]
    assert dropped == paper.row[Column.LOG_DROPPED]

    paper.log.emit(SignalReceived())

    assert ["signal.received"] == [record["event"] for record in paper.records()]


def test_dropped_again(paper: Paper) -> None:
    """A second time of dropping is said by its own number; the scoreboard has the sum."""
    for count in (2, 3):
        paper.log.sink.lost = count
        paper.log.flush()

    assert [2, 3] == [record["echod.log.dropped"] for record in paper.records()]
    assert 5 == paper.row[Column.LOG_DROPPED]


def test_nothing_is_said_while_lines_wait(paper: Paper) -> None:
    """While the log is stuck the count goes to the scoreboard at once, and the line waits for its turn."""
    jam(paper)
    for count in (3, 4):
        paper.log.sink.lost = count
        paper.log.flush()
    counted = paper.row[Column.LOG_DROPPED]
    records = paper.records()

    assert (7, "log.dropped", 7) == (counted, records[-1]["event"], records[-1]["echod.log.dropped"])
    assert 1 == sum(record["event"] == "log.dropped" for record in records)


def jam(paper: Paper) -> None:
    """Write until the log takes no more."""
    while not paper.log.sink.pending:
        paper.log.emit(SignalReceived())
        paper.log.flush()


def test_waiting_says_whether_to_flush(paper: Paper) -> None:
    """Who turns the loop asks only this: lines that the log did not take are tried again, and no others."""
    told = [paper.log.waiting]
    paper.log.emit(SignalReceived())
    told.append(paper.log.waiting)
    paper.log.flush()
    told.append(paper.log.waiting)
    jam(paper)
    told.append(paper.log.waiting)
    paper.everything()
    told.append(paper.log.waiting)
    jam(paper)
    paper.log.move_to(paper.board.row(3))

    assert [False, True, False, True, False] == told
    assert not paper.log.waiting


def test_a_drop_that_is_not_wanted(paper: Paper) -> None:
    """An operator may suppress `log.dropped`; the count is kept all the same."""
    paper.configure(suppress=["log.dropped"])
    paper.log.sink.lost = 7

    assert ([], 7) == (paper.records(), paper.row[Column.LOG_DROPPED])


def test_drain_says_what_was_dropped(paper: Paper) -> None:
    """The end of a process gives a reader a moment, and the last line is the count."""
    paper.log.emit(SignalReceived())
    paper.log.sink.lost = 1
    paper.log.drain(0.1)

    assert ["signal.received", "log.dropped"] == [
        record["event"] for record in map(orjson.loads, os.read(paper.reader, 65536).splitlines())
    ]


def test_move_to(paper: Paper) -> None:
    """The process just forked counts in its own row, and leaves its parent's lines and counts to its parent."""
    jam(paper)
    paper.log.sink.lost = 4
    paper.log.flush()  # counted, and to be said by the parent when it can
    paper.log.sink.lost = 5
    paper.log.move_to(paper.board.row(3))
    os.read(paper.reader, 1 << 20)
    paper.log.emit(SignalReceived())
    paper.log.sink.lost = 2
    said = [(record["event"], record.get("echod.log.dropped")) for record in paper.records()]

    assert [("signal.received", None), ("log.dropped", 2)] == said
    assert (4, 2) == (paper.row[Column.LOG_DROPPED], paper.board.row(3)[Column.LOG_DROPPED])


# -- console ----------------------------------------------------------------------------------------------------------


def test_console(paper: Paper) -> None:
    """On the console a record is one line that people can read, without colours where there is no terminal."""
    paper.configure(format="console")
    paper.log.emit(ConnectionClosed(id=257, reason=CloseReason.PEER_CLOSED, received=5))
    [line] = paper.lines()

    words = line.decode().split()

    assert [NOW, "[info", "]", "connection.closed"] == words[:4]
    assert ["echod.close.reason=peer_closed", "echod.connection.id=257", "echod.io.receive=5"] == sorted(words[4:])


C0 = [chr(number) for number in range(32)]
C1 = [chr(number) for number in range(0x7F, 0xA0)]


@pytest.mark.parametrize(("format_", "controls"), [("json", C0 + C1), ("ecs", C0 + C1), ("console", C0 + C1)])
@pytest.mark.parametrize("text", ["before{}[31mafter", "before {}[31m after"], ids=["word", "words"])
def test_control_characters_are_escaped(paper: Paper, format_: str, controls: list[str], text: str) -> None:
    """No text can move a terminal's cursor, change its colours or begin a line of its own."""
    paper.configure(format=format_)
    for control in controls:
        paper.log.emit(ServiceFailed(error=text.format(control)))
    found = paper.everything().decode()

    assert len(controls) == found.count("\n")
    assert [] == [repr(control) for control in controls if control in found and control != "\n"]


def test_a_huge_text_on_the_console(paper: Paper) -> None:
    """A line for the console fits a pipe too: standard output need not be a terminal."""
    paper.configure(format="console")
    paper.log.crashed(paper, RuntimeError("x" * 100_000))
    [line] = paper.lines()

    assert len(line) < select.PIPE_BUF
    assert b"handler.crashed" in line


def test_a_lone_surrogate_on_the_console(paper: Paper) -> None:
    """What is not UTF-8 is spelt out there as well."""
    paper.configure(format="console")
    paper.log.emit(ServiceStarted(directory="/tmp/\udcff"))

    assert b"udcff" in paper.raw()


@pytest.mark.parametrize(
    ("format_", "terminal", "json"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("json", True, True),
        ("json", False, True),
        ("console", True, False),
        ("console", False, False),
    ],
)
def test_format(paper: Paper, monkeypatch: pytest.MonkeyPatch, format_: str, terminal: bool, json: bool) -> None:
    """The format is what is asked for, and by itself the readable one on a terminal only; colours go with that."""
    monkeypatch.setattr(os, "isatty", lambda fd: terminal)
    paper.configure(format=format_)
    paper.log.emit(LogDropped(count=1))
    line = paper.raw()

    assert (json, terminal and not json) == (line.startswith(b"{"), b"\x1b[" in line)


def test_the_journal_is_told_priorities(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line has the priority of its level in front when the log leads to the journal, and only then."""
    found = os.fstat(paper.log.sink.fd)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    for format_ in ("json", "console"):
        paper.configure(level="debug", format=format_)
        for event in (ConnectionReceived(), SignalReceived(), ListenerPaused(), ServiceFailed()):
            paper.log.emit(event)

    assert [b"<7>", b"<6>", b"<4>", b"<3>"] * 2 == [line[:3] for line in paper.raw().splitlines()]
    monkeypatch.delenv("JOURNAL_STREAM")
    paper.configure(format="json")
    paper.log.emit(SignalReceived())
    assert paper.raw().startswith(b"{")


def test_a_line_for_the_journal_is_written_at_once(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its priority counts among the bytes that a pipe or socket takes whole."""
    found = os.fstat(paper.log.sink.fd)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    paper.configure(format="json")
    lengths = []
    for size in range(3800, 4100):
        paper.log.emit(ServiceFailed(error="x" * size))
        lengths.append(len(paper.raw()))

    assert select.PIPE_BUF == max(lengths)


def test_a_line_without_a_log() -> None:
    """A command that fails has no log, and says the same to the journal."""
    line = subject.journal_line(CommandFailed(error="a\nb"))

    assert line.startswith(b"<3>{")
    assert {"level": "error", "event": "command.failed", "error.message": "a\nb"} == {
        name: value for name, value in orjson.loads(line[3:]).items() if name != "timestamp"
    }
    assert 1 == line.count(b"\n")


def test_a_handler_crash_is_an_error() -> None:
    """The level of an event belongs to its class."""
    assert Level.ERROR is HandlerCrashed.level
