"""Events as lines: structlog turns each into one JSON object, or into one readable line on a terminal.

Rules
    `emit` never raises and never blocks; `sink` says how. What is dropped is counted on the scoreboard, and said in one
    `log.dropped` line as soon as the log takes lines again.
    A record is at most PIPE_BUF bytes long, so that a pipe takes it whole.
    Whatever a text holds, a line of JSON has no control character in it, nor a mark that turns the direction of what
    follows: those are escaped, and a reader of the JSON gets them back.
    Of one event no more is written than its share (`cap`); how much was not, is said in `log.suppressed`.
    Nothing is ever logged in a signal handler.
"""

from __future__ import annotations

import os
import re
import select
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from time import time_ns
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from echod.config.wording import printable
from echod.events import Event, HandlerCrashed, Level, LogDropped, LogSuppressed, catalogue
from echod.observe import ecs, journal
from echod.observe.cap import Cap
from echod.observe.scoreboard import Column
from echod.observe.sink import Sink

if TYPE_CHECKING:
    from structlog.typing import Processor

    from echod.config import models
    from echod.observe.scoreboard import Row

LENGTHS = (1024, 256, 64)
"""Characters that texts, and a quarter of it that list entries, are cut to, one after the other until a record fits."""

LONGEST_LIST = 16
"""Entries of a list in a record that had to be cut."""

LONGEST_LINE = select.PIPE_BUF - max(map(len, journal.PREFIXES.values()))
"""Bytes of a line, so that with the journal's prefix it is still written at once."""

EXPLAIN_DROPS = sys.flags.dev_mode
"""Whether a record that cannot be made prints the cause on standard error: under `-X dev`, as tests run the daemon."""

_DEL = 0x7F
_DISGUISES = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
"""What JSON allows and a terminal may act on: DEL and the C1 controls, what ends a line, what is not seen."""


class Log:
    """The log of one process."""

    def __init__(self, settings: models.Log, fd: int, row: Row) -> None:
        """Take over the descriptor `fd`; dropped lines are counted in `row`."""
        self.sink = Sink(fd)
        self.waiting = False
        """Whether there is something for `flush` to write."""
        self._row = row
        self._unsaid = 0
        self._cap = Cap(0)
        self.configure(settings)

    def configure(self, settings: models.Log) -> None:
        """Use other settings from now on, all but the file."""
        terminal = os.isatty(self.sink.fd)
        form = settings.format
        if form == "auto":
            form = "console" if terminal else "json"
        forms = {"json": _to_json, "ecs": _to_ecs, "console": _to_console(colors=terminal)}
        processors = [forms[form], _for_journal] if journal.receives(self.sink.fd) else [forms[form]]
        logger: _Recorder = structlog.wrap_logger(
            self.sink, processors=processors, wrapper_class=_Recorder, context_class=dict
        ).bind()
        self._record = logger.record
        self._end_period()
        self._cap = Cap(settings.cap)
        self.verbose = settings.level == Level.DEBUG
        self._unwanted = frozenset(settings.suppress) | _below(settings.level)

    def emit(self, event: Event) -> None:
        """Queue the line of `event`; `flush` writes it."""
        if event.name not in self._unwanted and self._cap.admits(event.name):
            self._write(event)

    def crashed(self, handler: object, error: Exception) -> None:
        """Report an exception that a handler has let out, and count it: a defect of echod."""
        self._row[Column.CRASHED] += 1
        self.emit(
            HandlerCrashed(
                handler=type(handler).__name__,
                error=type(error).__name__,
                message=str(error),
                stacktrace="".join(traceback.format_exception(error)[-6:]),
            )
        )

    def flush(self) -> None:
        """Write what the descriptor takes now, and once it takes everything again, say how much was dropped."""
        sink = self.sink
        sink.flush()
        if sink.lost:
            self._row[Column.LOG_DROPPED] += sink.lost
            self._unsaid += sink.lost
            sink.lost = 0
        if self._unsaid and not sink.pending:
            self.emit(LogDropped(count=self._unsaid))
            self._unsaid = 0
            sink.flush()
        self.waiting = sink.pending

    def tick(self) -> None:
        """End the period of the cap once it is over; call it about once a second."""
        if self._cap.due():
            self._end_period()

    def drain(self, patience: float) -> None:
        """Flush at the end of the process, giving a slow reader `patience` seconds."""
        self._end_period()
        self.flush()
        self.sink.drain(patience)
        self.flush()

    def move_to(self, row: Row) -> None:
        """Become the log of the process just forked, which has `row`."""
        self._row = row
        self._unsaid = 0
        self._cap.close()
        self.sink.forget()
        self.waiting = False

    def _write(self, event: Event) -> None:
        self.waiting = True
        try:
            self._record(event)
        except Exception:  # noqa: BLE001  # whatever is wrong with one record, the echo goes on
            self.sink.lost += 1
            if EXPLAIN_DROPS:
                with suppress(OSError):
                    traceback.print_exc()

    def _end_period(self) -> None:
        for name, count in self._cap.close():
            if LogSuppressed.name not in self._unwanted:
                self._write(LogSuppressed(event=name, count=count))  # past the cap: one for each event at the most


