"""Tries what nobody should be able to do through a daemon, and prints what came of each try, as JSON.

It is run in place of echod, inside the sandbox that its unit makes; it needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "/etc/ssl/private/echod-probe.key"
PTRACE_ATTACH = 16
CLONE_NEWUSER = 0x10000000


def run_a_shell() -> None:
    """Start a program that every machine has."""
    subprocess.run(["/bin/sh", "-c", "true"], check=True)


def run_what_was_written() -> None:
    """Start a program that came over the network, say."""
    path = Path("/tmp/written")
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    subprocess.run([path], check=True)


def open_packet_socket() -> None:
    """Listen to the traffic of others."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


def open_raw_socket() -> None:
    """Forge packets."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def open_inet_socket() -> None:
    """Reach the network; only a service that is handed its sockets must not."""
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def read_shadow() -> None:
    """Read the passwords of the machine."""
    Path("/etc/shadow").read_bytes()


def read_key() -> None:
    """Read a private key that belongs to a group."""
    Path(KEY).read_bytes()


def write_usr() -> None:
    """Change a program."""
    Path("/usr/local/lib/echod-probe").write_text("")


def write_etc() -> None:
    """Change the configuration."""
    Path("/etc/echod.toml").open("a").close()


def list_root() -> None:
    """Look into somebody's home."""
    list(Path("/root").iterdir())


def see_init() -> None:
    """See the processes of others."""
    Path("/proc/1/stat").read_bytes()


def trace() -> None:
    """Take over another process."""
    other = os.fork()
    if not other:
        signal.pause()
    try:
        _call("ptrace", PTRACE_ATTACH, other, 0, 0)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


def mount() -> None:
    """Change what others see of the file system."""
    _call("mount", b"none", b"/mnt", b"tmpfs", 0, 0)


def unshare() -> None:
    """Become root of a namespace."""
    _call("unshare", CLONE_NEWUSER)


def become_root() -> None:
    """Become root."""
    os.setuid(0)


def make_code() -> None:
    """Ask for memory that can be written and run."""
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _call(name: str, *arguments: bytes | int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


PROBES: list[Callable[[], None]] = [
    run_a_shell,
    run_what_was_written,
    open_packet_socket,
    open_raw_socket,
    open_inet_socket,
    read_shadow,
    read_key,
    write_usr,
    write_etc,
    list_root,
    see_init,
    trace,
    mount,
    make_code,
    become_root,
    unshare,  # changes what root is
]


def outcome(probe: Callable[[], None]) -> str:
    """Return the name of the error, or "done"."""
    try:
        probe()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


if __name__ == "__main__":
    print(json.dumps({probe.__name__: outcome(probe) for probe in PROBES}))  # noqa: T201
