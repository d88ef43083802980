"""Messages between supervisor and workers: commands on a socket pair, answers on a pipe of packets.

Rules
    Commands go down a SOCK_SEQPACKET pair, which keeps messages whole (unix(7)) and carries descriptors.
    Answers come up a pipe with O_DIRECT, which keeps them whole too (pipe(2)) and cannot carry descriptors. The
    supervisor shuts its end of the socket pair for reading before it forks, so a worker cannot send on that either: the
    kernel would close a descriptor that lingers (SO_LINGER) in the supervisor's context, and block it.
    A worker is not trusted. Each answer is bounded, and its type and every field are checked.
    Neither side ever waits for the other. End of file means that the other process is gone, so a worker closes what it
    inherits of its siblings' channels.
    The configuration is too long for a message (over 212 KB is refused), so it travels as a sealed memfd.
    A process without a free descriptor receives a message without its descriptors (unix(7), MSG_CTRUNC). It must notice
    that, and make room.

Known limit: write(2) holds the pipe's lock while it copies. A worker that can make a page fault block (a FUSE file
system in a user namespace of its own) makes the supervisor wait in read(2). RestrictNamespaces= prevents that.

Fails: BlockingIOError when the other side does not read, ConnectionError when it is gone, ProtocolError for an answer
that breaks these rules.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import select
import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from io import FileIO
from typing import TYPE_CHECKING

import orjson

from echod.config import dumping
from echod.config.models import Config
from echod.errors import StartError
from echod.process.certificates import Material

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_DESCRIPTORS = 250
"""Descriptors in one message; the kernel's SCM_MAX_FD is 253."""

PASSING = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""What sending and receiving may fail with for want of something that others may give back (unix(7))."""

MAX_ANSWER_SIZE = 256
"""Bytes of an answer. The longest that a worker sends has some 60."""

MAX_NUMBER = 2**63 - 1
"""The largest number in an answer."""

_MAX_COMMAND_SIZE = 64 * 1024
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ProtocolError(Exception):
    """A worker has broken the rules of the channel. The text is echod's own and never quotes the worker."""


@dataclass(frozen=True)
class Configure:
    """Serve this configuration. Comes with the configuration's memfd and one listening socket for each name."""

    generation: int
    listeners: tuple[str, ...]
    """The names of the listening sockets, in the order of their descriptors; none for a worker that retires."""


@dataclass(frozen=True)
class Heartbeat:
    """Answer, to show that the loop runs."""


@dataclass(frozen=True)
class Drain:
    """Accept no more, and exit when the last connection has ended."""

    timeout: float
    """Seconds until the rest is reset; 0 for no limit."""


@dataclass(frozen=True)
class Stop:
    """Reset every connection and exit."""


@dataclass(frozen=True)
class ReopenLog:
    """Log to the descriptor that comes with this."""

    serial: int
    """Counts the descriptors that the log has moved to."""


@dataclass(frozen=True)
class Configured:
    """The worker serves this generation of the configuration."""

    generation: int


@dataclass(frozen=True)
class HeartbeatReply:
    """The worker's loop runs."""


@dataclass(frozen=True)
class LogReopened:
    """The worker logs to the descriptor that came with this serial."""

    serial: int


@dataclass(frozen=True)
class DescriptorsLost:
    """The worker had no descriptors left for those that came with a message: send them again."""


@dataclass(frozen=True)
class ListenersClosed:
    """The worker has accepted all waiting connections and has closed its listening sockets."""


Command = Configure | Heartbeat | Drain | Stop | ReopenLog
Answer = Configured | HeartbeatReply | LogReopened | DescriptorsLost | ListenersClosed

_COMMANDS: dict[str, type[Command]] = {kind.__name__: kind for kind in (Configure, Heartbeat, Drain, Stop, ReopenLog)}
_ANSWERS: dict[str, type[Answer]] = {
    kind.__name__: kind for kind in (Configured, HeartbeatReply, LogReopened, DescriptorsLost, ListenersClosed)
}


@dataclass
class Received:
    """A command and the descriptors that came with it, which are the receiver's to close."""

    message: Command
    descriptors: list[int] = field(default_factory=list)
    whole: bool = True
    """Whether all descriptors arrived; else there are none."""


