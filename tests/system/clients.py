"""Load clients that verify every byte: one epoll loop drives thousands of connections.

Rule: what a client sends is a function of (seed, position), so what must come back is known without being stored.
`Load.run` never raises for what a server does wrong: it is all in the clients' attributes, for the test to judge.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

Address = tuple[str, int]

KIB = 1024
MIB = 1024 * KIB
BLOCK = 4 * MIB
READ = 256 * KIB
LARGEST = MIB  # the longest single write
TURN = 256 * KIB  # what one client may write before the next one has its turn
RESET = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)


def connect(address: Address, *, timeout: float = 5.0, receive_buffer: int = 0) -> socket.socket:
    """Open a blocking connection; a small receive buffer must be asked for before it is opened."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.settimeout(timeout)
        if receive_buffer:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        opened.connect(address)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        opened.close()
        raise
    return opened


def free_port() -> int:
    """Return a port of 127.0.0.1 that no program has just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def abort(opened: socket.socket) -> None:
    """Close with RST."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    opened.close()


def read_exactly(opened: socket.socket, size: int) -> bytes:
    """Read `size` bytes, or what there was until the end of the stream."""
    parts = []
    while size and (data := opened.recv(min(size, READ))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def read_to_end(opened: socket.socket, timeout: float = 10.0) -> tuple[bytes, str]:
    """Read until the stream ends: the bytes, and how it ended: "fin", "reset" or "timeout"."""
    opened.settimeout(timeout)
    parts = []
    try:
        while data := opened.recv(READ):
            parts.append(data)
    except RESET:
        return b"".join(parts), "reset"
    except TimeoutError:
        return b"".join(parts), "timeout"
    return b"".join(parts), "fin"


def ping(opened: socket.socket, data: bytes = b"are you there?", timeout: float = 5.0) -> float:
    """Send a small message, have it back unchanged, and tell how many seconds that took."""
    opened.settimeout(timeout)
    started = time.monotonic()
    opened.sendall(data)
    answer = read_exactly(opened, len(data))
    if answer != data:
        raise AssertionError(f"sent {data!r}, got {answer!r} back")
    return time.monotonic() - started


def echo_once(address: Address, data: bytes = b"hello", timeout: float = 5.0) -> None:
    """Connect, send, half-close, and expect exactly the same bytes and FIN."""
    with connect(address, timeout=timeout) as opened:
        opened.sendall(data)
        opened.shutdown(socket.SHUT_WR)
        answer, end = read_to_end(opened, timeout)
        if (answer, end) != (data, "fin"):
            raise AssertionError(f"sent {len(data)} bytes, got {len(answer)} back and then {end}")


class Payload:
    """An endless pseudo-random stream, the same for the same seed; each client starts at a place of its own."""

    def __init__(self, seed: int) -> None:
        block = random.Random(seed).randbytes(BLOCK)
        self._block = block + block[:LARGEST]
        self._view = memoryview(self._block)

    def view(self, position: int, size: int) -> memoryview:
        """`size` bytes from `position` on, without copying."""
        start = position % BLOCK
        return self._view[start : start + size]

    def differences(self, position: int, data: bytes) -> int:
        """How many bytes of `data` are not those that stand at `position`."""
        start = position % BLOCK
        expected = self._block[start : start + len(data)]
        if expected == data:
            return 0
        return sum(a != b for a, b in zip(expected, data, strict=True))


class Client:
    """One connection: sends `size` bytes, half-closes, reads to the end, and keeps count.

    `reads`: "always" while sending; "after" the write side is shut down; "never".
    `pace`: read at most so many bytes, then none for so many seconds. `hold_open`: do not shut down the write side.
    `window`: have no more than so many bytes under way. `finish` makes what was sent so far the whole.
    """

    def __init__(
        self,
        opened: socket.socket,
        payload: Payload,
        seed: int,
        size: int,
        *,
        writes: tuple[int, int] = (1, LARGEST),
        reads: str = "always",
        pace: tuple[int, float] | None = None,
        window: int | None = None,
        hold_open: bool = False,
    ) -> None:
        self.socket = opened
        self.port: int = 0 if opened.family == socket.AF_UNIX else opened.getsockname()[1]
        self.size = size
        self.sent = 0
        self.received = 0
        self.wrong = 0
        self.end: str | None = None  # "fin" or the name of the error
        self.reads = reads
        self.pace = pace
        self.window = window
        self.shut = False
        self.resting = False
        self.hold_open = hold_open
        self._payload = payload
        self._start = seed * 7919
        self._rest = 0
        low, high = writes
        self._exponents = (low.bit_length() - 1, high.bit_length() - 1)
        self._random = random.Random(seed)
        opened.setblocking(False)

    @property
    def done(self) -> bool:
        """Whether nothing more can happen here."""
        return self.end is not None

    @property
    def complete(self) -> bool:
        """Whether everything sent came back unchanged, and then FIN."""
        return self.sent == self.size == self.received and self.wrong == 0 and self.end == "fin"

    def interest(self) -> int:
        """Return what to watch for."""
        mask = 0
        if not self.done:
            if not self.shut and (self._may_send > 0 or (self.sent == self.size and not self.hold_open)):
                mask |= select.EPOLLOUT
            if self.reads == "always" or (self.reads == "after" and self.shut):
                mask |= 0 if self.resting else select.EPOLLIN
        return mask

    @property
    def _may_send(self) -> int:
        left = self.size - self.sent
        return left if self.window is None else min(left, self.window - (self.sent - self.received))

    def finish(self) -> None:
        """Send no more: what was sent so far is all."""
        self.size = self.sent

    def on_writable(self) -> None:
        """Write until the kernel takes no more or the turn is over."""
        budget = min(TURN, self._may_send)
        try:
            while self.sent < self.size and budget > 0:
                if not self._rest:
                    self._rest = int(2.0 ** self._random.uniform(*self._exponents))
                self._rest = min(self._rest, self._may_send)
                count = self.socket.send(self._payload.view(self._start + self.sent, self._rest))
                self.sent += count
                self._rest -= count
                budget -= count
            if self.sent == self.size and not self.hold_open:
                self.socket.shutdown(socket.SHUT_WR)
                self.shut = True
        except BlockingIOError:
            return
        except OSError as error:
            self.end = type(error).__name__

    def on_readable(self) -> None:
        """Read once and compare."""
        try:
            data = self.socket.recv(self.pace[0] if self.pace else READ)
        except BlockingIOError:
            return
        except OSError as error:
            self.end = type(error).__name__
            return
        if data:
            self.wrong += self._payload.differences(self._start + self.received, data)
            self.received += len(data)
            self.resting = self.pace is not None
        else:
            self.end = "fin"


class Load:
    """Many clients, one loop."""

    def __init__(self, clients: Iterable[Client]) -> None:
        self.clients = list(clients)
        self._epoll = select.epoll()
        self._watched: dict[int, int] = {}
        self._by_fd: dict[int, Client] = {}
        self._resting: list[tuple[float, int]] = []
        for client in self.clients:
            self.watch(client)

    def watch(self, client: Client) -> None:
        """Drive this client too."""
        fd = client.socket.fileno()
        self._by_fd[fd] = client
        self._watched[fd] = client.interest()
        self._epoll.register(fd, self._watched[fd])

    def ended(self, client: Client) -> None:
        """Do what is to be done when a client is done: nothing, here."""

    @classmethod
    def open(
        cls,
        addresses: Address | Sequence[Address],
        count: int,
        size: int,
        seed: int,
        *,
        receive_buffer: int = 0,
        writes: tuple[int, int] = (1, LARGEST),
        reads: str = "always",
        pace: tuple[int, float] | None = None,
        window: int | None = None,
        hold_open: bool = False,
    ) -> Load:
        """Connect `count` clients, in turn to each of the addresses."""
        print(f"seed {seed}: {count} clients, {size} bytes each")  # noqa: T201
        targets = [addresses] if isinstance(addresses[0], str) else addresses
        payload = Payload(seed)
        with contextlib.ExitStack() as stack:
            clients = []
            for number in range(count):
                opened = connect(targets[number % len(targets)], receive_buffer=receive_buffer)  # type: ignore[arg-type]
                stack.callback(opened.close)
                clients.append(
                    Client(
                        opened,
                        payload,
                        seed + number,
                        size,
                        writes=writes,
                        reads=reads,
                        pace=pace,
                        window=window,
                        hold_open=hold_open,
                    )
                )
            stack.pop_all()
        return cls(clients)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every socket."""
        self._epoll.close()
        for client in self.clients:
            client.socket.close()

    def run(self, timeout: float = 60.0, until: Callable[[], bool] | None = None) -> bool:
        """Drive all clients until they are done or `until` holds (asked every 20 ms); False if time was up first."""
        end = time.monotonic() + timeout
        asked = 0.0
        for fd in list(self._by_fd):
            self._renew(fd)
        while self._by_fd:
            now = time.monotonic()
            if until and now >= asked + 0.02:
                asked = now
                if until():
                    return True
            if now >= end:
                return False
            self._turn(now)
        return until is None or until()

    def _turn(self, now: float) -> None:
        while self._resting and self._resting[0][0] <= now:
            fd = heapq.heappop(self._resting)[1]
            if fd in self._by_fd:
                self._by_fd[fd].resting = False
                self._renew(fd)
        for fd, events in self._epoll.poll(0.01, 512):
            client = self._by_fd[fd]
            if events & ~select.EPOLLOUT and (client.interest() & select.EPOLLIN or events & select.EPOLLERR):
                client.on_readable()
                if client.resting and client.pace:
                    heapq.heappush(self._resting, (now + client.pace[1], fd))
            if events & select.EPOLLOUT and not client.done:
                client.on_writable()
            self._renew(fd)

    def _renew(self, fd: int) -> None:
        client = self._by_fd[fd]
        if client.done:
            self._epoll.unregister(fd)
            del self._by_fd[fd]
            self.ended(client)
            return
        mask = client.interest()
        if mask != self._watched[fd]:
            self._watched[fd] = mask
            self._epoll.modify(fd, mask)

    def report(self) -> dict[str, int]:
        """Count what went on: bytes, wrong bytes and how the connections ended."""
        counts = {
            "sent": sum(client.sent for client in self.clients),
            "received": sum(client.received for client in self.clients),
            "wrong": sum(client.wrong for client in self.clients),
            "complete": sum(client.complete for client in self.clients),
        }
        for client in self.clients:
            key = client.end or "open"
            counts[key] = counts.get(key, 0) + 1
        return counts
