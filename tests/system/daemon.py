"""The real daemon as a child process, and the rule that every test of it ends with.

    with Daemon(tmp_path, limits={"buffer": "16KiB"}, workers=2) as daemon:
        with connect(daemon.address()) as client: ...
        daemon.wait_for("connection.closed", {"echod.close.reason": "peer_closed"})

Rule: however a test ends, no process stays behind. When it ends well, `check` holds: nothing but `echod: ` lines on
stderr, each log line one JSON object, nothing above INFO that the test did not `expect`, no orphan, nothing in the
runtime directory after a clean stop. Ports are 0 and read back from the status; waiting is for conditions, with
deadlines.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR2, Signals
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import tomli_w

from tests.system import proc
from tests.system.logs import LogReader, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from tests.system.clients import Address

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [sys.executable, "-X", "dev", "-W", "error"]
ECHOD = [*PYTHON, "-m", "echod"]
SCALE = float(os.environ.get("ECHOD_TEST_SCALE", "1"))  # multiplies the deadlines, on a slow machine
QUIET_LEVELS = ("debug", "info")
STRIPPED = ("NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "INVOCATION_ID")

Config = dict[str, Any]
Starter: TypeAlias = "Callable[..., Daemon]"  # the type of the fixture `start`


class StartFailedError(AssertionError):
    """The daemon ended before it was ready; `code` and `stderr` say how."""

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"echod ended with {code} before it was ready:\n{stderr}")
        self.code = code
        self.stderr = stderr


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of this test run without what would make echod believe it runs under systemd."""
    return {name: value for name, value in os.environ.items() if name not in STRIPPED} | extra