class SupervisorChannel:
    """The supervisor's end: sends commands, receives answers."""

    def __init__(self, commands: socket.socket, answers: FileIO) -> None:
        """Take over a socket that cannot be read from, and the read end of a pipe of packets."""
        self._commands = commands
        self._answers = answers

    def fileno(self) -> int:
        """Return the descriptor to watch: the pipe's, since a socket that is shut for reading is always readable."""
        return self._answers.fileno()

    def send(self, message: Command, descriptors: Sequence[int] = ()) -> None:
        """Send `message`; the descriptors stay the sender's."""
        socket.send_fds(self._commands, [_encode(message)], descriptors)

    def receive(self) -> Answer | None:
        """Return the next answer, or None when the worker is gone; raise BlockingIOError when there is none."""
        data = os.read(self._answers.fileno(), select.PIPE_BUF)
        return _parse(data) if data else None

    def close(self) -> None:
        """Close socket and pipe."""
        self._commands.close()
        self._answers.close()


class WorkerChannel:
    """A worker's end: receives commands, sends answers."""

    def __init__(self, commands: socket.socket, answers: FileIO) -> None:
        """Take over a socket, and the write end of a pipe of packets."""
        self._commands = commands
        self._answers = answers

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._commands.fileno()

    def filenos(self) -> tuple[int, int]:
        """Return both descriptors."""
        return self._commands.fileno(), self._answers.fileno()

    def send(self, message: Answer) -> None:
        """Send `message`."""
        os.write(self._answers.fileno(), _encode(message))

    def receive(self) -> Received | None:
        """Return the next command, or None when the supervisor is gone; raise BlockingIOError when there is none."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._commands, _MAX_COMMAND_SIZE, MOST_DESCRIPTORS)
        except ConnectionError:
            return None
        except OSError as error:
            if error.errno in PASSING:
                raise BlockingIOError(error.errno, error.strerror) from None  # it is still there, and will be read
            raise
        if not data:
            return None
        whole = not flags & socket.MSG_CTRUNC
        for fd in descriptors:
            if whole:
                os.set_inheritable(fd, False)  # recv_fds ignores MSG_CMSG_CLOEXEC among its flags
            else:
                os.close(fd)
        name, fields = orjson.loads(data)
        if name == Configure.__name__:
            fields["listeners"] = tuple(fields["listeners"])
        return Received(_COMMANDS[name](**fields), descriptors if whole else [], whole)

    def close(self) -> None:
        """Close socket and pipe."""
        self._commands.close()
        self._answers.close()


def pair() -> tuple[SupervisorChannel, WorkerChannel]:
    """Return the supervisor's end and the worker's; raise OSError without enough descriptors."""
    reader, writer = os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    ours.setblocking(False)
    theirs.setblocking(False)
    ours.shutdown(socket.SHUT_RD)
    return SupervisorChannel(ours, FileIO(reader)), WorkerChannel(theirs, FileIO(writer, "w"))


def to_memfd(config: Config, materials: Mapping[str, Material]) -> int:
    """Return a sealed memfd that holds what workers serve, which the caller closes.

    Raise StartError when memory is short.
    """
    with ExitStack() as undo:
        try:
            fd = os.memfd_create("echod-config", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, fd)
            with open(fd, "wb", closefd=False) as file:
                file.write(orjson.dumps({"config": dumping.dump(config), "certificates": materials}))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)  # a worker must not rewrite what later workers will read
        except OSError as error:
            raise StartError(f"no memory for the configuration: {error.strerror}", errno=error.errno) from None
        undo.pop_all()
    return fd


def from_memfd(fd: int) -> tuple[Config, dict[str, Material]]:
    """Return the configuration, and the certificates of its listeners by their names, that `fd` holds, and close it."""
    try:
        data = orjson.loads(os.pread(fd, os.fstat(fd).st_size, 0))  # all workers share the file offset
    finally:
        os.close(fd)
    materials = {name: Material(**material) for name, material in data["certificates"].items()}
    return Config.model_validate(data["config"]), materials


def _encode(message: Command | Answer) -> bytes:
    return orjson.dumps([type(message).__name__, asdict(message)])


def _parse(data: bytes) -> Answer:
    if len(data) > MAX_ANSWER_SIZE:
        raise ProtocolError("sent an answer that is too long")
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise ProtocolError("sent an answer that is not JSON") from None
    match document:
        case [str(name), dict(fields)] if name in _ANSWERS:
            kind = _ANSWERS[name]
        case _:
            raise ProtocolError("sent an unknown answer")
    names = {each.name for each in dataclasses.fields(kind)}
    # A bool is an int to isinstance, and is none here.
    if fields.keys() != names or any(type(value) is not int for value in fields.values()):
        raise ProtocolError("sent an answer with wrong fields")
    if any(not 0 <= value <= MAX_NUMBER for value in fields.values()):
        raise ProtocolError("sent a number out of range")
    return kind(**fields)
