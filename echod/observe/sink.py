"""Where log lines go: a bounded queue before a descriptor that is never waited for.

Rules
    Nothing here blocks and nothing raises: a log that cannot be written must not stop the echo. What the descriptor
    does not take now is queued; what the queue does not take is dropped and counted.
    Only whole lines are written, on a pipe or a socket no more than PIPE_BUF bytes at once (pipe(7)), so that the lines
    of several processes never interleave. On a file a process that a full disk has cut short keeps a record lock until
    the rest of its line is written; meanwhile its siblings queue or drop.
    The flags of a descriptor that others share are left alone: a pipe or terminal is opened anew, to be non-blocking.
    One exception: a file that standard output is redirected to is appended to, by all that share it.

Known limit: a pipe or terminal that may not be opened anew (that of another user, in a container say) is asked first
whether it has room; a sibling may fill it in between, and the write then waits for the reader.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
from contextlib import suppress
from time import monotonic

QUEUE_BYTES = 1024 * 1024
"""Bytes of lines that wait for the descriptor: some 3,000 records."""

FILE_BYTES = 64 * 1024
"""Bytes written at once to a file."""


class Sink:
    """The lines of one process on their way to a descriptor that it owns."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`, which is one of this process's own."""
        self.fd = fd
        self.lost = 0
        """Lines dropped since somebody last asked and set this to 0."""
        # One piece of memory: kept line by line, the encoder's oversized allocations would take seven times as much.
        self._queue = bytearray()
        self._begun = 0  # bytes of the first line that a full disk took already
        self._learn()

    @property
    def pending(self) -> bool:
        """Whether lines are waiting."""
        return bool(self._queue)

    def put(self, line: bytes) -> None:
        """Queue `line`, which ends in a newline, or drop it."""
        if len(self._queue) + len(line) > QUEUE_BYTES:
            self.flush()  # a single turn of the loop may say more than the queue holds
        if len(self._queue) + len(line) > QUEUE_BYTES:
            self.lost += 1
        else:
            self._queue += line

    def flush(self) -> None:
        """Write as many of the waiting lines as the descriptor takes without waiting."""
        with suppress(OSError):  # blocked, full or closed: the lines stay queued until it is not
            while self._queue and self._has_room() and self._alone():
                try:
                    self._taken(self._write(self._whole_lines()))
                finally:
                    self._let_others()

    def drain(self, patience: float) -> None:
        """Flush, giving a slow reader `patience` seconds; for the end of a process only."""
        deadline = monotonic() + patience
        self.flush()
        while self._queue and (left := deadline - monotonic()) > 0:
            select.select([], [], [], min(left, 0.01))
            self.flush()

    def replace(self, fd: int) -> None:
        """Go on with `fd`, and close the one before."""
        old, self.fd = self.fd, fd
        with suppress(OSError):  # it is closed all the same: the error is that of an earlier write (close(2))
            os.close(old)
        self._begun = 0  # the line is written again, whole, where the log goes on
        self._learn()

    def forget(self) -> None:
        """Drop what is queued without counting it: after a fork it is the other process's to write."""
        self._queue.clear()
        self._begun = 0
        self.lost = 0

    def _learn(self) -> None:
        mode = os.fstat(self.fd).st_mode
        self._socket = stat.S_ISSOCK(mode)
        self._file = stat.S_ISREG(mode)
        self._most = FILE_BYTES if self._file else select.PIPE_BUF
        self._polled = not self._file and os.get_blocking(self.fd)

    def _has_room(self) -> bool:
        if not self._polled or self._socket:
            return True
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(0))

    def _whole_lines(self) -> bytes:
        end = self._queue.rfind(b"\n", 0, self._most) + 1
        return bytes(self._queue[self._begun : end or self._queue.index(b"\n") + 1])

    def _taken(self, count: int) -> None:
        end = self._begun + count
        whole = self._queue.rfind(b"\n", 0, end) + 1
        self._begun = end - whole
        del self._queue[:whole]

    def _alone(self) -> bool:
        """Tell whether this process may append to the file; False while a sibling waits for room for half a line."""
        if self._file:
            try:
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return False
            except OSError:
                return True  # a file system without locks
        return True

    def _let_others(self) -> None:
        if self._file and not self._begun:
            with suppress(OSError):
                fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def _write(self, chunk: bytes) -> int:
        if not self._socket:
            return os.write(self.fd, chunk)
        with socket.socket(fileno=os.dup(self.fd)) as sock:
            return sock.send(chunk, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def open_standard_output() -> int:
    """Return a descriptor of our own for standard output, non-blocking where that does not touch what others share.

    A regular file gets O_APPEND, so that it can be truncated while echod runs (copytruncate of logrotate). The flag is
    set on what is shared: opened anew, the file would have two offsets, and standard error or the shell would overwrite
    the log. It stays set when echod has ended (fcntl(2), F_SETFL).
    """
    mode = os.fstat(1).st_mode
    if stat.S_ISFIFO(mode) or os.isatty(1):
        with suppress(OSError):
            return os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if stat.S_ISREG(mode):
        fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_APPEND)
    return os.dup(1)


def open_again(fd: int) -> int:
    """Return a descriptor for the same file, with flags of its own where the file can be opened again.

    What shares the flags (fcntl(2), F_SETFL) could take O_NONBLOCK away, and make this process wait. A socket cannot be
    opened again, and need not be: each write to it says that it does not wait. Nor can a named pipe without a reader.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND)
    with suppress(OSError):
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return os.dup(fd)
