"""The log behind a pipeline: what jq and a real rsyslog make of it has every field as it was."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.clients import connect, echo_once, ping
from tests.system.daemon import ROOT, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.daemon import Starter

CONNECTIONS = 50


def make_log(start: Starter, file: Path, form: str) -> list[dict[str, Any]]:
    """Run a daemon that logs whatever an ordinary day brings, and return its records."""
    daemon = start(workers=2, log={"file": str(file), "format": form}, limits={"max_connections": 5})
    for _ in range(CONNECTIONS):
        echo_once(daemon.address())
    with connect(daemon.address()) as client:
        ping(client)
        daemon.reload()
    daemon.stop()
    return [json.loads(line) for line in file.read_text().splitlines()]


def lines(text: str) -> list[str]:
    """Return records in an order of their own, each with its keys in order: pipelines may change both."""
    return sorted(json.dumps(json.loads(line), sort_keys=True) for line in text.splitlines())


def test_jq_reads_every_field(start: Starter, tmp_path: Path) -> None:
    """Each line goes through jq and comes out the same, and the fields can be asked for."""
    if not shutil.which("jq"):
        pytest.skip("jq is not installed")
    file = tmp_path / "echod.log"
    records = make_log(start, file, "json")

    def jq(question: str) -> str:
        return subprocess.run(["jq", "-c", question, file], check=True, capture_output=True, text=True).stdout

    asked = jq(
        'select(.event == "connection.closed") | [."client.address", ."echod.io.receive", ."echod.close.reason"]'
    )

    assert records == [json.loads(line) for line in jq(".").splitlines()]
    assert asked.splitlines().count('["127.0.0.1",5,"peer_closed"]') == CONNECTIONS


def test_rsyslog_ships_every_field(start: Starter, tmp_path: Path) -> None:
    """The example file, run by a real rsyslog with its paths changed, ships each record whole."""
    command = shutil.which("rsyslogd") or "/usr/sbin/rsyslogd"
    if not shutil.which(command):
        pytest.skip("rsyslog is not installed")
    file, shipped, config = tmp_path / "echod.log", tmp_path / "shipped.log", tmp_path / "rsyslog.conf"
    text = (ROOT / "etc/shipping/rsyslog.conf").read_text().replace("/var/log/echod", str(tmp_path))
    config.write_text(f'global(workDirectory="{tmp_path}")\n{text}')
    make_log(start, file, "json")
    arguments = [command, "-n", "-f", str(config), "-i", str(tmp_path / "pid")]
    checked = subprocess.run([*arguments, "-N1"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            expected = lines(file.read_text())
            wait_until(
                lambda: shipped.exists() and shipped.read_bytes().count(b"\n") >= len(expected), 20, "all records"
            )
        finally:
            running.terminate()

    assert expected == lines(shipped.read_text())
