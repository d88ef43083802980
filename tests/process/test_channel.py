"""The channel: whole messages, descriptors beside them, and an end that is noticed."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from echod.config.models import Config, Daemon
from echod.errors import StartError
from echod.process import channel
from echod.process.certificates import Material

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS: list[channel.Command] = [
    channel.Configure(3, ("one", "two")),
    channel.Configure(4, ()),
    channel.Heartbeat(),
    channel.Drain(2.5),
    channel.Stop(),
    channel.ReopenLog(2),
]
ANSWERS: list[channel.Answer] = [
    channel.Configured(3),
    channel.HeartbeatReply(),
    channel.LogReopened(channel.MAX_NUMBER),
    channel.DescriptorsLost(),
    channel.ListenersClosed(),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_command_arrives_as_it_was_sent(command: channel.Command) -> None:
    """Every kind of command comes out equal to what went in, one at a time and in order."""
    ours, theirs = channel.pair()
    ours.send(command)
    ours.send(channel.Heartbeat())

    assert channel.Received(command) == theirs.receive()
    assert channel.Received(channel.Heartbeat()) == theirs.receive()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_answer_arrives_as_it_was_sent(answer: channel.Answer) -> None:
    """Every kind of answer comes out equal to what went in, one at a time and in order."""
    ours, theirs = channel.pair()
    theirs.send(answer)
    theirs.send(channel.HeartbeatReply())

    assert answer == ours.receive()
    assert channel.HeartbeatReply() == ours.receive()
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 200, "not JSON"),
        (b"null", "unknown answer"),
        (b"[]", "unknown answer"),
        (b'["Configured"]', "unknown answer"),
        (b'["Stop", {}]', "unknown answer"),
        (b'["HeartbeatReply", []]', "unknown answer"),
        (b'[["Configured"], {"generation": 1}]', "unknown answer"),
        (b'["Configured", {}]', "wrong fields"),
        (b'["Configured", {"generation": 1, "more": 1}]', "wrong fields"),
        (b'["Configured", {"generation": "1"}]', "wrong fields"),
        (b'["Configured", {"generation": 1.0}]', "wrong fields"),
        (b'["Configured", {"generation": true}]', "wrong fields"),
        (b'["Configured", {"generation": null}]', "wrong fields"),
        (b'["Configured", {"generation": -1}]', "out of range"),
        (b'["Configured", {"generation": 9223372036854775808}]', "out of range"),
        (b'["Configured", {"generation": 1}]' + b" " * channel.MAX_ANSWER_SIZE, "too long"),
    ],
)
def test_answer_that_breaks_the_rules_is_refused(data: bytes, reason: str) -> None:
    """Shape, type and range of each field are checked; what is said about it quotes nothing."""
    ours, theirs = channel.pair()
    os.write(theirs.filenos()[1], data)

    with pytest.raises(channel.ProtocolError, match=reason) as refusal:
        ours.receive()
    ours.close()
    theirs.close()
    assert data.decode(errors="replace") not in str(refusal.value)


def test_worker_cannot_send_a_descriptor_to_the_supervisor() -> None:
    """A socket that lingers would block the supervisor when the kernel closes it there: the send fails.

    Catches a supervisor that only ignores descriptors: they are closed in its context even if it never receives them.
    """
    ours, theirs = channel.pair()
    with socket.socket() as lingering, socket.socket(fileno=os.dup(theirs.fileno())) as commands:
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        with pytest.raises(BrokenPipeError):
            socket.send_fds(commands, [b"{}"], [lingering.fileno()])
    ours.close()
    theirs.close()


def test_descriptors_are_duplicated_and_close_on_exec() -> None:
    """The receiver owns copies of its own, which no program that it might execute inherits."""
    ours, theirs = channel.pair()
    reader, writer = os.pipe()
    ours.send(channel.ReopenLog(1), [reader, writer])
    os.close(reader)
    os.close(writer)
    received = theirs.receive()

    assert received
    reader, writer = received.descriptors
    os.write(writer, b"through")
    through, inheritable = os.read(reader, 10), [os.get_inheritable(fd) for fd in received.descriptors]
    for fd in received.descriptors:
        os.close(fd)
    ours.close()
    theirs.close()

    assert b"through" == through
    assert [False, False] == inheritable


def test_the_most_descriptors_arrive() -> None:
    """As many descriptors as a configuration may ever need fit one message."""
    ours, theirs = channel.pair()
    with socket.socket() as sock:
        ours.send(channel.Configure(1, ()), [sock.fileno()] * channel.MOST_DESCRIPTORS)
    received = theirs.receive()

    assert received
    assert channel.MOST_DESCRIPTORS == len(set(received.descriptors))
    for fd in received.descriptors:
        os.close(fd)
    ours.close()
    theirs.close()


def test_descriptors_that_find_no_place_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of which only some descriptors could be taken arrives without any, says so, and leaves none open."""
    ours, theirs = channel.pair()
    copy = os.dup(0)
    monkeypatch.setattr(socket, "recv_fds", lambda *_: (b'["ReopenLog",{"serial":1}]', [copy], socket.MSG_CTRUNC, None))

    assert channel.Received(channel.ReopenLog(1), [], whole=False) == theirs.receive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(copy)
    ours.close()
    theirs.close()