class _Recorder(structlog.BoundLoggerBase):
    """structlog's logger for facts: they have no context that would have to be copied, and carry their level."""

    def record(self, event: Event) -> None:
        """Send `event` through the processors, and what comes out to the sink."""
        passed: Any = event
        for processor in self._processors:
            passed = processor(self._logger, event.level, passed)
        self._logger.put(passed)


def journal_line(event: Event) -> bytes:
    """Return the line of `event` for systemd's journal, for a process that has no log."""
    return _for_journal(None, event.level, _to_json(None, event.level, event))


def _below(level: Level) -> frozenset[str]:
    order = list(Level)
    return frozenset(event.name for event in catalogue() if order.index(event.level) < order.index(level))


def _timestamp() -> str:
    seconds, fraction = divmod(time_ns() // 1000, 1_000_000)
    return f"{_second(seconds)}.{fraction:06}Z"


@lru_cache(maxsize=1)  # many records fall into one second, and this is a third of what a record costs
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


def _to_json(_logger: object, _level: str, event: Any) -> bytes:
    return _line(_record(event))


def _for_journal(_logger: object, level: Any, line: Any) -> bytes:
    prefix: bytes = journal.PREFIXES[level]
    return prefix + bytes(line)


def _to_ecs(_logger: object, _level: str, event: Any) -> bytes:
    return _line(ecs.document(_record(event)))


def _record(event: Event) -> dict[str, Any]:
    record: dict[str, Any] = {"timestamp": _timestamp(), "level": event.level, "event": event.name}
    keys = event.keys
    for attribute, value in vars(event).items():
        if value is not None:
            record[keys[attribute]] = value
    return record


def _line(record: dict[str, Any]) -> bytes:
    try:
        line = _encode(record)
        if len(line) <= LONGEST_LINE:
            return line
    except TypeError:  # a lone surrogate, in a path that is not UTF-8, or an integer beyond 64 bits
        pass
    for length in LENGTHS:
        line = _encode({key: _cut(value, length) for key, value in record.items()})
        if len(line) <= LONGEST_LINE:
            return line
    raise ValueError("no way to cut this record")


def _encode(record: dict[str, Any]) -> bytes:
    line = orjson.dumps(record, default=repr, option=orjson.OPT_APPEND_NEWLINE)
    if line.isascii() and _DEL not in line:
        return line
    return _DISGUISES.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode()).encode()


def _cut(value: object, length: int) -> object:
    if isinstance(value, list):
        return [_cut(entry, length // 4) for entry in value[:LONGEST_LIST]]
    if isinstance(value, str):
        return printable(value, length - 1)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    return value


def _to_console(*, colors: bool) -> Processor:
    renderer = structlog.dev.ConsoleRenderer(colors=colors)

    def render(logger: Any, level: str, event: Any) -> bytes:
        record = _record(event)
        for length in LENGTHS:
            # Always, and not only what is too long: the renderer leaves control characters in short words as they are.
            text = renderer(logger, level, {key: _cut(value, length) for key, value in record.items()})
            line = text.encode("utf-8", "backslashreplace") + b"\n"
            if len(line) <= LONGEST_LINE:
                return line
        raise ValueError("no way to cut this record")

    return render
