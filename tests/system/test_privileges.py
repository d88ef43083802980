"""Privileges as the kernel shows them: what workers have left, and starts that cannot drop what they should."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.system import proc
from tests.system.clients import connect, ping
from tests.system.daemon import ECHOD, ROOT, SCALE, Daemon, echod, environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.system.daemon import Starter

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("capsh", "setpriv", "unshare"))), reason="capsh, setpriv or unshare is not installed"
    ),
]

SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")

# Refuses memory that is both writable and executable, as MemoryDenyWriteExecute= does, across exec.
WITHOUT_EXECUTABLE_MEMORY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN; Linux 6.3
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
"""

# Runs a command in a user namespace that maps root and no other user, but all groups, with setgroups(2) allowed.
ONLY_ROOT_MAPPED = """
import ctypes, os, pathlib, sys
(child_reads, parent_writes), (parent_reads, child_writes) = os.pipe(), os.pipe()
pid = os.fork()
if not pid:
    if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
        os._exit(99)
    os.write(child_writes, b".")
    os.read(child_reads, 1)
    os.execv(sys.argv[1], sys.argv[1:])
os.read(parent_reads, 1)
pathlib.Path(f"/proc/{pid}/uid_map").write_text("0 0 1")
pathlib.Path(f"/proc/{pid}/gid_map").write_text("0 0 65536")
os.write(parent_writes, b".")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

REFUSALS = {
    "no capability": (
        ["capsh", "--drop=all", "--", "-c", 'exec "$@"', "-"],
        "echod lacks CAP_KILL, CAP_SETGID and CAP_SETUID (setgroups: Operation not permitted)",
    ),
    "no CAP_SETUID": (
        ["capsh", "--drop=cap_setuid", "--", "-c", 'exec "$@"', "-"],
        "echod lacks CAP_SETUID (setresuid: Operation not permitted)",
    ),
    "no CAP_SETGID": (
        ["capsh", "--drop=cap_setgid", "--", "-c", 'exec "$@"', "-"],
        "echod lacks CAP_SETGID (setgroups: Operation not permitted)",
    ),
    "no CAP_KILL": (
        ["capsh", "--drop=cap_kill", "--", "-c", 'exec "$@"', "-"],
        "echod lacks CAP_KILL (kill: Operation not permitted)",
    ),
    "setgroups denied": (["unshare", "--user", "--map-root-user"], "this user namespace denies setgroups(2)"),
    "uid not mapped": (
        [sys.executable, "-c", ONLY_ROOT_MAPPED],
        "(uid 65534, gid 65534) are not all mapped in this user namespace",
    ),
}


def capabilities(pid: int) -> dict[str, str]:
    """Return the capability sets of a process that are not empty, and its no_new_privs where that is not set."""
    status = proc.status(pid)
    expected = dict.fromkeys(SETS, "0" * 16) | {"NoNewPrivs": "1"}
    return {name: status[name] for name, value in expected.items() if status[name] != value}


def launch(daemon: Daemon, prefix: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run a start that fails; what it starts nevertheless is killed."""
    try:
        return subprocess.run(
            [*prefix, *ECHOD, "run", *options, "-c", str(daemon.file)],
            capture_output=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            timeout=20 * SCALE,
            env=environment(),
            cwd=ROOT,
            check=False,
        )
    finally:
        daemon.kill()


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param([], id="root"),
        pytest.param(["setpriv", "--securebits=+no_setuid_fixup"], id="no_setuid_fixup"),
        pytest.param(["setpriv", "--inh-caps=+kill", "--ambient-caps=+kill"], id="ambient"),
        pytest.param(["setpriv", "--groups=0,4,27"], id="groups of root"),
    ],
)
def test_workers_of_root_have_nothing_left(start: Starter, prefix: list[str]) -> None:
    """Ids, groups, all five capability sets and no_new_privs, however root was started; the daemon echoes and stops."""
    daemon = start(workers=2, daemon={"user": "daemon", "group": "nogroup"}, prefix=prefix)
    for pid in daemon.workers():
        status = proc.status(pid)

        assert {} == capabilities(pid)
        assert "0" * 16 == status["CapBnd"]
        assert ["1"] * 4 == status["Uid"].split()
        assert ["65534"] * 4 == status["Gid"].split()
        assert {"1", "65534"} >= set(status["Groups"].split())
    with connect(daemon.address()) as client:
        ping(client)


def test_bounding_set_stays_without_cap_setpcap(start: Starter) -> None:
    """A root that may not change the bounding set starts all the same, and workers have no other capability."""
    daemon = start(prefix=["capsh", "--drop=cap_setpcap", "--", "-c", 'exec "$@"', "-"])
    (pid,) = daemon.workers()

    assert {} == capabilities(pid)
    assert 0 != int(proc.status(pid)["CapBnd"], 16)


def test_workers_without_root_have_no_capability(tmp_path: Path) -> None:
    """A supervisor that is not root keeps the capabilities that it was started with, and its workers have none."""
    caps = "+net_bind_service,+dac_read_search"  # the second lets this user run an interpreter below /root
    ids = ("--reuid=1", "--regid=1", "--clear-groups")
    daemon = Daemon(tmp_path, prefix=["setpriv", *ids, f"--inh-caps={caps}", f"--ambient-caps={caps}"])
    daemon.runtime.mkdir()
    os.chown(daemon.runtime, 1, 1)
    with daemon:
        (pid,) = daemon.workers()

        assert 0 != int(proc.status(daemon.pid)["CapEff"], 16)
        assert {} == capabilities(pid)
        assert ["1"] * 4 == proc.status(pid)["Uid"].split()


def test_drop_works_without_executable_memory(start: Starter) -> None:
    """Nothing that workers call to drop privileges needs memory that is both writable and executable."""
    prefix = [sys.executable, "-c", WITHOUT_EXECUTABLE_MEMORY]
    tried = subprocess.run([*prefix, shutil.which("true") or ""], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"prctl(PR_SET_MDWE): {tried.stderr.decode()}")
    daemon = start(prefix=prefix)
    (pid,) = daemon.workers()

    assert {} == capabilities(pid)


@pytest.mark.parametrize("options", [(), ("--daemon",)], ids=["foreground", "daemon"])
@pytest.mark.parametrize("case", REFUSALS)
def test_start_that_cannot_drop_names_what_is_missing(tmp_path: Path, case: str, options: tuple[str, ...]) -> None:
    """One line on the starter's standard error, exit code 1, nothing logged and nothing left behind."""
    prefix, words = REFUSALS[case]
    daemon = Daemon(tmp_path, detached=bool(options))
    result = launch(daemon, prefix, *options)
    lines = result.stderr.splitlines()

    assert 1 == result.returncode
    assert 1 == len(lines), lines
    assert lines[0].startswith("echod: daemon.user: ")
    assert words in lines[0]
    assert "another user" in lines[0] or "name a user that is mapped" in lines[0]
    assert "" == result.stdout
    assert not daemon.log_file.exists()
    assert [] == list(daemon.runtime.iterdir())


@pytest.mark.parametrize("user", ["root", "no-such-user"])
def test_check_refuses_the_users_that_run_refuses(tmp_path: Path, user: str) -> None:
    """The same line and the same exit code."""
    daemon = Daemon(tmp_path, daemon={"user": user})
    checked = echod("check", "-c", str(daemon.file))
    ran = echod("run", "-c", str(daemon.file))

    assert 1 == checked.returncode
    assert (ran.returncode, ran.stderr) == (checked.returncode, checked.stderr)
