"""A queue before a descriptor that is never waited for: what is written, what is kept, what is dropped and counted."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import resource
import select
import socket
import tty
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from echod.observe.log_file import open_file
from echod.observe.sink import FILE_BYTES, QUEUE_BYTES, Sink, open_again, open_standard_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what is entered when the test is over."""
    with ExitStack() as entered:
        yield entered


def own(stack: ExitStack, fd: int) -> int:
    """Close `fd` in the end, if nobody else has."""

    def close() -> None:
        with suppress(OSError):
            os.close(fd)

    stack.callback(close)
    return fd


def sink_of(stack: ExitStack, fd: int) -> Sink:
    """Return a sink that has `fd`, and whose descriptor is closed in the end."""
    sink = Sink(fd)
    stack.callback(lambda: os.close(sink.fd))
    return sink


def make_pipe(stack: ExitStack, *, blocking: bool) -> tuple[int, Sink]:
    """Return the reading end of a pipe of the smallest size, and a sink that has the other."""
    reader, writer = os.pipe()
    own(stack, reader)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    os.set_blocking(writer, blocking)
    return reader, sink_of(stack, writer)


@pytest.fixture(params=[True, False], ids=["blocking", "non-blocking"])
def pipe(stack: ExitStack, request: pytest.FixtureRequest) -> tuple[int, Sink]:
    """Make a small pipe, once in each mode: a descriptor that others share may be in either."""
    return make_pipe(stack, blocking=request.param)


Pipe = tuple[int, Sink]


def read(fd: int) -> bytes:
    """Read what is there."""
    found = b""
    with suppress(BlockingIOError):
        while chunk := os.read(fd, 65536):
            found += chunk
    return found


def numbered(count: int, length: int = 100) -> list[bytes]:
    """Return lines that can be told apart."""
    return [b"%06d " % number + b"x" * (length - 8) + b"\n" for number in range(count)]


def fill(sink: Sink, lines: list[bytes]) -> None:
    """Queue `lines` and flush after each."""
    for line in lines:
        sink.put(line)
        sink.flush()


# -- pipes ------------------------------------------------------------------------------------------------------------


def test_lines_in_order(pipe: Pipe) -> None:
    """What is queued is written by the next flush, in order."""
    reader, sink = pipe
    for line in numbered(5):
        sink.put(line)
    queued = (sink.pending, read(reader))
    sink.flush()

    assert (True, b"") == queued
    assert (b"".join(numbered(5)), False, 0) == (read(reader), sink.pending, sink.lost)


def test_nothing_to_flush(pipe: Pipe) -> None:
    """A flush of nothing writes nothing."""
    reader, sink = pipe
    sink.flush()

    assert (b"", False) == (read(reader), sink.pending)


def test_a_full_pipe_is_not_waited_for(pipe: Pipe) -> None:
    """When the pipe takes no more, the rest stays queued, and goes out once somebody reads; no line is torn or lost."""
    reader, sink = pipe
    lines = numbered(200)
    fill(sink, lines)
    first = read(reader)
    found = first
    while sink.pending:
        sink.flush()
        found += read(reader)

    assert first.endswith(b"\n")
    assert (b"".join(lines), 0) == (found, sink.lost)


