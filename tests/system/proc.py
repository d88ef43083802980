"""What /proc says about the processes of a daemon: descriptors, memory, CPU seconds, descent.

Rule: a process that ends while it is looked at is no error, it is gone; a zombie counts as gone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PROC = Path("/proc")


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _names(pid: int, folder: str) -> list[str]:
    try:
        return [entry.name for entry in (PROC / str(pid) / folder).iterdir()]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from `state` on (ppid, pgrp, session, tty_nr, ...); empty if it is gone."""
    return _read(pid, "stat").rpartition(b") ")[2].decode().split()


def alive(pid: int) -> bool:
    """Tell whether the process exists and is no zombie."""
    fields = stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def all_pids() -> list[int]:
    """Return every process id of this machine."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def children(pid: int) -> list[int]:
    """Return the living children of a process."""
    found = []
    for other in all_pids():
        fields = stat(other)
        if fields and fields[0] not in "ZX" and int(fields[1]) == pid:
            found.append(other)
    return sorted(found)


def with_argument(text: str) -> list[int]:
    """Return every living process with an argument that contains `text`, whatever became of its parents."""
    wanted = text.encode()
    return sorted(pid for pid in all_pids() if wanted in _read(pid, "cmdline") and alive(pid))


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status as a dictionary."""
    lines = _read(pid, "status").decode().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def rss(pid: int) -> int:
    """Resident memory in bytes; what is shared with other processes counts in full."""
    return int(status(pid).get("VmRSS", "0 kB").split()[0]) * 1024


def pss(pid: int) -> int:
    """Resident memory in bytes; what is shared is divided among those that share it."""
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu(pid: int) -> float:
    """CPU seconds used so far, by all threads, user and system; in nanoseconds where the kernel counts so finely."""
    total = 0.0
    for name in _names(pid, "task"):
        fields = _read(pid, f"task/{name}/schedstat").split()
        if not fields:
            ticks = stat(pid)
            return sum(map(int, ticks[11:13])) / os.sysconf("SC_CLK_TCK") if ticks else 0.0
        total += int(fields[0]) / 1e9
    return total


def descriptors(pid: int) -> dict[int, str]:
    """Return the open descriptors and what each one is."""
    found = {}
    for name in _names(pid, "fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = str((PROC / str(pid) / "fd" / name).readlink())
    return found


def descriptor_flags(pid: int, fd: int) -> int:
    """Return the open flags of a descriptor, O_CLOEXEC among them."""
    for line in _read(pid, f"fdinfo/{fd}").splitlines():
        if line.startswith(b"flags:"):
            return int(line.split()[1], 8)
    raise FileNotFoundError(f"process {pid} has no descriptor {fd}")


def environment(pid: int) -> dict[str, str]:
    """Return the environment with which the process was executed, as the kernel shows it to others."""
    pairs = _read(pid, "environ").decode(errors="surrogateescape").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def open_files_limit(pid: int) -> tuple[int, int]:
    """Return the soft and the hard limit of descriptors."""
    for line in _read(pid, "limits").decode().splitlines():
        if line.startswith("Max open files"):
            soft, hard = line.split()[3:5]
            return int(soft), int(hard)
    raise ProcessLookupError(pid)


def unread(server_port: int) -> dict[int, int]:
    """Return the bytes that wait to be read by a server on an IPv4 port, for each port of a client (proc_net_tcp)."""
    found = {}
    for line in (PROC / "net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if int(local.rpartition(":")[2], 16) == server_port:
            found[int(remote.rpartition(":")[2], 16)] = int(queues.rpartition(":")[2], 16)
    return found
