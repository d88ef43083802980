"""The installed service under systemd: what its unit promises."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from tests.system import clients
from tests.system.clients import Load, ping, read_to_end
from tests.system.daemon import ROOT, SCALE, wait_until
from tests.system.service import ADDRESS, CONFIG, ON_MACHINE, Service

pytestmark = ON_MACHINE

KIB = 1024


def configuration(**keys: str) -> str:
    """Return a configuration of a few keys, written table__key."""
    tables: dict[str, list[str]] = {}
    for name, value in keys.items():
        table, key = name.split("__")
        tables.setdefault(table, []).append(f"{key} = {value}")
    return "\n".join(line for table, lines in tables.items() for line in [f"[{table}]", *lines])


def test_its_life(service: Service) -> None:
    """Enabled, started, asked, used and stopped: ready when `start` returns, and a clean end when `stop` does."""
    service.machine.systemctl("enable", "echod")
    service.start()
    service.echo()
    shown = service.machine.systemctl("status", "echod").stdout
    asked = service.machine.run("echod", "status", "--json").stdout
    pid = service.main_pid()
    service.machine.systemctl("stop", "echod")

    assert service.machine.path("/etc/systemd/system/multi-user.target.wants/echod.service").is_symlink()
    assert "active (running)" in shown
    assert 'Status: "Serving with 1 worker' in shown
    assert ("ready", pid) == (json.loads(asked)["state"], json.loads(asked)["pid"])
    assert {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0", "NRestarts": "0"} == service.show(
        "ActiveState", "Result", "ExecMainStatus", "NRestarts"
    )
    assert not service.machine.path("/run/echod").exists()


def test_a_reload_is_over_when_systemctl_returns(service: Service) -> None:
    """The new value is in force, no process is another one, and open connections have not noticed."""
    service.configure('[daemon]\nworkers = 2\n[[listener]]\naddress = "127.0.0.1:10000"\n')
    service.start()
    before = (service.main_pid(), service.workers())
    with service.connect() as old:
        ping(old)
        service.configure('[daemon]\nworkers = 2\n[[listener]]\naddress = "127.0.0.1:10001"\n')
        service.machine.systemctl("reload", "echod")
        service.echo(("127.0.0.1", 10001))
        with pytest.raises(ConnectionRefusedError):
            service.connect()
        ping(old)

    assert before == (service.main_pid(), service.workers())
    assert {"ActiveState": "active", "ReloadResult": "success"} == service.show("ActiveState", "ReloadResult")


def test_a_bad_reload_fails_and_changes_nothing(service: Service) -> None:
    """`systemctl reload` fails, the journal has the line with file, line and key, and the service goes on."""
    service.start()
    before = (service.main_pid(), service.workers())
    with service.connect() as old:
        ping(old)
        service.configure("[limits]\nmax_conections = 5\n")
        failed = service.machine.systemctl("reload", "echod", check=False)
        ping(old)
    service.echo()
    errors = [entry for entry in service.journal() if entry["PRIORITY"] == "3"]
    said = f'{CONFIG}:2: limits.max_conections: unknown key, did you mean "max_connections"?'

    assert 1 == failed.returncode
    assert before == (service.main_pid(), service.workers())
    assert {"ActiveState": "active", "SubState": "running"} == service.show("ActiveState", "SubState")
    assert ["reload.refused", "command.failed"] == [json.loads(entry["MESSAGE"])["event"] for entry in errors]
    assert all(json.dumps(said)[1:-1] in entry["MESSAGE"] for entry in errors)


def test_a_stop_takes_no_longer_than_the_drain(service: Service) -> None:
    """A peer that never reads is cut at the end of drain_timeout, and the stop is a success all the same."""
    service.configure(configuration(daemon__drain_timeout='"2s"', limits__buffer='"64KiB"'))
    service.start()
    with (
        service.machine.network(),
        Load.open(ADDRESS, 1, 2 * clients.MIB, 1, receive_buffer=4096, reads="never", hold_open=True) as load,
    ):
        load.run(0.5)
        started = time.monotonic()
        service.machine.systemctl("stop", "echod")
        took = time.monotonic() - started

    assert 2 <= took <= 3 * SCALE
    assert {"Result": "success", "ExecMainStatus": "0"} == service.show("Result", "ExecMainStatus")
    assert [1] == [record["echod.connections.cut"] for record in service.records("service.stopped")]


def test_a_long_drain_is_not_cut_short(service: Service) -> None:
    """A drain_timeout beyond TimeoutStopSec= is kept, since echod asks for more time as it drains."""
    service.drop_in("[Service]\nTimeoutStopSec=1s\n")
    service.configure(configuration(daemon__drain_timeout='"3s"', limits__buffer='"64KiB"'))
    service.start()
    with (
        service.machine.network(),
        Load.open(ADDRESS, 1, 2 * clients.MIB, 1, receive_buffer=4096, reads="never", hold_open=True) as load,
    ):
        load.run(0.5)
        started = time.monotonic()
        service.machine.systemctl("stop", "echod")
        took = time.monotonic() - started

    assert 3 <= took <= 4 * SCALE
    assert {"Result": "success"} == service.show("Result")


def test_a_supervisor_that_is_killed_is_back(service: Service) -> None:
    """Within 5 s the next connect works; what the old workers held was sent, and none of them is left."""
    service.start()
    before = [service.main_pid(), *service.workers()]
    with (
        service.machine.network(),
        Load.open(ADDRESS, 1, 2 * clients.MIB, 1, receive_buffer=4096, reads="never", hold_open=True) as load,
    ):
        (client,) = load.clients
        load.run(0.5)
        killed = time.monotonic()
        service.kill("KILL", before[0])
        client.reads = "always"
        load.run(5)
        wait_until(lambda: service.main_pid() not in (0, before[0]), 5, "the new supervisor")
        service.machine.wait_for("echod", ActiveState="active")
        took = time.monotonic() - killed
    service.echo()
    closed = [record for record in service.records("connection.closed") if record["client.port"] == client.port]

    assert took <= 5 * SCALE
    assert [] == [pid for pid in before if service.process(pid, "").exists()]
    assert {"NRestarts": "1"} == service.show("NRestarts")
    assert ["supervisor_lost"] == [record["echod.close.reason"] for record in closed]
    assert (client.end, client.wrong, client.received) == ("fin", 0, closed[0]["echod.io.receive"])
    assert closed[0]["echod.io.transmit"] == client.received


def test_a_supervisor_that_hangs_is_replaced(service: Service) -> None:
    """The watchdog ends it when it is stopped for longer than WatchdogSec=."""
    service.drop_in("[Service]\nWatchdogSec=1s\n")
    service.start()
    pid = service.main_pid()
    service.kill("STOP", pid)
    wait_until(lambda: service.main_pid() not in (0, pid), 10, "the new supervisor")
    service.machine.wait_for("echod", ActiveState="active", NRestarts="1")
    service.echo()

    assert "Watchdog timeout" in service.machine.run("journalctl", "--unit=echod", "--output=cat").stdout


def test_a_worker_that_hangs_is_replaced(service: Service) -> None:
    """The supervisor sees to it: systemd has nothing to do, and the watchdog is fed meanwhile."""
    service.start()
    (worker,) = service.workers()
    service.kill("STOP", worker)
    wait_until(lambda: service.workers() not in ([], [worker]), 15, "the new worker")
    service.machine.wait_for("echod", ActiveState="active", NRestarts="0")
    wait_until(lambda: service.records("worker.died"), 5, "the record of the worker's death")
    service.echo()

    assert not service.process(worker, "").exists()


def test_a_broken_configuration_is_one_failed_start(service: Service) -> None:
    """No loop of starts: the exit status has its name, and the journal the line with file, line and key."""
    service.configure('[daemon]\nworkers = "many"\n')
    failed = service.machine.systemctl("start", "echod", check=False)
    shown = service.machine.systemctl("status", "echod", check=False).stdout
    (entry,) = service.journal()

    assert 1 == failed.returncode
    assert {"ActiveState": "failed", "SubState": "failed", "NRestarts": "0", "ExecMainStatus": "78"} == service.show(
        "ActiveState", "SubState", "NRestarts", "ExecMainStatus"
    )
    assert "status=78/CONFIG" in shown
    assert f"{CONFIG}:2: daemon.workers: must be an integer from 1 to 128" in shown
    assert ("3", "command.failed") == (entry["PRIORITY"], json.loads(entry["MESSAGE"])["event"])


def test_the_journal_has_whole_records_with_priorities(service: Service) -> None:
    """Info is 6 and error 3, and each message is one JSON object without the prefix that says so."""
    service.start()
    service.echo()
    service.configure("[limits]\nbuffer = 1\n")
    service.machine.systemctl("reload", "echod", check=False)
    service.machine.systemctl("stop", "echod")
    found = {(json.loads(entry["MESSAGE"])["level"], entry["PRIORITY"]) for entry in service.journal()}

    assert {("info", "6"), ("error", "3")} == found


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
def test_the_journal_can_be_asked_with_jq(service: Service) -> None:
    """What the manual page proposes gives the reason of each connection's end; every line is JSON."""
    service.start()
    service.echo()
    service.machine.systemctl("stop", "echod")
    query = 'select(.event == "connection.closed") | ."echod.close.reason"'
    asked = f"journalctl --after-cursor='{service.cursor}' _SYSTEMD_UNIT=echod.service --output=cat | jq -r '{query}'"
    service.machine.run("journalctl", "--sync")

    assert "peer_closed\n" == service.machine.run("sh", "-c", asked).stdout
    assert query.replace("-", "\\-") in (ROOT / "man/echod.8").read_text()


def test_its_connections_end_well_with_it(service: Service) -> None:
    """Who is connected and quiet when the service stops gets FIN, not a reset."""
    service.start()
    with service.connect() as quiet:
        ping(quiet)
        service.machine.systemctl("stop", "echod")

        assert (b"", "fin") == read_to_end(quiet)