def children_cpu() -> float:
    """Return the CPU seconds of all children that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wait_until(condition: Callable[[], Any], timeout: float = 10.0, what: str = "the condition") -> Any:
    """Ask again and again until the answer is true, and return it; fail when time is up."""
    end = time.monotonic() + timeout * SCALE
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        time.sleep(0.01)
    return answer


def echod(
    *arguments: str | bytes,
    timeout: float = 20.0,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """Run one command of echod to its end."""
    return subprocess.run(  # noqa: PLW1510 # the exit code is what tests are about
        [*ECHOD, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        stdin=subprocess.DEVNULL,
        timeout=timeout * SCALE,
        env=dict(env) if env is not None else environment(),
        cwd=cwd,
    )


class Daemon:
    """One daemon with a configuration file, a runtime directory and a log of its own, all below `directory`.

    Tables `daemon`, `log`, `limits`, `admin` go over the harness's own settings; `listeners` replaces the one listener
    `echo` on 127.0.0.1 port 0. `expect` names events above INFO that may occur. `prefix` is put before the command
    (a launcher that lowers a limit and then execs). `stdout` replaces the log pipe. `detached` uses `--daemon`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 1,
        daemon: Config | None = None,
        log: Config | None = None,
        limits: Config | None = None,
        admin: Config | None = None,
        listeners: list[Config] | None = None,
        expect: Iterable[str] = (),
        prefix: Sequence[str] = (),
        stdout: int | None = None,
        detached: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.file = directory / "echod.toml"
        self.runtime = directory / "run"
        self.log_file = directory / "echod.log"
        self.expect = set(expect)
        self.exit_code: int | None = None
        self.known: set[int] = set()
        self.reader: LogReader | None = None
        self._prefix = list(prefix)
        self._stdout = stdout
        self._detached = detached
        self._env = dict(env) if env is not None else environment()
        self._stderr = directory / "stderr"
        self._process: subprocess.Popen[bytes] | None = None
        self.config: Config = {
            "daemon": {"workers": workers, "runtime_directory": str(self.runtime)} | (daemon or {}),
            "log": {"format": "json", "cap": 0} | ({"file": str(self.log_file)} if detached else {}) | (log or {}),
            "limits": dict(limits or {}),
            "admin": dict(admin or {}),
            "listener": listeners or [{"name": "echo", "kind": "tcp", "address": "127.0.0.1:0"}],
        }
        self.write()

    # -- its life -----------------------------------------------------------------------------------------------------

    def write(self, **tables: Any) -> None:
        """Write the configuration file, whole tables replaced or merged by those given."""
        for name, table in tables.items():
            self.config[name] = self.config[name] | table if isinstance(table, dict) else table
        draft = self.file.with_suffix(".new")
        draft.write_text(tomli_w.dumps(self.config))
        draft.replace(self.file)  # whole at any time: a reload may be under way

    def start(self) -> Self:
        """Start and wait until it is ready."""
        command = [*self._prefix, *ECHOD, "run", *(["--daemon"] if self._detached else []), "-c", str(self.file)]
        to_file = bool(self.config["log"].get("file"))
        with self._stderr.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=self._stdout if self._stdout is not None else subprocess.DEVNULL if to_file else subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        if self._process.stdout:
            self.read_log(os.dup(self._process.stdout.fileno()))
            self._process.stdout.close()
        if self._detached:
            code = self._process.wait(30 * SCALE)
            if code:
                self.exit_code = code
                raise StartFailedError(code, self.stderr())
        self.wait_ready()
        return self

    def again(self) -> Self:
        """Start once more after a kill, with the file as it is now; the log and stderr are collected anew."""
        self._stderr.unlink()
        self.exit_code = None
        self.known.clear()
        return self.start()

    def wait_ready(self, timeout: float = 15.0) -> None:
        """Wait until the control socket says that this very process is ready."""
        wait_until(self._ready, timeout, "readiness")
        self.pids()
        if (file := self.config["log"].get("file")) and Path(file).is_file():
            self.read_log(os.open(file, os.O_RDONLY))

    def _ready(self) -> bool:
        if not self._detached and self._process and self._process.poll() is not None:
            self.exit_code = self._process.returncode
            raise StartFailedError(self.exit_code, self.stderr())
        state = self.state()
        expected = state.get("pid") if self._detached or not self._process else self._process.pid
        return state.get("state") == "ready" and state.get("pid") == expected

    def read_log(self, fd: int) -> None:
        """Collect the log from this descriptor, which is taken over."""
        if self.reader:
            self.reader.close()
        self.reader = LogReader(fd)

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        if self._process and not self._detached:
            return self._process.pid
        return int(self.pid_file.read_text())

    @property
    def pid_file(self) -> Path:
        """Where the supervisor's process id stands."""
        return self.runtime / "echod.pid"

    def running(self) -> bool:
        """Tell whether the supervisor lives."""
        if self._process and not self._detached:
            return self._process.poll() is None
        return any(map(proc.alive, self.known))

    def signal(self, number: Signals) -> None:
        """Send the supervisor a signal."""
        os.kill(self.pid, number)

    def reload(self, *, ok: bool = True, timeout: float = 15.0, **tables: Any) -> dict[str, Any]:
        """Edit the file (see `write`), send HUP and wait for that very reload to end as `ok` says."""
        if tables:
            self.write(**tables)
        before = self.state()["reload"]["count"]
        self.signal(SIGHUP)

        def ended() -> dict[str, Any] | None:
            report: dict[str, Any] = self.state().get("reload", {"count": 0})
            return report if report["count"] > before and report["outcome"] != "in_progress" else None

        report: dict[str, Any] = wait_until(ended, timeout, "the end of the reload")
        if report["outcome"] != ("ok" if ok else "rejected"):
            raise AssertionError(f"the reload ended with {report['outcome']}, expected ok={ok}: {report}")
        self.pids()
        return report

    def wait_exit(self, timeout: float = 10.0) -> int:
        """Wait for the end of the supervisor and return its exit code (0 where nobody can know it)."""
        if self._process and not self._detached:
            self.exit_code = self._process.wait(timeout * SCALE)
        else:
            wait_until(lambda: not any(map(proc.alive, self.known)), timeout, "the end of the daemon")
            self.exit_code = 0
        return self.exit_code

    def stop(self, number: Signals = SIGTERM, timeout: float = 10.0) -> float:
        """Stop, expect exit code 0 and tell how many seconds it took."""
        self.pids()
        started = time.monotonic()
        self.signal(number)
        code = self.wait_exit(timeout)
        if code:
            raise AssertionError(f"exit code {code} after {number.name}\n{self.stderr()}")
        return time.monotonic() - started

    # -- what can be seen of it ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what `echod status --json` prints; empty while there is no daemon."""
        try:
            answer = self.control({"command": "status"}, timeout=5)
        except (FileNotFoundError, ConnectionError, TimeoutError):
            return {}
        state: dict[str, Any] = answer.get("status", {})
        return state

    def control(self, request: dict[str, Any], timeout: float = 10.0) -> dict[str, Any]:
        """Send one request to the control socket and return the answer; empty when the daemon ends without one."""
        with self.control_connection() as client:
            client.settimeout(timeout * SCALE)
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile() as lines:
                line = lines.readline()
                lines.read()  # to the end: then the daemon has closed its side
        answer: dict[str, Any] = json.loads(line or "{}")
        return answer

    def control_connection(self) -> socket.socket:
        """Return a connection to the control socket."""
        folder = os.open(self.runtime, os.O_PATH)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.connect(f"/proc/self/fd/{folder}/control.sock")  # a path of any length
        except OSError:
            client.close()
            raise
        finally:
            os.close(folder)
        return client

    def addresses(self, name: str = "echo") -> list[Address]:
        """Return every address that a listener is bound to."""
        bound = [
            entry for listener in self.state()["listeners"] if listener["name"] == name for entry in listener["bound"]
        ]
        return [(host.strip("[]"), int(port)) for host, _, port in (entry.rpartition(":") for entry in bound)]

    def address(self, name: str = "echo") -> Address:
        """Return the first address that a listener is bound to."""
        return self.addresses(name)[0]

    def workers(self) -> list[int]:
        """Return the workers' process ids as /proc knows them, retiring ones included."""
        return proc.children(self.pid)

    def pids(self) -> list[int]:
        """Return the supervisor and all its workers; whoever was seen once must be gone at the end."""
        found = [self.pid, *self.workers()]
        self.known.update(found)
        return found

    def descriptors(self) -> dict[int, int]:
        """How many descriptors each process holds."""
        return {pid: len(proc.descriptors(pid)) for pid in self.pids()}

    def memory(self) -> int:
        """Return the sum of the resident memory of all processes."""
        return sum(map(proc.rss, self.pids()))

    def cpu(self) -> float:
        """Return the CPU seconds that all processes have used."""
        return sum(map(proc.cpu, self.pids()))

    def cpu_share(self, seconds: float) -> float:
        """Watch for so many seconds and tell which share of one CPU all processes used."""
        return highest_cpu_share([self], seconds)

    def active(self) -> int:
        """Have a snapshot reported, and return how many connections it counts."""
        count = len(self.records("status.reported"))
        self.signal(SIGUSR2)
        return int(self.wait_for("status.reported", count=count + 1)["echod.connections.active"])

    def stderr(self) -> str:
        """Return what came out of standard error so far."""
        return self._stderr.read_text(errors="replace") if self._stderr.exists() else ""

    def records(self, event: str, where: Mapping[str, Any] | None = None) -> list[Record]:
        """Return the log records of an event so far."""
        return self.reader.find(event, where) if self.reader else []

    def wait_for(
        self, event: str, where: Mapping[str, Any] | None = None, *, count: int = 1, timeout: float = 10.0
    ) -> Record:
        """Wait for the `count`-th record of an event whose fields are equal to those of `where`, and return it."""
        assert self.reader, "this daemon's log is not read"
        found = self.reader.wait_for(event, where, count=count, timeout=timeout * SCALE)
        if len(found) < count:
            raise AssertionError(
                f"{len(found)} of {count} {event} {where or ''} in {timeout} s; the log ends:\n{self.reader.tail(5)}"
            )
        return found[count - 1]

    # -- the end ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            self._report()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(failed=error is not None)

    def finish(self, *, failed: bool) -> None:
        """Stop it, if the test has not, and hold the common rule; after a failed test only clear away and report."""
        if failed:
            self.kill()
            self._report()
            return
        try:
            if self.exit_code is None:
                self.stop()
        except BaseException:
            self.kill()
            self._report()
            raise
        self.kill(orphans=False)
        self.check()

    def kill(self, *, orphans: bool = True) -> None:
        """End whatever is left, by process id, and close the log."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pid in self.left_over() if orphans else ():
            os.kill(pid, SIGKILL)
        if self.reader and (orphans or not self.left_over()):
            self.reader.close()

    def left_over(self) -> list[int]:
        """Return what still lives of this daemon: every process with the path of its configuration as an argument."""
        return proc.with_argument(str(self.file))

    def _report(self) -> None:
        print(f"-- stderr:\n{self.stderr()}\n-- log:\n{self.reader.tail() if self.reader else 'not read'}")  # noqa: T201

    def check(self) -> None:
        """Hold the common rule; called at the end of every test that went well so far."""
        faults = []
        if left := self.left_over():
            faults.append(f"processes left over: {[(pid, proc.stat(pid)[:2]) for pid in left]}")
            self.kill()
        faults += [f"stderr: {line}" for line in self.stderr().splitlines() if not line.startswith("echod: ")]
        if self.reader:
            faults += [f"no JSON object: {line!r}" for line in self.reader.malformed]
            faults += [
                f"unexpected: {record}"
                for record in self.reader.records
                if record["level"] not in QUIET_LEVELS and record["event"] not in self.expect
            ]
        if self.exit_code == 0:
            faults += [f"left over: {path.name}" for path in self.runtime.iterdir()] if self.runtime.exists() else []
        if faults:
            self._report()
            raise AssertionError("\n".join(faults[:20]))


def highest_cpu_share(daemons: Sequence[Daemon], seconds: float) -> float:
    """Watch daemons for so many seconds and tell which share of one CPU that one used which used the most."""
    before, started = [daemon.cpu() for daemon in daemons], time.monotonic()
    time.sleep(seconds)
    used = [daemon.cpu() - spent for daemon, spent in zip(daemons, before, strict=True)]
    return max(used) / (time.monotonic() - started)
