"""Runs echod with workers that a client can turn hostile: it sends `attack:NAME`, and the worker does what NAME says.

Put before the command of a daemon (`prefix` of `Daemon`). The supervisor is echod's own, and so is each worker until
then. An attack's result is what the client receives in return; an attack may also never end.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  # a worker that has dropped its rights may not be able to
import fcntl
import os
import random
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

import orjson

from echod import cli
from echod.net.stream import Stream
from echod.observe.scoreboard import CLOSED, Column
from echod.process import channel, worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.process.worker import Worker

PREFIX = b"attack:"
LINGER = struct.pack("ii", 1, 30)


class Captured:
    """What a compromised worker holds of its supervisor."""

    worker: Worker
    config: int
    """The memfd that the newest configuration came in."""


def big_counters(worker: Worker) -> bytes:
    """Claim more bytes than a signed number of 64 bits holds."""
    worker._row[Column.RECEIVED] = worker._row[Column.ECHOED] = 2**63
    return b"done"


def all_ones(worker: Worker) -> bytes:
    """Fill the whole row."""
    cells = worker._row.cells
    for column in range(len(cells)):
        cells[column] = 2**64 - 1
    return b"done"


def closed_without_accepting(worker: Worker) -> bytes:
    """Have more connections closed than accepted, and exit."""
    worker._row[next(iter(CLOSED.values()))] = 1_000_000
    os._exit(1)


def many_rows(worker: Worker) -> bytes:
    """Tell the siblings that there are 2^40 rows to add up."""
    worker._row.board.cells[Column.ROWS_USED] = 2**40
    return b"done"


def siblings_row(worker: Worker) -> bytes:
    """Count connections in the row of another worker."""
    board = worker._row.board
    board.row(3 - worker._row.number)[Column.ACTIVE] = 2**40
    return b"done"


def rewrite_config(worker: Worker) -> bytes:
    """Lift what the configuration denies, for every worker that reads it from now on."""
    document = orjson.loads(os.pread(Captured.config, os.fstat(Captured.config).st_size, 0))
    for listener in document["config"]["listener"]:
        listener["deny"] = []
    data = orjson.dumps(document)
    os.pwrite(Captured.config, data, 0)
    os.ftruncate(Captured.config, len(data))
    return b"done"


def spoil_config(worker: Worker) -> bytes:
    """Leave a configuration that ends every worker that reads it."""
    os.ftruncate(Captured.config, 0)
    return b"done"


def pass_descriptors(worker: Worker, descriptors: list[int]) -> bytes:
    """Send descriptors over the channel."""
    with socket.socket(fileno=os.dup(worker.fd)) as commands:
        socket.send_fds(commands, [b'["HeartbeatReply", {}]'], descriptors)
    return b"done"


def pass_lingering(worker: Worker) -> bytes:
    """Send a socket that takes 30 seconds to close."""
    silent = socket.create_server(("127.0.0.1", 0))
    lingering = socket.create_connection(silent.getsockname()).detach()  # never closed here: the worker would wait
    silent.detach()
    with socket.socket(fileno=os.dup(lingering)) as fill:
        fill.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                fill.send(bytes(1 << 20))
        fill.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    return pass_descriptors(worker, [lingering])


def pass_many(worker: Worker) -> bytes:
    """Send 250 descriptors, time and again."""
    for _ in range(20):
        pass_descriptors(worker, [0] * 250)
    return b"done"


def shut_down(worker: Worker) -> bytes:
    """End the listening of all workers."""
    for listener in worker._listeners.values():
        socket.socket.shutdown(listener.socket, socket.SHUT_RD)
    return b"done"


def shut_down_and_take(worker: Worker) -> bytes:
    """End the listening of all workers, and listen on the port oneself."""
    for listener in worker._listeners.values():
        address = listener.socket.getsockname()
        socket.socket.shutdown(listener.socket, socket.SHUT_RD)
        thief = socket.socket()
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(address)
        thief.listen()
        os.set_inheritable(thief.detach(), True)
    return str(os.getpid()).encode()


def flood(worker: Worker) -> bytes:
    """Send answers as fast as the supervisor takes them, and for ever."""
    while True:
        with contextlib.suppress(BlockingIOError):
            worker._channel.send(channel.HeartbeatReply())


def serve_the_future(worker: Worker) -> bytes:
    """Answer a heartbeat by confirming a configuration that there is not yet."""
    select.select([worker.fd], [], [])
    worker._channel.receive()
    worker._channel.send(channel.Configured(1_000_000))
    return b"done"


def block_log(worker: Worker) -> bytes:
    """Make writes to the log wait, and fill it until they do."""
    fd = worker._log.sink.fd
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    while True:
        os.write(fd, b"x" * 4095 + b"\n")


def garbage(worker: Worker) -> bytes:
    """Write random bytes over everything that there is to write to: the own row, and the pipe; some of it well made."""
    seed = int(os.environ.get("HOSTILE_SEED", "0")) + os.getpid()
    dice = random.Random(seed)
    own = worker._row.cells
    numbers = (0, 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
    answers = [b'["Configured",{"generation":%d}]', b'["LogReopened",{"serial":%d}]', b'["HeartbeatReply",{}]%.0d']
    while True:
        for _ in range(dice.randrange(200)):
            own[dice.randrange(len(own))] = dice.choice([*numbers, dice.getrandbits(64)])
        data = dice.randbytes(dice.randrange(1, 5000))
        if dice.random() < 0.9:
            data = dice.choice(answers) % dice.choice(numbers[:3])
        with contextlib.suppress(BlockingIOError):
            os.write(worker._channel.filenos()[1], data)


ATTACKS: dict[str, Callable[[Worker], bytes]] = {
    attack.__name__: attack
    for attack in (
        big_counters,
        all_ones,
        closed_without_accepting,
        many_rows,
        siblings_row,
        rewrite_config,
        spoil_config,
        pass_lingering,
        pass_many,
        shut_down,
        shut_down_and_take,
        flood,
        serve_the_future,
        block_log,
        garbage,
    )
}


def infect() -> None:
    """Make every worker listen to a client that attacks."""
    begin, read, load = worker.Worker.__init__, Stream.on_readable, channel.from_memfd

    def become(self: Worker, *arguments: Any) -> None:
        begin(self, *arguments)
        Captured.worker = self

    def on_readable(self: Stream, now: float) -> bool | None:
        data = b""
        with contextlib.suppress(OSError):
            data = self.socket.recv(64, socket.MSG_PEEK)
        if not data.startswith(PREFIX):
            return read(self, now)
        self.socket.recv(64)
        try:
            answer = ATTACKS[data.removeprefix(PREFIX).decode()](Captured.worker)
        except (OSError, TypeError) as error:
            answer = type(error).__name__.encode()
        self.socket.send(answer)
        return False

    def from_memfd(fd: int) -> Any:
        Captured.config = os.dup(fd)
        return load(fd)

    worker.Worker.__init__ = become  # type: ignore[method-assign,assignment]
    Stream.on_readable = on_readable  # type: ignore[method-assign]
    channel.from_memfd = from_memfd


if __name__ == "__main__":
    infect()
    sys.exit(cli.main(sys.argv[sys.argv.index("echod") + 1 :]))
