"""Collects the log of a daemon while it runs: one reader thread, one list of records."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

Record = dict[str, Any]


class LogReader:
    """Reads a descriptor (a pipe to its end, a file for as long as it grows) and parses each line.

    The descriptor belongs to the reader. What is not one JSON object on a line of its own ends up in `malformed`.
    """

    def __init__(self, fd: int) -> None:
        self.records: list[Record] = []
        self.malformed: list[bytes] = []
        self._fd = fd
        self._rest = b""
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="log reader", daemon=True)
        self._thread.start()

    def find(self, event: str, where: Mapping[str, Any] | None = None) -> list[Record]:
        """Return the records of this event so far whose fields are equal to those of `where`."""
        with self._changed:
            return [record for record in self.records if _matches(record, event, where)]

    def wait_for(
        self, event: str, where: Mapping[str, Any] | None = None, *, count: int = 1, timeout: float = 10.0
    ) -> list[Record]:
        """Wait until the event was recorded `count` times; fewer are returned when time is up."""
        end = time.monotonic() + timeout
        with self._changed:
            seen = 0
            found: list[Record] = []
            while True:
                found += [record for record in self.records[seen:] if _matches(record, event, where)]
                seen = len(self.records)
                left = end - time.monotonic()
                if len(found) >= count or left <= 0:
                    return found
                self._changed.wait(left)

    def tail(self, count: int = 30) -> str:
        """Return the last records, for a failing test's report."""
        with self._changed:
            return "\n".join(orjson.dumps(record).decode() for record in self.records[-count:])

    def close(self) -> None:
        """Read what is there and stop. The writers of a pipe must be gone."""
        self._closing = True
        self._thread.join(10)
        if self._thread.is_alive():
            raise AssertionError("the log pipe is still held open: some process of the daemon lives on")
        if self._rest:
            self.malformed.append(self._rest)
            self._rest = b""

    def _read(self) -> None:
        try:
            while True:
                closing = self._closing  # this first, so that nothing written before `close` is missed
                data = os.read(self._fd, 1 << 18)
                if data:
                    self._take(data)
                elif closing or not _grows(self._fd):
                    return
                else:
                    time.sleep(0.005)
        finally:
            os.close(self._fd)

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        records = []
        for line in lines:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                record = None
            if isinstance(record, dict) and "event" in record:
                records.append(record)
            else:
                self.malformed.append(line)
        with self._changed:
            self.records += records
            self._changed.notify_all()


def _grows(fd: int) -> bool:
    return os.path.isfile(f"/proc/self/fd/{fd}")  # noqa: PTH113 # a Path would resolve the link by name


def _matches(record: Record, event: str, where: Mapping[str, Any] | None) -> bool:
    return record["event"] == event and all(record.get(key) == value for key, value in (where or {}).items())
