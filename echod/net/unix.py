"""Listening Unix sockets and their paths (unix(7)).

Rules
    A path is taken over only from a socket on which nobody listens any more. What is no socket is never touched.
    Only the path that this process has bound is removed, and only while it still leads to that socket.
    Abstract names have no path, no mode and no owner; the kernel frees them.

Known limits
    Without a reset in the protocol, a stream that echod cuts ends like any other unless the peer still sends.
    Between bind(2) and listen(2) a path looks as if its daemon were gone: of two that start in the same instant, the
    second may take it. Two daemons with one runtime directory cannot.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from echod.errors import StartError

if TYPE_CHECKING:
    from echod.config.listeners import Listener


class PathSocket(socket.socket):
    """A socket that removes its path when its owner closes it."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = Path(path)
        self._made: os.stat_result | None = None

    def bind_path(self, mode: int, uid: int, gid: int) -> None:
        """Bind to the path, which nobody but those whom `mode`, `uid` and `gid` name can use at any time."""
        before = os.umask(0o177)
        try:
            self.bind(str(self._path))
        finally:
            os.umask(before)
        self._made = self._path.lstat()
        os.chown(self._path, uid, gid, follow_symlinks=False)
        self._path.chmod(mode)

    def close(self) -> None:
        """Remove the path if it is still this socket's, and close."""
        if self._made:
            with suppress(OSError):
                if os.path.samestat(self._made, self._path.lstat()):
                    self._path.unlink()
            self._made = None
        super().close()


def bind(listener: Listener, uid: int, gid: int) -> socket.socket:
    """Return a socket bound to the path or the abstract name of `listener`; raise StartError or OSError.

    The path belongs to `uid` and `gid`, which `owner` returns.
    """
    address = listener.address
    if address.startswith("@"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(f"\0{address[1:]}")
        except OSError:
            sock.close()
            raise
        return sock
    _reclaim(listener)
    made = PathSocket(address)
    try:
        made.bind_path(int(listener.mode, 8), uid, gid)
    except OSError:
        made.close()
        raise
    return made


def owner(listener: Listener) -> tuple[int, int]:
    """Return user and group for chown(2), -1 for no change. Blocks while a name service is asked."""
    user, _, group = listener.owner.partition(":")
    try:
        return pwd.getpwnam(user).pw_uid if user else -1, grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        raise StartError(
            f'listener "{listener.name}": owner: {str(error.args[0]).removeprefix("getpwnam(): ")}'
        ) from None


def text(address: object) -> str:
    """Return the path of a Unix socket's address, "@" and an abstract name, or "" for one that has none."""
    if isinstance(address, bytes):
        return "@" + address.removeprefix(b"\0").decode("utf-8", "backslashreplace")
    return os.fsencode(str(address)).decode("utf-8", "backslashreplace")  # a path may hold any bytes


def _reclaim(listener: Listener) -> None:
    """Remove what a process that is gone has left at the path."""
    path = Path(listener.address)
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StartError(f'listener "{listener.name}": {path}: there is something that is no socket; remove it')
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(str(path))
    if code == errno.ECONNREFUSED:
        path.unlink()
    elif code != errno.ENOENT:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
