"""The numbers as Prometheus reads them: both formats, read back by parsers that are not ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.exposition import generate_latest as plain
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

import echod
from echod.events import CloseReason, DropReason, RefuseReason
from echod.observe.metrics import Metrics
from echod.observe.scoreboard import CLOSED, DROPPED, DURATIONS, REFUSED, Column, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

README = Path(echod.__file__).parents[1] / "README.md"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Make a scoreboard on which something has happened, in two workers."""
    made = Scoreboard()
    made.row(0)[Column.PID] = os.getpid()
    first, second = made.take_row(()), made.take_row({1})
    first[Column.ACCEPTED], second[Column.ACCEPTED] = 3, 4
    second[Column.PID] = os.getpid()
    first[CLOSED[CloseReason.WORKER_LOST]] = 2
    second[REFUSED[RefuseReason.DENIED]] = 5
    second[DROPPED[DropReason.OVER_RATE]] = 6
    first[Column.RECEIVED], first[Column.ECHOED] = 70, 60
    first[DURATIONS.first] = 1_500_000
    first[DURATIONS.first + 1] = 1
    second[DURATIONS.end - 1] = 1
    yield made
    made.close()


def samples(families: Iterable[Metric]) -> Samples:
    """Return every number by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_both_formats_say_the_same(board: Scoreboard) -> None:
    """What prometheus_client's own parsers read back is what was counted, in either format."""
    text = samples(parse_plain(plain(Metrics(board)).decode()))
    om = samples(parse_openmetrics(openmetrics(Metrics(board)).decode()))  # type: ignore[no-untyped-call]

    assert text.keys() == om.keys()
    for key, value in {
        ("echod_connections_accepted_total", ()): 7,
        ("echod_connections_closed_total", (("reason", "worker_lost"),)): 2,
        ("echod_connections_refused_total", (("reason", "denied"),)): 5,
        ("echod_datagrams_dropped_total", (("reason", "over_rate"),)): 6,
        ("echod_io_bytes_total", (("direction", "receive"),)): 70,
        ("echod_io_bytes_total", (("direction", "transmit"),)): 60,
        ("echod_connection_duration_seconds_sum", ()): 1.5,
        ("echod_connection_duration_seconds_count", ()): 2,
        ("echod_connection_duration_seconds_bucket", (("le", "0.001"),)): 1,
        ("echod_connection_duration_seconds_bucket", (("le", "86400.0"),)): 1,
        ("echod_connection_duration_seconds_bucket", (("le", "+Inf"),)): 2,
    }.items():
        assert (key, value) == (key, text[key])
        assert (key, value) == (key, om[key])


def test_every_reason_is_there_from_the_start(board: Scoreboard) -> None:
    """A reason that has not happened yet is 0: a rate over a series that begins with 1 would miss the first one."""
    found = samples(Metrics(board).collect())
    for name, reasons in {"closed": CloseReason, "refused": RefuseReason}.items():
        for reason in reasons:
            assert (f"echod_connections_{name}_total", (("reason", reason.value),)) in found


def test_every_process_is_there(board: Scoreboard) -> None:
    """Each process has its own series, and one that is gone has none."""
    found = samples(Metrics(board).collect())
    (supervisor,), (worker,) = (
        [value for (name, labels), value in found.items() if name == wanted and labels == (("process", process),)]
        for wanted, process in [
            ("process_cpu_seconds_total", "supervisor"),
            ("process_resident_memory_bytes", "worker-2"),
        ]
    )

    assert supervisor >= 0
    assert worker > 1_000_000
    assert ("process_start_time_seconds", (("process", "worker-1"),)) not in found


def test_a_process_that_has_just_died_spoils_nothing(board: Scoreboard) -> None:
    """A pid that leads nowhere is a process less, and no failure."""
    board.row(1)[Column.PID] = 2**22 + 1

    assert ("echod_connections_accepted_total", ()) in samples(Metrics(board).collect())


def test_every_metric_is_in_the_readme(board: Scoreboard) -> None:
    """The table of metrics has each with its labels, type and meaning, in the order of the page, and no other."""
    expected = []
    for family in Metrics(board).collect():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = sorted({label for sample in family.samples for label in sample.labels if label != "le"})
        shown = f" `{{{', '.join(labels)}}}`" if labels else ""
        expected.append(f"| `{name}`{shown} | {family.type} | {family.documentation} |")

    rows = [line for line in README.read_text().splitlines() if line.startswith(("| `echod_", "| `process_"))]
    assert expected == rows


def test_promtool_is_silent(board: Scoreboard) -> None:
    """Prometheus' own judge of names, types and help texts has nothing to say."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed: make peers")
    page = plain(Metrics(board))
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)

    assert (0, b"", b"") == (done.returncode, done.stdout, done.stderr)
