"""The machine that other tests boot: apart from this one, and gone without a trace."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.system import proc
from tests.system.daemon import ROOT, wait_until
from tests.system.machine import Machine
from tests.system.service import ON_MACHINE

pytestmark = ON_MACHINE

KILLED = """
import sys
from tests.system.machine import Machine
with Machine() as machine:
    print(machine.init, machine.cgroup, flush=True)
    sys.stdin.read()
"""


def mounts() -> list[str]:
    """Return what is mounted here."""
    return Path("/proc/self/mounts").read_text().splitlines()


def test_it_is_apart_and_leaves_nothing() -> None:
    """What is written, bound and started inside is not seen outside; afterwards no process, mount or cgroup is left."""
    before = mounts()
    with Machine() as machine:
        init, cgroup = machine.init, machine.cgroup
        machine.run("sh", "-c", "echo inside > /etc/echod-was-here; echo inside > /tmp/echod-was-here")
        machine.run("systemd-run", "--unit=sleeper", "sleep", "infinity")
        sleeper = machine.show("sleeper", "MainPID", "ActiveState")
        with machine.network(), socket.create_server(("127.0.0.1", 7)):
            pass

        assert "active" == sleeper["ActiveState"]
        assert machine.path(f"/proc/{sleeper['MainPID']}").exists()
        assert "inside\n" == machine.path("/etc/echod-was-here").read_text()
        assert not Path("/etc/echod-was-here").exists()
        assert not Path("/tmp/echod-was-here").exists()
        assert machine.run("touch", ROOT / "written", check=False).returncode
        assert machine.run("sysctl", "-w", "kernel.core_pattern=core", check=False).returncode
        assert before == mounts()
    assert (False, False) == (proc.alive(init), cgroup.exists())
    assert before == mounts()


def test_it_is_gone_with_whoever_booted_it() -> None:
    """A test process that is killed leaves nothing behind either."""
    booter = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert booter.stdout
    init, cgroup = booter.stdout.readline().split()
    alive = proc.alive(int(init))
    booter.kill()
    booter.communicate()
    wait_until(lambda: not proc.alive(int(init)) and not Path(cgroup).exists(), 10, "the end of the machine")

    assert alive


def test_it_is_gone_with_its_keeper() -> None:
    """Should the shell that tidies up be killed, the kernel ends what is inside; only an empty cgroup is left."""
    machine = Machine()
    with machine:
        assert machine._keeper
        os.kill(machine._keeper.pid, signal.SIGKILL)
        wait_until(lambda: not proc.alive(machine.init), 10, "the end of PID 1")
    wait_until(lambda: "populated 0" in (machine.cgroup / "cgroup.events").read_text(), 10, "the end of all")
    for directory, *_ in os.walk(machine.cgroup, topdown=False):
        Path(directory).rmdir()

    assert not machine.cgroup.exists()
