"""echod and its peers: found, compiled, started on one CPU, stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load import HERE, BenchError, compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEERS = HERE / "peers"
PORT = "PORT"
"""Stands in a peer's command for the number."""

PATIENCE = 60.0
"""Seconds for a server to start; valgrind makes that slow."""

ECHOD = "echod"
BUSY = "echod, busy_poll"
YARDSTICK = "C epoll"

CONFIG = """\
[daemon]
workers = {workers}
runtime_directory = "{folder}"
{daemon}

[log]
file = "{folder}/log"
cap = 0  # every record is written: beyond the cap they would cost nothing
{log}

[[listener]]
address = "127.0.0.1:{port}"

{more}
"""


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def said(self, event: str) -> int:
        """Return how often echod's log says `event`."""
        log = self.folder / "log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return sum(json.loads(line)["event"] == event for line in lines)

    def settle(self) -> None:
        """Wait until all workers of echod are there."""
        wait_until(lambda: self.said("service.ready"), "ready workers")

    @property
    def children(self) -> list[int]:
        """Its child processes: of echod, the workers."""
        words = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return [int(word) for word in words.split()]

    @property
    def pids(self) -> list[int]:
        """All of its processes."""
        return [self.process.pid, *self.children]


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Ask again and again until the answer is true; raise BenchError when that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"waited for {what} in vain")
        time.sleep(0.001)


def peers(folder: Path) -> dict[str, list[str]]:
    """Return the commands of the peers that this machine has."""
    found = {YARDSTICK: [str(compiled(PEERS / "epoll.c", folder)), PORT]}
    if go := shutil.which("go"):
        program = str(folder / "go-echo")
        subprocess.run([go, "build", "-o", program, PEERS / "echo.go"], check=True, env={**os.environ, "GOFLAGS": ""})
        found["Go net"] = [program, PORT]
    if importlib.util.find_spec("uvloop"):
        found["uvloop"] = [sys.executable, str(PEERS / "protocol.py"), PORT, "uvloop"]
    found["bare Python"] = [sys.executable, str(PEERS / "bare.py"), PORT]
    found["asyncio"] = [sys.executable, str(PEERS / "protocol.py"), PORT]
    if node := shutil.which("node"):
        found["node"] = [node, str(PEERS / "echo.js"), PORT]
    if socat := shutil.which("socat"):
        found["socat"] = [socat, f"TCP-LISTEN:{PORT},bind=127.0.0.1,reuseaddr,fork,nodelay,backlog=4096", "PIPE"]
    return found


@contextmanager
def running(words: list[str], cpus: str) -> Iterator[Server]:
    """Run a peer on `cpus` for a while."""
    port = _free_port()
    with _process([word.replace(PORT, str(port)) for word in words], cpus) as process:
        yield _ready(Server(process, port, HERE))


@contextmanager
def echod(cpus: str, *, workers: int = 1, wrapper: tuple[str, ...] = (), **tables: str) -> Iterator[Server]:
    """Run echod with everything on for a while; `daemon` and `log` are more lines of these tables, `more` others."""
    with tempfile.TemporaryDirectory(prefix="echod-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        port = _free_port()
        config = folder / "echod.toml"
        tables = {"daemon": "", "log": "", "more": ""} | tables
        text = CONFIG.format(workers=workers, folder=folder, port=port, **tables)
        config.write_text(text, encoding="utf-8")
        words = [*wrapper, sys.executable, "-m", "echod", "run", "-c", str(config)]
        with _process(words, cpus) as process:
            yield _ready(Server(process, port, folder))


@contextmanager
def _process(words: list[str], cpus: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["taskset", "-c", cpus, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ready(server: Server) -> Server:
    def listens() -> bool:
        if server.process.poll() is not None:
            raise BenchError(f"{server.process.args!r} ended with {server.process.returncode}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", server.port)) == 0

    wait_until(listens, f"{server.process.args!r} to listen")
    return server


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
