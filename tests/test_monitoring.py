"""What ships for Prometheus and Grafana asks for numbers that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod.observe.metrics import Metrics
from echod.observe.scoreboard import Column, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
RULES = ROOT / "etc/prometheus-rules.yml"
DASHBOARD = json.loads((ROOT / "etc/grafana-dashboard.json").read_text())

ALERTS = re.findall(r"^ +expr: (.+)$", RULES.read_text(), re.MULTILINE)
PANELS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
VARIABLES = [each["query"] for each in DASHBOARD["templating"]["list"]]


@pytest.fixture(scope="module")
def exposed() -> Iterator[dict[str, set[str]]]:
    """Return the name of everything that /metrics has, each with the labels that it has."""
    board = Scoreboard()
    board.row(0)[Column.PID] = os.getpid()
    found: dict[str, set[str]] = {}
    for family in Metrics(board).collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    yield found
    board.close()


@pytest.mark.parametrize("query", ALERTS + PANELS + VARIABLES)
def test_every_query_names_what_is_exposed(query: str, exposed: dict[str, set[str]]) -> None:
    """No query asks for a metric that /metrics lacks, nor for a label that this metric lacks."""
    names = re.findall(r"\b(?:echod|process)_[a-z_]+", query)

    assert set() == set(names) - exposed.keys()
    for name, matchers in re.findall(r"\b((?:echod|process)_[a-z_]+){([^}]*)}", query):
        labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers))
        assert set() == labels - exposed[name] - {"instance", "job"}


def test_every_series_is_watched_somewhere(exposed: dict[str, set[str]]) -> None:
    """What is worth exposing is worth a place: each metric of echod's own is in a panel or in an alert."""
    asked = " ".join(ALERTS + PANELS + VARIABLES)
    families = {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in exposed if name.startswith("echod_")}

    assert families - set(re.findall(r"echod_[a-z_]+?(?=_bucket|_sum|_count|\b)", asked)) == {
        "echod_config_last_reload_success_timestamp_seconds",
        "echod_io_discarded_bytes_total",
        "echod_datagrams_bytes_total",
    }


def test_promtool_reads_rules_and_panels(tmp_path: Path) -> None:
    """Prometheus itself takes each alert and each query of the dashboard for one."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed: make peers")
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(PANELS)
    ]
    panels = tmp_path / "panels.yml"
    panels.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # YAML holds JSON
    done = subprocess.run([promtool, "check", "rules", RULES, panels], capture_output=True, text=True, check=False)

    assert (0, [str(len(ALERTS)), str(len(PANELS))]) == (
        done.returncode,
        re.findall(r"(\d+) rules found", done.stdout),
    ), done.stderr


def test_alerts_fire(tmp_path: Path) -> None:
    """Alerts fire for what they are made for, and not before: by the arithmetic of Prometheus itself."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed: make peers")

    def series(name: str, values: str) -> dict[str, str]:
        return {"series": name, "values": values}

    def case(alert: str, at: str, *given: dict[str, str], fires: bool) -> dict[str, object]:
        query = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
        expected = [{"labels": "{}", "value": 1}] if fires else []
        asked = {"expr": f"sum({query})", "eval_time": at, "exp_samples": expected}
        return {"interval": "1m", "input_series": list(given), "promql_expr_test": [asked]}

    ready = series("echod_ready", "1x60")
    slow, all_ = 'echod_loop_stall_seconds_bucket{le="0.5"}', "echod_loop_stall_seconds_count"
    tests = [
        case("EchodDown", "5m", series('up{job="echod"}', "1 1 0x60"), fires=True),
        case("EchodDown", "5m", series('up{job="echod"}', "1x60"), fires=False),
        case("EchodWorkersMissing", "5m", ready, series("echod_workers", "1x60"), fires=False),
        case(
            "EchodWorkersMissing",
            "5m",
            ready,
            series("echod_workers", "1x60"),
            series("echod_workers_configured", "2x60"),
            fires=True,
        ),
        case("EchodReloadRefused", "5m", series("echod_config_last_reload_successful", "0x60"), fires=True),
        case("EchodWorkersDying", "20m", series("echod_worker_restarts_total", "0 0 0 0 0 0 0 0 0 0 5x60"), fires=True),
        case("EchodDefect", "10m", series("echod_defects_total", "0 0 0 0 0 1x60"), fires=True),
        case("EchodStalls", "20m", series(slow, "0x10 3x60"), series(all_, "0x10 4x60"), fires=True),
        case("EchodStalls", "20m", series(slow, "0x10 3x60"), series(all_, "0x10 3x60"), fires=False),
        case("EchodLogDropped", "10m", series("echod_log_dropped_lines_total", "0 0 0 0 0 0 0 7x60"), fires=True),
    ]
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout + done.stderr
