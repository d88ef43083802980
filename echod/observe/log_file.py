"""Opens the log file, which may lie in a directory that another user can write to.

Rules
    A symbolic link is followed only in a directory that root alone can write to, and that no other user can replace:
    each directory on the way is checked, from "/" on and also behind a link. A daemon that is not root trusts its own
    directories too. Elsewhere the user whom workers run as could have root append to any file.
    The path is walked by descriptors, so that what was checked is what is used. Links below /proc lead to open files
    (proc(5)), /dev/stdout for one; the kernel follows them.
    In a directory that others can write to, a file with a second name is refused: that name may be a file of root's
    (see protected_hardlinks in proc_sys_fs(5)).

Known limit: in a user namespace that does not map root, no directory counts as root's and no link is followed.

Fails: OSError; the text of a refusal names the remedy.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from contextlib import suppress
from pathlib import Path

MAX_LINKS = 40
"""Symbolic links on the way, as for the kernel (path_resolution(7))."""

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MODE = 0o640
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def open_file(path: str) -> int:
    """Open the log file `path`, which is absolute, to append; make it with mode 0640 if need be."""
    walk = _Walk()
    try:
        return walk.open(path)
    finally:
        walk.close()


class _Walk:
    """A directory that is reached component by component."""

    def __init__(self) -> None:
        self._fd = os.open("/", _DIRECTORY)
        self._trusted = _is_trusted(self._fd)
        """Whether no other user can change anything between "/" and the directory."""

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    def open(self, path: str) -> int:
        """Walk along `path` to its last component, and open that."""
        names = deque(_names(path))
        links = 0
        while names:
            name = names.popleft()
            target = self._link_target(name)
            if target is None and not names:
                return self._open_file(name)
            if target is None:
                self._enter(name, os.O_NOFOLLOW)
                continue
            links += 1
            self._check_link(name, links)
            if self._is_proc() and not names:
                return os.open(name, _FILE, dir_fd=self._fd)
            if self._is_proc():
                self._enter(name, 0)
                continue
            if target.startswith("/"):
                self._enter("/", 0)
                self._trusted = _is_trusted(self._fd)
            names.extendleft(reversed(_names(target)))
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _enter(self, name: str, flags: int) -> None:
        fd = os.open(name, _DIRECTORY | flags, dir_fd=self._fd)
        os.close(self._fd)
        self._fd = fd
        self._trusted = self._trusted and _is_trusted(fd)

    def _link_target(self, name: str) -> str | None:
        with suppress(OSError):  # it is no link, or is missing or out of reach: opening it will tell
            return os.readlink(name, dir_fd=self._fd)
        return None

    def _check_link(self, name: str, links: int) -> None:
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if not self._trusted:
            reason = f'"{name}" is a symbolic link in a directory that other users can write to or replace'
            raise OSError(errno.ELOOP, f"{reason}; remove the link, or set log.file to its target")

    def _is_proc(self) -> bool:
        return os.fstat(self._fd).st_dev == Path("/proc").stat().st_dev

    def _open_file(self, name: str) -> int:
        fd = os.open(name, _FILE | os.O_NOFOLLOW, _MODE, dir_fd=self._fd)
        found = os.fstat(fd)
        if not self._trusted and stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            os.close(fd)
            reason = "the file has a second name (a hard link) and other users can write to its directory or replace it"
            raise OSError(errno.EMLINK, f"{reason}; remove the file")
        return fd


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in {"", "."}]


def _is_trusted(directory: int) -> bool:
    """Tell whether only root and this process's user can write to a directory; an ACL shows in the group's bits."""
    found = os.fstat(directory)
    return found.st_uid in {0, os.geteuid()} and not found.st_mode & _OTHERS_WRITE
