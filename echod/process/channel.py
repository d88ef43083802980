"""What supervisor and worker say to each other: whole messages on a socket pair, with descriptors where needed.

Rules
    SOCK_SEQPACKET keeps messages whole (unix(7)); neither side ever waits for the other.
    End of file means that the other process is gone: nobody else may hold its end, so a worker closes what it inherits.
    The configuration is too long for a message (over 212 KB is refused), so it travels as a memfd.
    A process that has no descriptor left gets a message without those that came with it (unix(7), MSG_CTRUNC): it must
    know, and make room.

Fails: BlockingIOError when the other side does not read, ConnectionError when it is gone.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import asdict, dataclass, field
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

_LONGEST = 64 * 1024


@dataclass(frozen=True)
class Assign:
    """Serve this configuration. Comes with the configuration's memfd and one listening socket for each name."""

    generation: int
    listeners: tuple[str, ...]
    """The names of the listening sockets, in the order of their descriptors; none for a worker that retires."""


@dataclass(frozen=True)
class Ping:
    """Say that you live."""


@dataclass(frozen=True)
class Drain:
    """Accept no more, and leave when the last connection has ended."""

    timeout: float
    """Seconds until the rest is reset; 0 for no limit."""


@dataclass(frozen=True)
class Stop:
    """Reset every connection and leave."""


@dataclass(frozen=True)
class Reopen:
    """Log to the descriptor that comes with this."""


@dataclass(frozen=True)
class Answer:
    """The worker serves this generation of the configuration."""

    generation: int


@dataclass(frozen=True)
class Pong:
    """The worker lives."""


@dataclass(frozen=True)
class Missed:
    """The worker had no descriptors left for those that came with a message: send them again."""


@dataclass(frozen=True)
class Released:
    """The worker has accepted all who waited and has closed its listening sockets."""


Message = Assign | Ping | Drain | Stop | Reopen | Answer | Pong | Missed | Released

_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Assign, Ping, Drain, Stop, Reopen, Answer, Pong, Missed, Released)
}


@dataclass
class Received:
    """A message and the descriptors that came with it, which are the receiver's to close."""

    message: Message
    descriptors: list[int] = field(default_factory=list)
    whole: bool = True
    """Whether all descriptors arrived; else there are none."""


class Channel:
    """One end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send `message`; the descriptors stay the sender's."""
        data = orjson.dumps([type(message).__name__, asdict(message)])
        socket.send_fds(self._socket, [data], descriptors)

    def receive(self) -> Received | None:
        """Return the next message, or None when the other side is gone; raise BlockingIOError when there is none."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, _LONGEST, MOST_DESCRIPTORS)
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
        if name == Assign.__name__:
            fields["listeners"] = tuple(fields["listeners"])
        return Received(_KINDS[name](**fields), descriptors if whole else [], whole)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def pair() -> tuple[Channel, Channel]:
    """Return the supervisor's end and the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)


def to_memfd(config: Config, materials: Mapping[str, Material]) -> int:
    """Return a memfd that holds what workers serve, which the caller closes; raise StartError when memory is short."""
    try:
        fd = os.memfd_create("echod-config")
        with open(fd, "wb", closefd=False) as file:
            file.write(orjson.dumps({"config": dumping.dump(config), "certificates": materials}))
    except OSError as error:
        raise StartError(f"no memory for the configuration: {error.strerror}", errno=error.errno) from None
    return fd


def from_memfd(fd: int) -> tuple[Config, dict[str, Material]]:
    """Return the configuration, and the certificates of its listeners by their names, that `fd` holds, and close it."""
    try:
        data = orjson.loads(os.pread(fd, os.fstat(fd).st_size, 0))  # all workers share the file offset
    finally:
        os.close(fd)
    materials = {name: Material(**material) for name, material in data["certificates"].items()}
    return Config.model_validate(data["config"]), materials
