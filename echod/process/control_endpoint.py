"""Where the control socket of a daemon is, and how a command connects to it.

Rule: nothing that another user can put there is followed, waited for or believed. Links are not followed, the server
must run as root or as the owner of the directory, and a place in its queue is waited for no longer than
CONNECT_TIMEOUT.

Fails: StartError when a daemon may not be reached, or should not be trusted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from echod.errors import StartError

LOCK_FILE = "echod.lock"
SOCKET_FILE = "control.sock"

CONNECT_TIMEOUT = 5
"""Seconds that a command waits for a place in the queue of the control socket."""

_SYSTEM_DIRECTORY = Path("/run/echod")

_REASONS = {
    errno.EACCES: "permission denied; only root and the user that runs echod may send commands to it",
    errno.EAGAIN: "the daemon is running but not answering: its queue of control connections is full",
}


def default_places() -> list[Path]:
    """Return where a daemon may be when the configuration does not say; the first is where one of this user starts."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]  # systemd.exec(5) separates several with colons
    own = [] if os.geteuid() == 0 else [user_directory()]
    return [*([Path(given)] if given.startswith("/") else []), *own, _SYSTEM_DIRECTORY]


def connect(directory: Path) -> socket.socket | None:
    """Return a connection to the daemon of `directory`, or None when no daemon is there.

    Raise StartError when the daemon may not be reached, or should not be trusted: its user must be root or the owner
    of the directory. Links are not followed.
    """
    path = directory / SOCKET_FILE
    try:
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError as error:
        raise StartError(f"{directory}: {_REASONS[errno.EACCES]}", errno=error.errno) from None
    except OSError:
        return None
    try:
        owner = os.fstat(folder).st_uid
        if directory == user_directory() and owner != os.geteuid():
            return None  # in /tmp anybody may have made it
        connection = _connect(path, folder)
    finally:
        os.close(folder)
    if connection:
        _, uid = peer_credentials(connection)
        if uid not in {0, owner}:
            connection.close()
            raise StartError(f"{path}: served by user {uid}, who is neither root nor the owner of {directory}")
    return connection


def lock_of_starting(directory: Path) -> Path | None:
    """Return the lock of `directory` while a daemon holds it: one that does not listen yet is starting."""
    path = directory / LOCK_FILE
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None  # there is none, or it is another user's
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for an instant: a start tries for longer than that
    except BlockingIOError:
        return path
    finally:
        os.close(fd)
    return None


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the other side (SO_PEERCRED, unix(7)); pid 0 when it is in another pid namespace."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid & 0xFFFFFFFF


def _connect(path: Path, folder: int) -> socket.socket | None:
    try:
        fd = os.open(SOCKET_FILE, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except PermissionError as error:
        raise StartError(f"{path}: {_REASONS[errno.EACCES]}", errno=error.errno) from None
    except OSError:
        return None
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", CONNECT_TIMEOUT, 0))
        made.connect(f"/proc/self/fd/{fd}")
    except OSError as error:
        made.close()
        if error.errno == errno.ECONNREFUSED:  # nothing listens there, or it is no socket (connect(2))
            return None
        raise StartError(f"{path}: {_REASONS.get(error.errno or 0, error.strerror)}", errno=error.errno) from None
    finally:
        os.close(fd)
    return made


def user_directory() -> Path:
    """Return the runtime directory of a user who is not root: in $XDG_RUNTIME_DIR, else in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):  # a relative one is invalid and to be ignored (XDG Base Directory Specification)
        return Path(runtime) / "echod"
    return Path(f"/tmp/echod-{os.geteuid()}")  # noqa: S108  # the owner is checked