def test_writes_to_a_pipe_are_whole_and_atomic(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write is some whole lines of at most PIPE_BUF bytes, so that those of other processes stay apart."""
    _, sink = pipe
    writes: list[bytes] = []

    def write(fd: int, chunk: bytes) -> int:
        writes.append(bytes(chunk))
        return len(chunk)

    monkeypatch.setattr(os, "write", write)
    lines = [line for length in (10, 4096, 100, 4000, 97, 3000, 1096) for line in numbered(1, length)]
    for line in lines:
        sink.put(line)
    sink.flush()

    assert b"".join(lines) == b"".join(writes)
    assert all(len(chunk) <= select.PIPE_BUF and chunk.endswith(b"\n") for chunk in writes)
    assert len(writes) <= 6


def test_lines_of_two_processes_do_not_mix(stack: ExitStack) -> None:
    """Two writers of one pipe, both with more to say than it takes, never tear each other's lines."""
    reader, one = make_pipe(stack, blocking=False)
    two = sink_of(stack, os.dup(one.fd))
    mine, other = numbered(300, 90), [line.upper() for line in numbered(300, 70)]
    for ours, theirs in zip(mine, other, strict=True):
        one.put(ours)
        two.put(theirs)
    found = b""
    while one.pending or two.pending:
        one.flush()
        two.flush()
        found += read(reader)
    lines = found.splitlines(keepends=True)

    assert mine == [line for line in lines if b"x" in line]
    assert other == [line for line in lines if b"X" in line]
    assert 600 == len(lines)


def test_the_queue_is_bounded_and_the_count_exact(pipe: Pipe) -> None:
    """A reader that does not read costs so much memory and no more; what was dropped is counted to the line."""
    reader, sink = pipe
    total = 3 * QUEUE_BYTES // 1000
    most = 0
    for line in numbered(total, 1000):
        sink.put(line)
        most = max(most, len(sink._queue))
    found = b""
    while sink.pending:
        sink.flush()
        found += read(reader)

    assert QUEUE_BYTES - 1000 < most <= QUEUE_BYTES
    assert sink.lost > total // 2
    assert total == sink.lost + found.count(b"\n")
    assert numbered(total, 1000)[: found.count(b"\n")] == found.splitlines(keepends=True)


def test_more_than_the_queue_holds_to_a_reader_that_reads(tmp_path: Path, stack: ExitStack) -> None:
    """A turn that says more than fits is no loss where the descriptor takes it."""
    sink = sink_of(stack, open_file(str(tmp_path / "log")))
    lines = numbered(3 * QUEUE_BYTES // 1000, 1000)
    for line in lines:
        sink.put(line)
    sink.flush()

    assert (0, b"".join(lines)) == (sink.lost, (tmp_path / "log").read_bytes())


def test_a_pipe_without_reader(pipe: Pipe) -> None:
    """A reader that is gone raises nothing: lines are queued, then dropped and counted."""
    reader, sink = pipe
    os.close(reader)
    lines = numbered(QUEUE_BYTES // 1000 + 100, 1000)
    fill(sink, lines)

    assert (True, len(lines) - QUEUE_BYTES // 1000) == (sink.pending, sink.lost)


def test_a_closed_descriptor(stack: ExitStack) -> None:
    """A descriptor that somebody has closed raises nothing."""
    _, sink = make_pipe(stack, blocking=False)
    kept = sink.fd
    sink.fd = own(stack, os.open(os.devnull, os.O_RDONLY))  # one that cannot be written to, which is the same EBADF
    fill(sink, numbered(3))
    sink.fd = kept

    assert (True, 0) == (sink.pending, sink.lost)


# -- at the end -------------------------------------------------------------------------------------------------------


def test_drain_gives_up(pipe: Pipe) -> None:
    """At the end of a process a reader that does not read is given a moment, and no more."""
    _, sink = pipe
    fill(sink, numbered(200))
    sink.drain(0.03)

    assert sink.pending


def test_drain_waits_for_a_slow_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads gets everything."""
    reader, sink = pipe
    lines = numbered(200)
    found: list[bytes] = []
    monkeypatch.setattr(select, "select", lambda *args: found.append(read(reader)))
    fill(sink, lines)
    sink.drain(10.0)
    found.append(read(reader))

    assert (b"".join(lines), False) == (b"".join(found), sink.pending)


def test_drain_of_nothing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing queued the end is not put off."""
    _, sink = pipe
    monkeypatch.setattr(select, "select", lambda *args: pytest.fail("waited"))
    sink.drain(10.0)

    assert not sink.pending


def test_forget(pipe: Pipe) -> None:
    """After a fork the lines of the parent are the parent's to write and to count."""
    reader, sink = pipe
    sink.put(b"of the parent\n")
    sink.lost = 3
    sink.forget()
    sink.put(b"of the child\n")
    sink.flush()

    assert (b"of the child\n", 0) == (read(reader), sink.lost)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_appended_to(tmp_path: Path, stack: ExitStack) -> None:
    """A log file is made with mode 0640, appended to, in large pieces, and never waited for."""
    path = tmp_path / "log"
    mask = os.umask(0)
    stack.callback(os.umask, mask)
    sink = sink_of(stack, open_file(str(path)))
    lines = numbered(3 * FILE_BYTES // 100)
    for line in lines:
        sink.put(line)
    with path.open("ab") as other:
        other.write(b"of another process\n")
    sink.flush()

    assert b"of another process\n" + b"".join(lines) == path.read_bytes()
    assert (0o100640, False) == (path.stat().st_mode, sink.pending)
    assert fcntl.fcntl(sink.fd, fcntl.F_GETFL) & (os.O_APPEND | os.O_NONBLOCK) == os.O_APPEND | os.O_NONBLOCK
    assert not os.get_inheritable(sink.fd)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """Opening says by OSError that it cannot be."""
    with pytest.raises(IsADirectoryError):
        open_file(str(tmp_path))


def test_a_line_longer_than_a_write(tmp_path: Path, stack: ExitStack) -> None:
    """A line longer than what is written at once goes out in one piece, alone."""
    sink = sink_of(stack, open_file(str(tmp_path / "log")))
    lines = [b"short\n", b"x" * (FILE_BYTES + 10) + b"\n", b"short\n"]
    for line in lines:
        sink.put(line)
    sink.flush()

    assert b"".join(lines) == (tmp_path / "log").read_bytes()


def test_replace(tmp_path: Path, stack: ExitStack) -> None:
    """A log that is reopened goes on where it was: what is queued goes to the new file, the old one is closed."""
    old, new = (open_file(str(tmp_path / name)) for name in ("old", "new"))
    sink = sink_of(stack, old)
    fill(sink, [b"first\n"])
    sink.put(b"second\n")
    sink.replace(new)
    sink.flush()

    assert (b"first\n", b"second\n") == ((tmp_path / "old").read_bytes(), (tmp_path / "new").read_bytes())
    assert new == sink.fd

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(old)


def test_replace_learns_what_the_new_one_is(tmp_path: Path, pipe: Pipe) -> None:
    """A sink that went from a pipe to a file writes as one does to a file."""
    reader, sink = pipe
    sink.replace(open_file(str(tmp_path / "log")))
    lines = numbered(1000)
    for line in lines:
        sink.put(line)
    sink.flush()

    assert (b"".join(lines), b"") == ((tmp_path / "log").read_bytes(), read(reader))


def test_a_device_that_is_full(stack: ExitStack) -> None:
    """No space left: lines are queued for when there is, then dropped and counted; nothing is raised."""
    sink = sink_of(stack, os.open("/dev/full", os.O_WRONLY))
    lines = numbered(QUEUE_BYTES // 1000 + 100, 1000)
    fill(sink, lines)
    kept = sink.pending
    lost = sink.lost
    sink.replace(os.open(os.devnull, os.O_WRONLY))
    sink.flush()

    assert (True, len(lines) - QUEUE_BYTES // 1000, False) == (kept, lost, sink.pending)


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """Let no file grow beyond `size`, as on a full disk: the last write is cut short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("flags", [os.O_APPEND, 0], ids=["append", "redirected"])
@pytest.mark.parametrize("size", [1, 99, 100, 150, 250, 299])
def test_a_disk_that_fills_up(tmp_path: Path, stack: ExitStack, flags: int, size: int) -> None:
    """A full disk tears nothing, be the file the daemon's or a shell's: the rest follows once there is room."""
    path = tmp_path / "log"
    sink = sink_of(stack, os.open(path, os.O_WRONLY | os.O_CREAT | flags))
    content = b"".join(numbered(3))
    for line in numbered(3):
        sink.put(line)
    with full_after(size):
        sink.flush()
        sink.flush()
        meanwhile = path.read_bytes()
    sink.put(b"more\n")
    sink.flush()

    assert (content[:size], content + b"more\n") == (meanwhile, path.read_bytes())
    assert (False, 0) == (sink.pending, sink.lost)


def sibling(path: Path, line: bytes) -> int:
    """Have another process write `line`; return 0 if it was written, 1 if it has to wait."""
    pid = os.fork()
    if not pid:
        left = 2
        try:
            sink = Sink(open_file(str(path)))
            sink.put(line)
            sink.flush()
            left = sink.pending
        finally:
            os._exit(left)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_nobody_writes_behind_half_a_line(tmp_path: Path, stack: ExitStack) -> None:
    """While half a line waits for room its siblings wait as well, even with lines short enough; then they go on."""
    path = tmp_path / "log"
    sink = sink_of(stack, open_file(str(path)))
    content = b"".join(numbered(2))
    for line in numbered(2):
        sink.put(line)
    with full_after(150):
        sink.flush()
    torn = sibling(path, b"too early\n")
    half = path.read_bytes()
    sink.flush()

    assert (1, content[:150]) == (torn, half)
    assert (0, content + b"in time\n") == (sibling(path, b"in time\n"), path.read_bytes())


def test_half_a_line_is_written_again_in_the_next_file(tmp_path: Path, stack: ExitStack) -> None:
    """Where the log is reopened meanwhile, the new file begins with the whole line."""
    old, new = tmp_path / "old", tmp_path / "new"
    sink = sink_of(stack, open_file(str(old)))
    for line in numbered(2):
        sink.put(line)
    with full_after(150):
        sink.flush()
    sink.replace(open_file(str(new)))
    sink.flush()

    assert (b"".join(numbered(2))[:150], numbered(2)[1]) == (old.read_bytes(), new.read_bytes())
    assert 0 == sibling(old, b"free\n")


def test_a_file_system_without_locks(tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be locked is written to as if it were."""

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    sink = sink_of(stack, open_file(str(tmp_path / "log")))
    monkeypatch.setattr(fcntl, "lockf", refuse)
    fill(sink, numbered(3))

    assert b"".join(numbered(3)) == (tmp_path / "log").read_bytes()


# -- sockets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [True, False])
def test_a_socket_is_not_waited_for(stack: ExitStack, blocking: bool) -> None:
    """Standard output may be a socket, blocking and shared: it is neither waited for nor changed."""
    near, far = (stack.enter_context(end) for end in socket.socketpair())
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near.setblocking(blocking)
    sink = sink_of(stack, os.dup(near.fileno()))
    lines = numbered(1000)
    fill(sink, lines)
    stuck = sink.pending
    far.setblocking(False)
    found = b""
    while sink.pending:
        sink.flush()
        found += read(far.fileno())
    found += read(far.fileno())

    assert (True, b"".join(lines), 0) == (stuck, found, sink.lost)
    assert blocking is os.get_blocking(near.fileno())


def test_a_socket_that_takes_half_a_line(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a socket has not taken of a line is sent next, so that no byte is missing."""
    near, far = (stack.enter_context(end) for end in socket.socketpair())
    sink = sink_of(stack, os.dup(near.fileno()))
    original = socket.socket.send
    monkeypatch.setattr(socket.socket, "send", lambda self, chunk, flags: original(self, bytes(chunk)[:37], flags))
    lines = numbered(5)
    for line in lines:
        sink.put(line)
    while sink.pending:
        sink.flush()

    assert b"".join(lines) == far.recv(65536)


def test_a_socket_whose_peer_is_gone(stack: ExitStack) -> None:
    """No signal, no exception: the lines stay."""
    near, far = socket.socketpair()
    with near:
        far.close()
        sink = sink_of(stack, os.dup(near.fileno()))
        fill(sink, numbered(3))

    assert (True, 0) == (sink.pending, sink.lost)


# -- terminals, and standard output -----------------------------------------------------------------------------------


@contextmanager
def standard_output(fd: int) -> Iterator[None]:
    """Let descriptor 1 be `fd` for a while."""
    kept = os.dup(1)
    os.dup2(fd, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def terminal(stack: ExitStack) -> tuple[int, int]:
    """Return the two ends of a terminal: the user's, and the program's."""
    near, far = (own(stack, fd) for fd in pty.openpty())
    tty.setraw(far)
    os.set_blocking(near, False)
    return near, far


def test_a_terminal_is_not_waited_for(stack: ExitStack) -> None:
    """A terminal whose user has stopped it does not stop the daemon; when it goes on, all lines appear."""
    near, far = terminal(stack)
    with standard_output(far):
        sink = sink_of(stack, open_standard_output())
    lines = numbered(1000)
    fill(sink, lines)
    stuck = sink.pending
    found = b""
    while sink.pending:
        found += read(near)
        sink.flush()
    while len(found) < len(b"".join(lines)):
        select.select([near], [], [], 1.0)
        found += read(near)

    assert (True, b"".join(lines), 0) == (stuck, found, sink.lost)


def a_pipe(stack: ExitStack, tmp_path: Path) -> int:
    """Return a pipe's writing end."""
    reader, writer = os.pipe()
    own(stack, reader)
    return own(stack, writer)


def a_terminal(stack: ExitStack, tmp_path: Path) -> int:
    """Return a terminal."""
    return terminal(stack)[1]


def a_file(stack: ExitStack, tmp_path: Path) -> int:
    """Return a file as a shell redirects to it."""
    return own(stack, os.open(tmp_path / "redirected", os.O_WRONLY | os.O_CREAT))


def a_socket(stack: ExitStack, tmp_path: Path) -> int:
    """Return a socket."""
    near, far = socket.socketpair()
    stack.enter_context(far)
    return stack.enter_context(near).fileno()


@pytest.mark.parametrize(
    ("make", "blocking", "added"),
    [(a_pipe, False, 0), (a_terminal, False, 0), (a_file, True, os.O_APPEND), (a_socket, True, 0)],
)
def test_the_flags_of_a_shared_output_are_untouched_but_to_append(
    stack: ExitStack, tmp_path: Path, make: Callable[[ExitStack, Path], int], blocking: bool, added: int
) -> None:
    """Where it matters standard output is opened anew, non-blocking; what is shared stays, but a file is appended."""
    fd = make(stack, tmp_path)
    before = fcntl.fcntl(fd, fcntl.F_GETFL)
    with standard_output(fd):
        opened = own(stack, open_standard_output())
    same = (os.fstat(fd).st_dev, os.fstat(fd).st_ino) == (os.fstat(opened).st_dev, os.fstat(opened).st_ino)

    assert (before | added, True) == (fcntl.fcntl(fd, fcntl.F_GETFL), os.get_blocking(fd))
    assert (True, blocking, False) == (same, os.get_blocking(opened), os.get_inheritable(opened))


def test_an_output_that_may_not_be_opened_anew(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe of another user cannot be opened anew: it is shared as it is, and asked before each write."""
    reader, writer = os.pipe()
    own(stack, reader)
    own(stack, writer)

    def refuse(*args: object) -> int:
        raise PermissionError

    with standard_output(writer), monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        opened = open_standard_output()
    os.set_blocking(reader, False)
    sink = sink_of(stack, opened)
    lines = numbered(2000)
    fill(sink, lines)
    stuck = sink.pending
    found = b""
    while sink.pending:
        found += read(reader)
        sink.flush()

    assert (True, True, b"".join(lines)) == (os.get_blocking(opened), stuck, found + read(reader))


def test_log_that_is_opened_again_has_flags_of_its_own(tmp_path: Path) -> None:
    """A process that takes O_NONBLOCK or O_APPEND from its descriptor does not take it from the other one."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    file = open_file(str(tmp_path / "log"))
    for fd in (writer, file):
        kept = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK
        before = fcntl.fcntl(fd, fcntl.F_GETFL) & kept
        copy = open_again(fd)
        same = fcntl.fcntl(copy, fcntl.F_GETFL) & kept
        fcntl.fcntl(copy, fcntl.F_SETFL, 0)
        after = fcntl.fcntl(fd, fcntl.F_GETFL) & kept
        os.close(copy)

        assert (before, before) == (same, after)
    for fd in (reader, writer, file):
        os.close(fd)


def test_socket_that_is_opened_again_is_a_duplicate() -> None:
    """The kernel opens no socket by its path: what is written to the duplicate arrives."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        copy = open_again(theirs.fileno())
        os.write(copy, b"through")
        os.close(copy)

        assert b"through" == ours.recv(7)


def test_named_pipe_without_a_reader_is_not_waited_for(tmp_path: Path) -> None:
    """The supervisor would wait for a reader, and serve nothing meanwhile: the descriptor is duplicated instead."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.close(reader)
    copy = open_again(writer)

    assert os.path.sameopenfile(copy, writer)
    os.close(copy)
    os.close(writer)


def test_replace_uses_the_new_descriptor_when_closing_the_old_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk on a network file system is told by close(2)."""
    reader, writer = os.pipe()
    other_reader, other = os.pipe()
    sink = Sink(writer)
    close = os.close

    def failing(fd: int) -> None:
        close(fd)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", failing)
        sink.replace(other)

    assert sink.fd == other
    for fd in (reader, other_reader, other):
        os.close(fd)