def test_memory_that_is_short_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel cannot hand over just now is there to be read later."""
    ours, theirs = channel.pair()
    ours.send(channel.Heartbeat())

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(socket, "recv_fds", fail)
        with pytest.raises(BlockingIOError):
            theirs.receive()

    assert channel.Received(channel.Heartbeat()) == theirs.receive()
    ours.close()
    theirs.close()


def test_end_of_file_is_told_from_an_empty_channel() -> None:
    """An empty channel raises BlockingIOError; one whose other end is gone returns None, to either side."""
    ours, theirs = channel.pair()
    with pytest.raises(BlockingIOError):
        theirs.receive()
    with pytest.raises(BlockingIOError):
        ours.receive()
    ours.close()

    assert theirs.receive() is None
    with pytest.raises(BrokenPipeError):
        theirs.send(channel.HeartbeatReply())
    theirs.close()


def test_supervisor_sees_that_the_worker_is_gone() -> None:
    """What the worker has sent last is read, then its end is seen; a command cannot be sent any more."""
    ours, theirs = channel.pair()
    ours.send(channel.Heartbeat())
    theirs.send(channel.HeartbeatReply())
    theirs.close()

    assert channel.HeartbeatReply() == ours.receive()
    assert ours.receive() is None
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        ours.send(channel.Heartbeat())
    ours.close()


def _repeat(send: Callable[[], None]) -> None:
    for _ in range(100_000):
        send()


def test_full_channel_never_blocks() -> None:
    """When one side does not read, the other side's send fails instead of waiting."""
    ours, theirs = channel.pair()
    with pytest.raises(BlockingIOError):
        _repeat(lambda: ours.send(channel.Heartbeat()))
    with pytest.raises(BlockingIOError):
        _repeat(lambda: theirs.send(channel.HeartbeatReply()))
    ours.close()
    theirs.close()


def test_pair_without_descriptors_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no socket can be made, the pipe that was made before is closed."""
    before = os.listdir("/proc/self/fd")  # noqa: PTH208  # a Path would hold one more

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socketpair", fail)
    with pytest.raises(OSError, match="Too many open files"):
        channel.pair()

    assert before == os.listdir("/proc/self/fd")  # noqa: PTH208  # as above


@pytest.mark.parametrize(
    "change",
    [
        lambda fd: os.pwrite(fd, b"{}", 0),
        lambda fd: os.ftruncate(fd, 0),
        lambda fd: os.ftruncate(fd, 1 << 20),
        lambda fd: mmap.mmap(fd, 0),
        lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
        lambda fd: os.truncate(f"/proc/self/fd/{fd}", 0),
    ],
    ids=["write", "shrink", "grow", "map", "seal", "reopen"],
)
def test_configuration_cannot_be_rewritten(change: Callable[[int], object]) -> None:
    """A worker that changes the memfd it was sent would configure every later worker: the kernel refuses."""
    fd = channel.to_memfd(Config(), {})
    with pytest.raises(PermissionError):
        change(fd)

    assert (Config(), {}) == channel.from_memfd(fd)


def test_the_configuration_travels_as_a_memfd() -> None:
    """Several readers of one memfd get the same configuration, whatever its file offset; each closes its copy."""
    config = Config(daemon=Daemon(workers=7, drain_timeout="3s"))  # type: ignore[arg-type]
    materials = {"echo": Material("the chain", None)}
    fd = channel.to_memfd(config, materials)
    copies = [os.dup(fd), os.dup(fd)]

    assert [(config, materials)] * 2 == [channel.from_memfd(copy) for copy in copies]
    for copy in copies:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(copy)
    os.close(fd)


def test_memfd_that_cannot_be_written_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reload that fails would leave a descriptor open."""

    def refuse(*_args: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "fcntl", refuse)
        with pytest.raises(StartError):
            channel.to_memfd(Config(), {})

    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208
