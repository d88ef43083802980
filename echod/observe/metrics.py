"""The numbers of the scoreboard as Prometheus reads them.

Rules
    Names by Prometheus' conventions; the words of reasons are those of the log. No address, no port, nothing that a
    peer has sent is a label: what a scrape brings is bounded.
    Nothing is kept from one scrape to the next. Whichever worker is asked, the answer is that of the whole daemon.

Known limit: the descriptors of a process that belongs to another user are not shown, so workers that root's daemon runs
as somebody else show their own only. Connections that were lost with a worker are not in the histogram of durations.
"""

from __future__ import annotations

import platform
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import echod
from echod.observe.scoreboard import CLOSED, DROPPED, DURATIONS, REFUSED, STALLS, Column

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from echod.observe.scoreboard import Histogram, Scoreboard


class Metrics(Collector):
    """Collects everything anew for each scrape."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._pid = 0
        self._process = ProcessCollector(pid=lambda: self._pid, registry=CollectorRegistry())

    def collect(self) -> Iterator[Metric]:
        """Return all families of metrics."""
        yield InfoMetricFamily(
            "echod_build",
            "Which echod this is.",
            value={"version": echod.__version__, "python_version": platform.python_version()},
        )
        yield from self._connections()
        yield from self._datagrams()
        yield from self._daemon()
        yield from self._processes()

    def _connections(self) -> Iterator[Metric]:
        total = self._board.total
        yield self._counter("echod_connections_accepted", "Connections opened.", Column.ACCEPTED)
        yield self._by_reason("echod_connections_closed", "Connections ended, by reason.", CLOSED)
        yield self._by_reason("echod_connections_refused", "Connections turned away, by reason.", REFUSED)
        yield GaugeMetricFamily("echod_connections_active", "Connections open now.", total(Column.ACTIVE))
        yield GaugeMetricFamily("echod_connections_limit", "Connections that may be open at once.", total(Column.LIMIT))
        moved = CounterMetricFamily(
            "echod_io_bytes",
            "Bytes of connections, in and out; those of open ones are at most a second old.",
            labels=["direction"],
        )
        moved.add_metric(["receive"], total(Column.RECEIVED))
        moved.add_metric(["transmit"], total(Column.ECHOED))
        yield moved
        yield self._counter(
            "echod_io_discarded_bytes", "Bytes read from connections that were ending already.", Column.DISCARDED
        )
        yield self._histogram("echod_connection_duration_seconds", "How long connections lived.", DURATIONS)

    def _datagrams(self) -> Iterator[Metric]:
        yield self._counter("echod_datagrams_answered", "Datagrams sent back.", Column.DATAGRAMS)
        yield self._counter("echod_datagrams_bytes", "Bytes of the datagrams sent back.", Column.DATAGRAM_BYTES)
        yield self._by_reason("echod_datagrams_dropped", "Datagrams not answered, by reason.", DROPPED)

    def _daemon(self) -> Iterator[Metric]:
        total = self._board.total
        yield self._histogram(
            "echod_loop_stall_seconds",
            "How long turns of the loop took during which all else waits; those of a millisecond and more.",
            STALLS,
        )
        yield self._counter("echod_defects", "Defects of echod that it has met; see handler.crashed.", Column.CRASHED)
        yield self._counter("echod_log_dropped_lines", "Lines that the log could not take.", Column.LOG_DROPPED)
        yield GaugeMetricFamily(
            "echod_config_last_reload_successful", "0 when the last reload was refused.", total(Column.RELOADED)
        )
        yield GaugeMetricFamily(
            "echod_config_last_reload_success_timestamp_seconds",
            "When the configuration came into force.",
            total(Column.RELOADED_AT),
        )
        yield GaugeMetricFamily("echod_ready", "1 while readyz says so.", total(Column.READY))
        yield GaugeMetricFamily("echod_workers", "Workers that take connections.", total(Column.ACCEPTING))
        yield GaugeMetricFamily(
            "echod_workers_configured", "Workers that the configuration asks for.", total(Column.WORKERS)
        )
        yield self._counter("echod_worker_restarts", "Workers that died and are replaced.", Column.DIED)

    def _processes(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for row, pid in enumerate(self._board.column(Column.PID)):
            if not pid:
                continue
            self._pid = pid
            label = {"process": f"worker-{row}" if row else "supervisor"}
            for found in self._process.collect():
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, label, sample.value)
        yield from families.values()

    def _counter(self, name: str, text: str, column: Column) -> Metric:
        return CounterMetricFamily(name, text, self._board.total(column))

    def _by_reason(self, name: str, text: str, columns: Mapping[str, int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=["reason"])
        for reason, column in columns.items():
            family.add_metric([reason], self._board.total(column))
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
        counts = accumulate(self._board.total(column) for column in range(histogram.first + 1, histogram.end))
        total = self._board.total(histogram.first) / 1_000_000
        return HistogramMetricFamily(name, text, buckets=list(zip(bounds, counts, strict=True)), sum_value=total)
