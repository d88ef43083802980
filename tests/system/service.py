"""echod as a service of a machine: what an administrator does with it, and what can be seen of it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.system import clients
from tests.system.daemon import ROOT
from tests.system.machine import obstacle

if TYPE_CHECKING:
    import socket
    import subprocess
    from pathlib import Path

    from tests.system.clients import Address
    from tests.system.logs import Record
    from tests.system.machine import Machine

ON_MACHINE = [
    pytest.mark.skipif(bool(obstacle()), reason=f"no machine can be booted: {obstacle()}"),
    pytest.mark.xdist_group("systemd"),  # one boot and one installation for all
]
UNITS = "/usr/local/lib/systemd/system"
EXAMPLES = "/usr/local/share/doc/echod"
DROP_INS = "/etc/systemd/system"
CONFIG = "/etc/echod.toml"
STAGE = "/tmp/stage"  # where the installation stays as it was made
ADDRESS = ("127.0.0.1", 10000)

CLEAN = f"""
systemctl stop echod.socket echod-udp.socket echod.service echod-classic.service
rm -rf {DROP_INS}/echod* /etc/logrotate.d/echod
rm -rf {UNITS}/echod.socket {UNITS}/echod.service.d /var/log/echod /var/log/private/echod
cp {ROOT}/etc/echod.toml {CONFIG}
systemctl daemon-reload
systemctl reset-failed
"""


def make_environment() -> dict[str, str]:
    """Return the environment of this test run without what it has of a `make` around it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "COVERAGE"))}


def make(machine: Machine, *arguments: str, umask: str = "022") -> subprocess.CompletedProcess[str]:
    """Run make in the checkout, inside and with the network outside."""
    command = ["sh", "-c", f'umask {umask} && exec make "$@"', "make", *arguments]
    return machine.run(*command, online=True, env=make_environment(), cwd=ROOT, timeout=120)


class Service:
    """`echod.service`, or another unit in its place, from a clean slate; its journal begins with this test."""

    def __init__(self, machine: Machine, unit: str = "echod.service") -> None:
        self.machine = machine
        self.unit = unit
        machine.run("sh", "-c", CLEAN, check=False)
        self.cursor = machine.cursor()

    # -- what an administrator does -----------------------------------------------------------------------------------

    def configure(self, text: str) -> None:
        """Write the configuration file."""
        self.machine.path(CONFIG).write_text(text)

    def drop_in(self, text: str, unit: str = "") -> None:
        """Change a unit the way `systemctl edit` does."""
        directory = self.machine.path(f"{DROP_INS}/{unit or self.unit}.d")
        directory.mkdir(exist_ok=True)
        (directory / f"{len(list(directory.iterdir()))}.conf").write_text(text)
        self.machine.systemctl("daemon-reload")

    def start(self) -> None:
        """Start the unit, which returns once it is ready."""
        self.machine.systemctl("start", self.unit)

    def kill(self, signal: str, *pids: int) -> None:
        """Send processes inside a signal."""
        self.machine.run("kill", f"-{signal}", *map(str, pids))

    def connect(self, address: Address = ADDRESS, *, receive_buffer: int = 0) -> socket.socket:
        """Open a connection inside."""
        with self.machine.network():
            return clients.connect(address, receive_buffer=receive_buffer)

    def echo(self, address: Address = ADDRESS) -> None:
        """Connect, and expect an echo and FIN."""
        with self.machine.network():
            clients.echo_once(address)

    # -- what can be seen of it ---------------------------------------------------------------------------------------

    def show(self, *properties: str) -> dict[str, str]:
        """Return properties of the unit."""
        return self.machine.show(self.unit, *properties)

    def main_pid(self) -> int:
        """Return the supervisor's process id, as it is inside."""
        return int(self.show("MainPID")["MainPID"])

    def workers(self) -> list[int]:
        """Return the workers' process ids, as they are inside."""
        state = json.loads(self.machine.run("echod", "status", "--json").stdout)
        return [worker["pid"] for worker in state["workers"]]

    def process(self, pid: int | str, name: str) -> Path:
        """Return the path of what /proc says of a process inside."""
        return self.machine.path(f"/proc/{pid}/{name}")

    def journal(self) -> list[dict[str, Any]]:
        """Return what the unit's processes said to the journal during this test."""
        return self.machine.journal(self.unit, self.cursor)

    def records(self, event: str) -> list[Record]:
        """Return the log records of an event."""
        records = [json.loads(entry["MESSAGE"]) for entry in self.journal()]
        return [record for record in records if record["event"] == event]
