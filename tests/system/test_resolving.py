"""Names are resolved beside the supervisor's loop: a name server that does not answer delays nothing but the reload."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from signal import SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2
from typing import TYPE_CHECKING, Any

import pytest

from echod.process import privileges
from tests.system import proc
from tests.system.clients import connect, ping
from tests.system.daemon import ECHOD, ROOT, SCALE, Daemon, environment, wait_until
from tests.system.resolving import NameServers
from tests.system.test_manager import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from signal import Signals

    from tests.conftest import Size
    from tests.system.daemon import Starter

LIMIT = 10.0
"""Seconds that all names of a start or reload may take."""

AT_ONCE = 3.0
"""Seconds in which a process ends that waits for a name server, on a loaded machine; the resolver itself waits 20 s."""

LITERAL = {"name": "echo", "address": "127.0.0.1:0"}
UNIX = {"name": "path", "kind": "unix"}
NAMED = {"name": "web", "address": "echo.example:0"}
STRACE = ["strace", "-qq"]
TOO_SLOW = 'listener "web": echo.example:0: name server did not answer within 10 s'


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[NameServers]:
    """Run two silent name servers."""
    with NameServers(tmp_path) as made:
        yield made


def begin_reload(daemon: Daemon, servers: NameServers) -> None:
    """Start a reload that has to ask the name servers, and return once it has asked."""
    daemon.write(listener=[LITERAL, NAMED])
    daemon.signal(SIGHUP)
    assert servers.wait_asked() == "echo.example"


def wait_reloaded(daemon: Daemon, timeout: float = 15.0) -> dict[str, Any]:
    """Wait for the end of the reload and return its report."""

    def ended() -> dict[str, Any] | None:
        report: dict[str, Any] = daemon.state()["reload"]
        return report if report["age"] is not None else None

    report: dict[str, Any] = wait_until(ended, timeout, "the end of the reload")
    return report


def lookups(daemon: Daemon) -> list[int]:
    """Return the processes of a daemon that are neither the supervisor nor a worker."""
    workers = [worker["pid"] for worker in daemon.state().get("workers", [])]
    return [pid for pid in daemon.left_over() if pid not in {daemon.pid, *workers}]


def wait_gone(daemon: Daemon) -> None:
    """Wait for the end of a lookup that was killed: long before its alarm, which comes after LIMIT."""
    wait_until(lambda: not daemon.left_over(), 2.0, "the end of the lookup")


def test_reload_waits_for_name_server_while_supervisor_goes_on(
    start: Starter, servers: NameServers, tmp_path: Path
) -> None:
    """Watchdog, replacement of workers and echo go on; after 10 s the reload is refused with one line."""
    recorder = Recorder(tmp_path / "notify")
    with recorder.socket:
        env = environment(NOTIFY_SOCKET=str(recorder.path), WATCHDOG_USEC="500000")
        daemon = start(env=env, prefix=servers.prefix, expect=["reload.refused", "worker.died"])
        began = time.monotonic()
        begin_reload(daemon, servers)
        beats = recorder.read().count("WATCHDOG=1")
        recorder.until(lambda heard: heard.count("WATCHDOG=1") >= beats + 4, timeout=4.0)
        (worker,) = (worker["pid"] for worker in daemon.state()["workers"])
        os.kill(worker, SIGKILL)
        daemon.wait_for("worker.started", count=2, timeout=2.0)
        with connect(daemon.address()) as client:
            ping(client)
        assert daemon.state()["state"] == "reloading"
        report = wait_reloaded(daemon)
        took = time.monotonic() - began

        assert report["errors"] == [TOO_SLOW]
        assert report["exit_code"] == 1
        assert LIMIT <= took < LIMIT + 2 * SCALE
        assert daemon.state()["state"] == "ready"
        wait_until(lambda: not lookups(daemon), 2.0, "the end of the lookup")
        with connect(daemon.address()) as client:
            ping(client)
        daemon.stop()


@pytest.mark.parametrize("number", [SIGTERM, SIGQUIT])
def test_stop_during_reload_does_not_wait_for_name_server(
    start: Starter, servers: NameServers, number: Signals
) -> None:
    """The reload ends with the daemon, and so does the process that looks up its names."""
    daemon = start(prefix=servers.prefix)
    begin_reload(daemon, servers)

    assert daemon.stop(number) < AT_ONCE
    wait_gone(daemon)


def test_reload_completes_when_name_server_answers_late(start: Starter, servers: NameServers) -> None:
    """A slow answer is used; requests during the wait cause one more reload, and no zombie is left."""
    daemon = start(prefix=servers.prefix)
    begin_reload(daemon, servers)
    daemon.signal(SIGHUP)
    daemon.signal(SIGHUP)
    daemon.wait_for("signal.received", count=2)
    servers.answer("127.0.0.1")
    daemon.wait_for("reload.completed", count=2)
    daemon.pids()

    assert [host for host, _ in daemon.addresses("web")] == ["127.0.0.1"]
    with connect(daemon.address("web")) as client:
        ping(client)
    assert daemon.state()["generation"] == 3
    zombies = [pid for pid in proc.all_pids() if proc.stat(pid)[:2] == ["Z", str(daemon.pid)]]
    assert zombies == []


def test_lookup_ends_when_supervisor_is_killed(start: Starter, servers: NameServers) -> None:
    """A lookup whose supervisor is gone ends by its own alarm."""
    daemon = start(prefix=servers.prefix)
    began = time.monotonic()
    begin_reload(daemon, servers)
    (pid,) = lookups(daemon)
    daemon.signal(SIGKILL)
    daemon.wait_exit()
    wait_until(lambda: not proc.alive(pid), LIMIT + 1, "the end of the lookup")

    assert time.monotonic() - began < LIMIT + 2 * SCALE


def begin_start(daemon: Daemon, prefix: Sequence[str], *options: str) -> subprocess.Popen[str]:
    """Start a daemon by hand, without waiting for it."""
    command = [*prefix, *ECHOD, "run", *options, "-c", str(daemon.file)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment(), cwd=ROOT
    )


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
@pytest.mark.parametrize("option", ["--daemon", ""])
def test_signal_ends_a_start_that_waits_for_name_server(
    servers: NameServers, tmp_path: Path, number: Signals, option: str
) -> None:
    """The process ends by the signal, at once and in silence, and leaves no file and no process."""
    daemon = Daemon(tmp_path, listeners=[LITERAL, NAMED], log={"file": str(tmp_path / "log")})
    with begin_start(daemon, servers.prefix, *filter(None, [option])) as process:
        servers.wait_asked()
        began = time.monotonic()
        process.send_signal(number)
        output, _ = process.communicate(timeout=15 * SCALE)

    assert time.monotonic() - began < AT_ONCE
    assert process.returncode == -number
    assert output == ""
    assert list(daemon.runtime.glob("*")) == []
    wait_gone(daemon)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_signal_ends_a_start_as_pid_1(servers: NameServers, tmp_path: Path, number: Signals) -> None:
    """The first process of a pid namespace, which no default action of a signal ends, exits with 128 and the number."""
    daemon = Daemon(tmp_path, listeners=[LITERAL, NAMED])
    with begin_start(daemon, servers.prefix_with("--pid", "--fork", "--mount-proc")) as unshare:
        servers.wait_asked()
        (init,) = proc.children(unshare.pid)
        began = time.monotonic()
        os.kill(init, number)
        output, _ = unshare.communicate(timeout=15 * SCALE)

    assert time.monotonic() - began < AT_ONCE
    assert unshare.returncode == 128 + number
    assert output == ""
    assert list(daemon.runtime.glob("*")) == []


def test_signal_at_any_moment_of_a_start_ends_it_in_silence(tmp_path: Path, size: Size) -> None:
    """Whenever TERM comes, while Python imports or sockets are bound, there is no traceback and nothing is left."""
    count = size(10, 100)
    for number in range(count):
        directory = tmp_path / str(number)
        directory.mkdir()
        daemon = Daemon(directory, listeners=[LITERAL], log={"file": str(directory / "log")})
        with begin_start(daemon, []) as process:
            time.sleep(0.1 + 0.7 * SCALE * number / count)  # the moments are what is tested
            process.send_signal(SIGTERM)
            output, _ = process.communicate(timeout=15 * SCALE)

        assert output == ""
        assert process.returncode in {-SIGTERM, 0}, "ended by the signal, or stopped by the supervisor"
        assert list(daemon.runtime.glob("*")) == []


@pytest.mark.xfail(
    not hasattr(privileges, "drop_to"), reason="workers call initgroups(3), which asks for groups", strict=True
)
def test_workers_call_no_name_service(start: Starter, tmp_path: Path) -> None:
    """From its fork on a worker reads no file of a name service and connects to none, whatever it serves and logs."""
    if not shutil.which("strace") or subprocess.run([*STRACE, "-o", "/dev/null", "true"], check=False).returncode:
        pytest.skip("needs strace, and the right to trace")
    path = tmp_path / "echo.sock"
    daemon = start(
        prefix=[*STRACE, "-D", "-ff", "-o", str(tmp_path / "trace"), "-e", "trace=%file,connect"],
        listeners=[LITERAL, {"name": "udp", "kind": "udp", "address": "localhost:0"}, UNIX | {"address": str(path)}],
        admin={"address": "localhost:0"},
        log={"level": "debug"},
    )
    (worker,) = daemon.workers()
    with connect(daemon.address()) as client:
        ping(client)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(5)
        peer.sendto(b"who?", daemon.address("udp"))
        assert peer.recv(100) == b"who?"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        ping(client)
    daemon.reload(limits={"idle_timeout": "5m"})
    daemon.stop()
    called = (tmp_path / f"trace.{worker}").read_text().splitlines()

    assert any("/proc/self/fd" in line for line in called), "the trace is the worker's"
    assert [line for line in called if "connect(" in line or '"/etc/' in line or '"/var/' in line] == []


def test_start_is_refused_when_name_server_is_silent(servers: NameServers, tmp_path: Path) -> None:
    """After 10 s there is one line with listener and name, and exit code 1."""
    daemon = Daemon(tmp_path, listeners=[LITERAL, NAMED])
    began = time.monotonic()
    with begin_start(daemon, servers.prefix) as process:
        output, _ = process.communicate(timeout=30 * SCALE)

    assert LIMIT <= time.monotonic() - began < LIMIT + 3 * SCALE
    assert output == f"echod: {TOO_SLOW}\n"
    assert process.returncode == 1
    assert list(daemon.runtime.glob("*")) == []


@pytest.mark.parametrize("prefix", [[], ["nohup"]], ids=["plain", "nohup"])
def test_signals_for_the_supervisor_wait_for_the_start(tmp_path: Path, servers: NameServers, prefix: list[str]) -> None:
    """HUP, USR1 and USR2 while a name server is waited for neither end the start nor are lost."""
    log = tmp_path / "log"
    daemon = Daemon(tmp_path, listeners=[NAMED], log={"file": str(log)})
    with begin_start(daemon, [*prefix, *servers.prefix]) as process:
        assert servers.wait_asked() == "echo.example"
        for number in (SIGHUP, SIGUSR1, SIGUSR2):
            process.send_signal(number)
        servers.answer("127.0.0.1")
        wait_until(lambda: daemon.state().get("reload", {}).get("outcome") == "ok", what="the reload")
        events = {json.loads(line)["event"] for line in log.read_text().splitlines()}
        daemon.control({"command": "stop"})
        process.communicate(timeout=10 * SCALE)

    assert process.returncode == 0
    assert {"log.reopened", "status.reported", "reload.completed"} <= events
