"""A machine for tests: a real systemd as PID 1 of namespaces of its own, which is gone without a trace afterwards.

    with Machine() as machine:
        machine.run("systemctl", "start", "echod")
        with machine.network(), connect(("127.0.0.1", 10000)) as client: ...

Rules
    It sees this machine's files, and what it writes is forgotten. Its network has a loopback and nothing else, so that
    no port is taken and none is disturbed; `run(..., online=True)` is for what has to reach a package index.
    Whatever happens, also if this process is killed, nothing stays behind: machine.sh tidies up.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.system.daemon import ROOT, SCALE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

SCRIPT = Path(__file__).with_name("machine.sh")
SYSTEMD = Path("/lib/systemd/systemd")
FITS = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
TOOLS = ("unshare", "nsenter", "setpriv", "systemctl", "journalctl")
PYTHON = "/usr/bin/python3"  # what `make install` takes
NAMESPACES = ("--mount", "--pid", "--ipc", "--uts", "--cgroup")
PLAIN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}


@functools.cache
def obstacle() -> str:
    """Say why no machine can be booted here; empty if one can."""
    if not sys.platform.startswith("linux"):
        return "systemd is for Linux only"
    if os.geteuid() != 0:
        return "namespaces and mounts need root"
    if missing := [name for name in TOOLS if not shutil.which(name)] + [str(SYSTEMD)] * (not SYSTEMD.exists()):
        return f"not installed: {', '.join(missing)}"
    if not _cgroups():
        return "no cgroup2 file system is mounted"
    if subprocess.run([PYTHON, "-c", FITS], capture_output=True, check=False).returncode:
        return f"{PYTHON} is not Python 3.11 or newer with venv"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--net", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else tried.stderr.decode().strip()


def _cgroups() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


class Machine:
    """One booted systemd. `source` is shown to it, read-only."""

    def __init__(self, source: Path = ROOT) -> None:
        cgroups = _cgroups()
        assert cgroups, obstacle()
        self.cgroup = cgroups / f"echod-machine-{uuid.uuid4().hex}"
        self.init = 0
        """The process id of its PID 1, as seen from outside."""
        self._source = source
        self._console = tempfile.TemporaryFile("w+")  # noqa: SIM115 # closed with the machine
        self._keeper: subprocess.Popen[str] | None = None

    # -- its life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._keeper = subprocess.Popen(
            [SCRIPT, "keep", self.cgroup, self._source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._console,
            text=True,
            env=PLAIN,
            start_new_session=True,
        )
        try:
            assert self._keeper.stdout
            parent = int(self._keeper.stdout.readline() or 0)
            self.init = wait_until(lambda: self._booted(parent), 30, "the boot")
        except BaseException:
            print(f"the console of {self.cgroup.name}: {self._console_text()}")  # noqa: T201
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything inside, and wait until no trace is left."""
        if self._keeper:
            self._keeper.communicate(timeout=30 * SCALE)
            self._keeper = None
        self._console.close()

    def _booted(self, parent: int) -> int:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
            return 0
        self.init = int(children[0])
        asked = self.run("systemctl", "is-system-running", check=False)
        return self.init if asked.stdout.strip() in ("running", "degraded") else 0

    def _console_text(self) -> str:
        self._console.seek(0)
        return self._console.read()

    # -- what can be done with it -------------------------------------------------------------------------------------

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        online: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; with `check` fail if it does. `online` lets it use the network outside."""
        entered = ["nsenter", "--target", str(self.init), *NAMESPACES, *([] if online else ["--net"])]
        done = subprocess.run(
            [*entered, "env", f"--chdir={cwd}", *command],
            capture_output=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            env={**PLAIN, **(env or {})},
            timeout=timeout * SCALE,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def path(self, inside: str | Path) -> Path:
        """Return the path by which a file inside is reached from outside."""
        return Path(f"/proc/{self.init}/root{inside}")

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Let this thread open its sockets inside."""
        with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{self.init}/ns/net") as theirs:  # noqa: PTH123
            _enter(theirs.fileno())
            try:
                yield
            finally:
                _enter(ours.fileno())

    def systemctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run systemctl inside."""
        return self.run("systemctl", *arguments, check=check)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit, all of them if none is named."""
        only = [f"--property={','.join(properties)}"] if properties else []
        lines = self.systemctl("show", *only, unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def wait_for(self, unit: str, timeout: float = 10.0, **properties: str) -> None:
        """Wait until the properties of a unit have these values."""
        wait_until(
            lambda: properties == self.show(unit, *properties), timeout, f"{properties} of {unit}: {self.status(unit)}"
        )

    def status(self, unit: str) -> str:
        """Return what systemctl says of a unit, with the end of its log."""
        return self.systemctl("status", "--full", "--lines=20", unit, check=False).stdout

    def journal(self, unit: str, after: str = "") -> list[dict[str, Any]]:
        """Return the journal of a unit's processes, if need be only what comes after a cursor."""
        self.run("journalctl", "--sync")
        only = [f"--after-cursor={after}"] if after else []
        # With a match, journalctl 252 skips the first entry after a cursor that does not match itself.
        said = self.run("journalctl", "--output=json", "--all", *only).stdout
        return [entry for entry in map(json.loads, said.splitlines()) if entry.get("_SYSTEMD_UNIT") == unit]

    def cursor(self) -> str:
        """Return the place that the journal has come to."""
        *_, said = self.run("journalctl", "--lines=0", "--show-cursor").stdout.splitlines()
        return said.removeprefix("-- cursor: ")


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0x40000000):  # CLONE_NEWNET; os.setns is younger than the oldest Python we know
        raise OSError(ctypes.get_errno(), "setns")
