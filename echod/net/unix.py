"""Listening Unix sockets and their paths (unix(7)).

Rules
    A path is taken over only from a socket on which nobody listens any more. What is no socket is never touched.
    Only the path that this process has bound is removed, and only while it still leads to that socket.
    A path has its final mode and owner before it exists: no later call follows it, since other users who may write to
    the directory may replace it by a link. The umask sets the mode. An owner is set in a new directory of mode 0700
    inside the target, from which the socket is then linked into place, unless something is there by now.
    Abstract names have no path, no mode and no owner; the kernel frees them.

Known limits
    Without a reset in the protocol, a stream that echod cuts ends like any other unless the peer still sends.
    Of a socket with an owner the kernel remembers the path that bind(2) was given: ss(8) and a client's getpeername(2)
    show /proc/self/fd/N/NAME.
    Between bind(2) and listen(2) a path looks as if its daemon were gone: of two that start in the same instant, the
    second may take it. Two daemons with one runtime directory cannot.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import secrets
import socket
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echod.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from echod.config.listeners import Listener

_THROUGH_DESCRIPTOR = "/proc/self/fd/"
_LONGEST_NAME = 80
"""Bytes of a name for which there is room behind a descriptor's path in the 107 of a socket's."""


class PathSocket(socket.socket):
    """A socket that removes its path when its owner closes it."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = Path(path)
        self._made: os.stat_result | None = None

    def bind_path(self, mode: int, uid: int, gid: int) -> None:
        """Bind to the path, which only the processes that `mode`, `uid` and `gid` admit can use at any time.

        -1 keeps this process's user or group.
        """
        if (uid, gid) != (-1, -1):
            self._bind_owned(mode, uid, gid)
            return
        self._bind(str(self._path), mode)
        self._made = self._path.lstat()

    def _bind(self, address: str, mode: int) -> None:
        before = os.umask(~mode & 0o777)
        try:
            self.bind(address)
        finally:
            os.umask(before)

    def _bind_owned(self, mode: int, uid: int, gid: int) -> None:
        name = os.fsdecode(os.fsencode(self._path.name)[:_LONGEST_NAME])
        with _directory(self._path.parent) as target, _private_directory(target) as private:
            self._bind(f"{_THROUGH_DESCRIPTOR}{private}/{name}", mode)
            try:
                os.chown(name, uid, gid, dir_fd=private, follow_symlinks=False)
                made = os.stat(name, dir_fd=private, follow_symlinks=False)
                # Unlike rename(2), link(2) replaces nothing.
                os.link(name, self._path.name, src_dir_fd=private, dst_dir_fd=target, follow_symlinks=False)
                self._made = made
            except FileExistsError:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
            finally:
                os.unlink(name, dir_fd=private)

    def is_in_place(self) -> bool:
        """Tell whether the path still leads to this socket."""
        with suppress(OSError):
            return self._made is not None and os.path.samestat(self._made, self._path.lstat())
        return False

    def close(self) -> None:
        """Remove the path if it is still this socket's, and close."""
        if self.is_in_place():
            with suppress(OSError):
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


@contextmanager
def _directory(path: Path | str, *, inside: int | None = None, follow: bool = True) -> Iterator[int]:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags, dir_fd=inside)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _private_directory(target: int) -> Iterator[int]:
    """Make a directory inside `target` that only this process's user may use, and remove it at the end."""
    name = f".echod-{secrets.token_hex(4)}"
    before = os.umask(0o077)
    try:
        os.mkdir(name, 0o700, dir_fd=target)
    finally:
        os.umask(before)
    try:
        with _directory(name, inside=target, follow=False) as fd:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise PermissionError(errno.EPERM, f"{name} was replaced by another user")
            yield fd
    finally:
        with suppress(OSError):  # it was replaced or moved by the owner of `target`
            os.rmdir(name, dir_fd=target)


def bound_address(listener: Listener, sock: socket.socket) -> Any:
    """Return the address of a socket of `listener` as clients can use it; see the known limits."""
    address = sock.getsockname()
    through_descriptor = isinstance(address, str) and address.startswith(_THROUGH_DESCRIPTOR)
    return listener.address if through_descriptor else address


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
