"""The runtime directory, and the lock that says which daemon has it.

Rules
    The lock is flock(2) on `echod.pid`: the kernel drops it when the last process that holds it is gone, so that stale,
    empty or garbled pid files hinder nobody. What the file says matters only while it is locked.
    Whoever takes the lock checks that the path still names the file it has locked; whoever leaves removes it, unless it
    is another daemon's by now.
    A pid is believed only if the process belongs to the owner of the directory, or the directory is root's or our own:
    else whoever may make a directory in /tmp could have root signal any process.

Fails: StartError for a directory or file that cannot be used, or when another daemon runs; NotRunningError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from echod.errors import NotRunningError, StartError

PID_FILE = "echod.pid"

_TRIES = 20
_INTERVAL = 0.01
_SYSTEM = Path("/run/echod")


class Lock:
    """The lock of a runtime directory, held."""

    def __init__(self, directory: Path) -> None:
        """Take the lock; the file stays empty until `write_pid`."""
        self.path = directory / PID_FILE
        self.fd = _acquire(self.path)
        os.ftruncate(self.fd, 0)

    def write_pid(self) -> None:
        """Write this process's pid."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    @property
    def valid(self) -> bool:
        """Whether the path still names the file that is locked; else another daemon may have the directory by now."""
        return _still_there(self.path, self.fd)

    def release(self) -> None:
        """Remove the file and let go."""
        if self.valid:
            with suppress(OSError):
                self.path.unlink()
        os.close(self.fd)


def prepare(configured: str) -> Path:
    """Return the runtime directory, made if need be and safe to use."""
    directory = Path(configured) if configured else default_directory()
    try:
        with suppress(FileExistsError):
            directory.mkdir(parents=bool(configured))
            directory.chmod(0o700 if directory == _own() else 0o755)  # whatever the umask says
        found = directory.lstat()
    except OSError as error:
        raise StartError(f"runtime directory {directory}: {error.strerror}", errno=error.errno) from None
    if not stat.S_ISDIR(found.st_mode):
        raise StartError(f"runtime directory {directory}: not a directory")
    if not _is_ours(found):
        raise StartError(f"runtime directory {directory}: others can write there; it must be your own")
    return directory


def default_directory() -> Path:
    """Return where a daemon of this user lives when the configuration does not say."""
    return _default_places()[0]


def find(configured: str | None) -> tuple[Path, int]:
    """Return the runtime directory and the pid of the daemon that holds its lock; NotRunningError when there is none.

    Without `configured`, all default places are tried.
    """
    places = [Path(configured)] if configured else _default_places()
    for directory in places:
        pid = holder(directory)
        if pid is not None:
            return directory, pid
    raise NotRunningError(f"not running (no lock on {' or '.join(str(place / PID_FILE) for place in places)})")


def holder(directory: Path) -> int | None:
    """Return the pid of the daemon that holds the lock, or None; StartError when the file cannot be read."""
    path = directory / PID_FILE
    deadline = monotonic() + 2.0
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError as error:
            raise StartError(f"{path}: {error.strerror}") from None
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for an instant: a start tries for longer than that
        except BlockingIOError:
            text = os.pread(fd, 32, 0).strip()
            if text.isdigit():
                return int(text) if _is_believable(directory, int(text)) else None
            if monotonic() > deadline:
                raise StartError(f"{path}: locked, but it holds no pid") from None
        else:
            return None
        finally:
            os.close(fd)
        sleep(_INTERVAL)  # it is just starting: the pid is written once it is the daemon's last


def _default_places() -> list[Path]:
    """Return where a daemon may live when the configuration does not say, the likeliest first."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]  # systemd.exec(5) lists several with colons
    own = [_own()] if os.geteuid() != 0 else []
    return [*([Path(given)] if given else []), *own, _SYSTEM]


def _is_ours(found: os.stat_result) -> bool:
    """Tell whether nobody but root and this user can write to a directory."""
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & stat.S_IWOTH


def _is_believable(directory: Path, pid: int) -> bool:
    """Tell whether the pid that stands in a locked file of `directory` may be believed."""
    try:
        found = directory.stat()
        return _is_ours(found) or found.st_uid == Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return False  # it has just ended, or is hidden from us


def _own() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "echod" if runtime else Path(f"/tmp/echod-{os.geteuid()}")  # noqa: S108  # owner checked


def _acquire(path: Path) -> int:
    for _ in range(_TRIES):
        fd = _open(path)
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _still_there(path, fd):
                return fd
        os.close(fd)
        sleep(_INTERVAL)  # a command that looks at the lock holds it for an instant
    pid = holder(path.parent)
    reason = f"already running (pid {pid})" if pid else f"{path}: the lock is taken again and again"
    raise StartError(reason, errno=errno.EBUSY)


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        reason = "is a symbolic link, remove it" if error.errno == errno.ELOOP else error.strerror
        raise StartError(f"{path}: {reason}", errno=error.errno) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StartError(f"{path}: not a regular file, remove it")
    os.fchmod(fd, 0o644)
    return fd


def _still_there(path: Path, fd: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(fd), path.lstat())
    return False
