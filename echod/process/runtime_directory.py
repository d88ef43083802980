"""The runtime directory: where it is, and the three files that a running daemon keeps in it.

    echod.lock     0600  flock(2): which daemon has the directory
    control.sock   0600  stream socket: how commands reach the daemon
    echod.pid      0644  the supervisor's pid, for other tools; no command of echod reads it

Rules
    Only root and the user of the daemon may write to the directory. Everything goes through one descriptor of it, so
    that a path that is swapped meanwhile changes nothing, and a path of any length works.
    The daemon also holds a shared flock(2) on the directory: systemd-tmpfiles(8) leaves a locked directory alone.
    A file is ours by device and inode. `restore` makes a missing file again; it never replaces or removes the file of
    another daemon.

Fails: StartError for a directory or file that cannot be used, or when another daemon has the directory.

Known limit: another user can hold a lock on a directory that is readable by all. Then cleaners are not kept away, and
`restore` makes good what they remove.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from echod.errors import StartError
from echod.process.control_endpoint import (
    LOCK_FILE,
    SOCKET_FILE,
    connect,
    default_places,
    peer_credentials,
    user_directory,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PID_FILE = "echod.pid"

BACKLOG = 64
"""Connections that wait to be accepted."""

_LOCK_TRIES = 200
_LOCK_INTERVAL = 0.01
_SO_PASSRIGHTS = 83  # asm-generic/socket.h, Linux 6.16; the socket module does not name it


class RuntimeDirectory:
    """The directory of a daemon that is starting or running, locked."""

    def __init__(self, path: Path, mode: int) -> None:
        """Make the directory with `mode` where it is missing, and lock it."""
        self.path = path
        self._mode = mode
        self._own: dict[str, os.stat_result] = {}
        self._socket: socket.socket | None = None
        self._pid_file: int | None = None  # kept open, so that the number of its inode is not given to another file
        self._fd = _open_directory(path, mode)
        try:
            self._refuse_second()
            self._lock = self._acquire_lock()
        except StartError:
            os.close(self._fd)
            raise

    @property
    def socket(self) -> socket.socket:
        """The newest listening control socket, which the caller closes."""
        assert self._socket is not None, "publish() makes it"  # noqa: S101
        return self._socket

    def filenos(self) -> list[int]:
        """Return the descriptors to keep open while the process detaches, before `publish`."""
        return [self._fd, self._lock]

    def publish(self) -> None:
        """Make the control socket and the pid file. Call it in the process that will serve: listen(2) sets its pid."""
        for name, make in ((SOCKET_FILE, self._make_socket), (PID_FILE, self._make_pid_file)):
            # A daemon that was killed may have left its own. The lock says that it is gone.
            self._try(name, partial(self._unlink, name))
            try:
                self._try(name, make)
            except StartError:
                if self._socket:
                    self._socket.close()
                raise

    def restore(self) -> list[str]:
        """Make again what is missing, the directory included; return the names of what was made.

        Raise StartError when that fails, or when another daemon has the directory.
        """
        made = []
        if not self._is_in_place():
            self._replace_directory()
            made.append(str(self.path))
        for name, make in (
            (LOCK_FILE, self._make_lock),
            (SOCKET_FILE, self._make_socket),
            (PID_FILE, self._make_pid_file),
        ):
            found = self._stat(name)
            if found is None:
                self._try(name, make)
                made.append(name)
            elif not os.path.samestat(found, self._own[name]):
                raise StartError(f"{self.path / name}: another program has made it; remove it or stop that daemon")
        return made

    def release(self) -> None:
        """Remove the files that are ours, the lock last, and close lock and directory."""
        for name in (PID_FILE, SOCKET_FILE, LOCK_FILE):
            with suppress(OSError):
                found = self._stat(name)
                if found and name in self._own and os.path.samestat(found, self._own[name]):
                    os.unlink(name, dir_fd=self._fd)
        self._close_pid_file()
        os.close(self._lock)
        os.close(self._fd)

    # -- the three files ----------------------------------------------------------------------------------------------

    def _acquire_lock(self) -> int:
        for _ in range(_LOCK_TRIES):
            fd = self._open_lock(os.O_CREAT)
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who had it before may have removed it: then the lock is on a file without a name.
                found, mine = self._stat(LOCK_FILE), os.fstat(fd)
                if found and os.path.samestat(found, mine):
                    self._own[LOCK_FILE] = mine
                    return fd
            os.close(fd)
            sleep(_LOCK_INTERVAL)
            self._refuse_second()  # as soon as a daemon that is starting listens, it can be named
        raise StartError(f"already running: another process holds {self.path / LOCK_FILE}", errno=errno.EBUSY)

    def _open_lock(self, flags: int) -> int:
        path = self.path / LOCK_FILE
        try:
            fd = os.open(
                LOCK_FILE, flags | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=self._fd
            )
        except OSError as error:
            reason = "is a symbolic link; remove it" if error.errno == errno.ELOOP else error.strerror
            raise StartError(f"{path}: {reason}", errno=error.errno) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StartError(f"{path}: not a regular file; remove it")
        try:
            os.fchmod(fd, 0o600)  # who can open a file can lock it
        except OSError as error:
            os.close(fd)
            raise StartError(f"{path}: {error.strerror}", errno=error.errno) from None
        return fd

    def _make_lock(self) -> None:
        fd = self._open_lock(os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        os.close(self._lock)
        self._lock, self._own[LOCK_FILE] = fd, os.fstat(fd)

    def _make_socket(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            with suppress(OSError):  # older kernels: an unread descriptor is closed when the connection is
                made.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
            with self._draft(SOCKET_FILE) as draft:
                before = os.umask(0o177)
                try:
                    made.bind(f"/proc/self/fd/{self._fd}/{draft}")
                finally:
                    os.umask(before)
                made.listen(BACKLOG)
                self._link(draft, SOCKET_FILE)
        except OSError:
            made.close()
            raise
        self._socket = made

    def _make_pid_file(self) -> None:
        with self._draft(PID_FILE) as draft:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self._fd)
            try:
                os.fchmod(fd, 0o644)  # whatever the umask
                os.write(fd, f"{os.getpid()}\n".encode())
                self._link(draft, PID_FILE)
            except OSError:
                os.close(fd)
                raise
        self._close_pid_file()
        self._pid_file = fd

    def _close_pid_file(self) -> None:
        if self._pid_file is not None:
            os.close(self._pid_file)

    @contextmanager
    def _draft(self, name: str) -> Iterator[str]:
        """Give the name under which a file is finished before it is linked to its own."""
        draft = f"{name}.new"
        self._unlink(draft)
        try:
            yield draft
        finally:
            self._unlink(draft)

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def _link(self, draft: str, name: str) -> None:
        """Give a finished file its name, unless another file has it: rename(2) would replace that, link(2) fails."""
        os.link(draft, name, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
        self._own[name] = os.lstat(name, dir_fd=self._fd)

    # -- within -------------------------------------------------------------------------------------------------------

    def _refuse_second(self) -> None:
        """Raise StartError when a daemon answers in this directory."""
        try:
            connection = connect(self.path)
        except StartError as error:
            if error.errno == errno.EAGAIN:  # its queue is full
                raise StartError("already running", errno=errno.EBUSY) from None
            return  # not a server that this user may trust; the lock decides
        if connection:
            with connection:
                pid, _ = peer_credentials(connection)
            raise StartError(f"already running (pid {pid})" if pid else "already running", errno=errno.EBUSY)

    def _try(self, name: str, make: Callable[[], None]) -> None:
        try:
            make()
        except OSError as error:
            raise StartError(f"{self.path / name}: {error.strerror}", errno=error.errno) from None

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            return os.lstat(name, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StartError(f"{self.path / name}: {error.strerror}", errno=error.errno) from None

    def _is_in_place(self) -> bool:
        with suppress(OSError):
            return os.path.samestat(self.path.lstat(), os.fstat(self._fd))
        return False

    def _replace_directory(self) -> None:
        fd = _open_directory(self.path, self._mode)
        os.close(self._fd)
        self._fd = fd


def acquire(configured: str) -> RuntimeDirectory:
    """Return the runtime directory, made where it is missing, and locked. `configured`: "" = the default place."""
    if configured:
        return RuntimeDirectory(Path(configured), 0o755)
    path = default_places()[0]
    return RuntimeDirectory(path, 0o700 if path == user_directory() else 0o755)


def _open_directory(path: Path, mode: int) -> int:
    """Return a descriptor of the directory `path`, made with `mode` where it is missing, and checked."""
    try:
        is_new = _make_directory(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        kind = "a symbolic link; name the directory itself" if path.is_symlink() else "not a directory"
        raise StartError(f"runtime directory {path}: {kind}") from None
    except OSError as error:
        raise StartError(f"runtime directory {path}: {error.strerror}", errno=error.errno) from None
    try:
        _check_owner(path, os.fstat(fd))
        if is_new:
            os.fchmod(fd, mode)  # the umask does not count
    except StartError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        raise StartError(f"runtime directory {path}: {error.strerror}", errno=error.errno) from None
    with suppress(OSError):  # see "Known limit"
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return fd


def _make_directory(path: Path) -> bool:
    """Make the directory `path` and its parents; False when it is there already."""
    try:
        path.mkdir(0o700, parents=True)
    except FileExistsError:
        return False
    return True


def _check_owner(path: Path, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in {os.geteuid(), 0}:
        raise StartError(f"runtime directory {path}: belongs to user {found.st_uid}; choose a directory of your own")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartError(
            f'runtime directory {path}: others may write to it (mode {mode:04o}); run "chmod {mode & 0o755:04o} {path}"'
        )
