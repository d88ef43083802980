"""What the tests of the sockets share: a clock that stands still, a loop turned by hand, a door and its guests."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from echod.config import listeners as models
from echod.config.models import Limits
from echod.core.access import Networks
from echod.core.connection import RECEIVE, Connection
from echod.events import DropReason, RefuseReason
from echod.net.caller import Caller, Origin
from echod.net.listener import Listener
from echod.net.poller import POLLERS
from echod.net.reactor import Handler, Reactor
from echod.net.setting import Setting
from echod.net.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.events import Event

PATIENCE = 10.0
"""Seconds until a test gives up on something that takes milliseconds."""

TURN = 0.05
"""Seconds that one turn may wait for the kernel."""

_PATTERN = bytes(range(251)) * 18
"""What is sent, so that a byte in the wrong place shows."""

Socket = TypeVar("Socket", bound=socket.socket)


class Clock:
    """A monotonic clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class DoorKeeper:
    """A gate that counts, and otherwise does what a test says."""

    def __init__(self) -> None:
        self.limit = 1_000_000
        self.per_address = 0
        self.full: set[int] = set()
        self.turned_away: list[RefuseReason] = []
        self.serial = 0
        self.inside = 0
        self.stuffed = False

    def admit(self, key: int) -> int | RefuseReason:
        """Admit up to the limit."""
        if self.inside >= self.limit:
            return RefuseReason.OVER_LIMIT
        self.inside += 1
        self.serial += 1
        return self.serial

    def refuse(self, reason: RefuseReason) -> int:
        """Return the next number, and note why."""
        self.turned_away.append(reason)
        self.serial += 1
        return self.serial

    def crowded(self) -> bool:
        """Say what the test has set."""
        return self.stuffed

    def enter(self, key: int) -> bool:
        """Let an address in, unless it is on the list of those that have enough."""
        return key not in self.full

    def leave(self, key: int) -> None:
        """Let one out."""
        self.inside -= 1


class Counter:
    """Counts bytes, ends and datagrams, and those that were dropped by reason."""

    def __init__(self) -> None:
        self.bytes: list[tuple[int, int]] = []
        self.ended: list[Connection] = []
        self.sent: list[int] = []
        self.lost: list[DropReason] = []

    def moved(self, received: int, echoed: int) -> None:
        """Note bytes that were not counted before."""
        self.bytes.append((received, echoed))

    def closed(self, connection: Connection) -> None:
        """Note one that has ended."""
        self.ended.append(connection)

    def echoed(self, count: int) -> None:
        """Note the size of one that was sent back."""
        self.sent.append(count)

    def dropped(self, reason: DropReason) -> None:
        """Note why one was not."""
        self.lost.append(reason)


class Rig:
    """A reactor turned by hand, the events that were reported, and every socket that is to be closed in the end."""

    def __init__(self, poller: str, stack: ExitStack) -> None:
        self.clock = Clock()
        self.crashes: list[tuple[Handler, Exception]] = []
        self.recorded: list[Event] = []
        self.gate = DoorKeeper()
        self.tally = Counter()
        self.poller = POLLERS[poller]()
        self.reactor = Reactor(self.poller, lambda handler, error: self.crashes.append((handler, error)), self.clock)
        self.setting = Setting(
            Limits(),
            memoryview(bytearray(RECEIVE)),
            self.gate,
            self.recorded.append,
            verbose=False,
            workers=1,
            tally=self.tally,
            udp_ports=frozenset(),
            quiet=Networks(()),
            contexts={},
        )
        self._stack = stack
        stack.callback(self.poller.close)
        stack.callback(self._close_handlers)

    def limit(self, **limits: Any) -> None:
        """Let other limits hold for those who come from now on."""
        self.setting.limits = Limits.model_construct(**(dict(Limits()) | limits))

    def keep(self, sock: Socket) -> Socket:
        """Close `sock` when the test is over."""
        self._stack.enter_context(sock)
        return sock

    def door(self, host: str = "127.0.0.1") -> socket.socket:
        """Return a listening socket, as `binding.bind` makes them."""
        door = self.keep(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        door.bind((host, 0))
        door.listen(128)
        door.setblocking(False)
        return door

    def knock(self, door: socket.socket, **options: int) -> socket.socket:
        """Connect to `door`; `options` are SO_… of the client."""
        client = self.keep(socket.socket(door.family))
        for name, value in options.items():
            client.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        client.connect(door.getsockname())
        client.setblocking(False)
        return client

    def listen(self, door: socket.socket) -> Listener:
        """Add a listener that has `door`."""
        listener = Listener(models.Listener(), door, self.reactor, self.setting)
        self.reactor.add(listener)
        return listener

    def pair(self, *, tight: bool = False) -> tuple[socket.socket, Stream]:
        """Return a client and its stream, which is in the reactor; `tight` lets the kernel hold little for either."""
        door = self.door()
        client = self.knock(door, **({"SO_SNDBUF": 4096, "SO_RCVBUF": 65536} if tight else {}))
        sock, peer = door.accept()
        sock.setblocking(False)
        if tight:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        address, port = door.getsockname()[:2]
        number = self.gate.admit(0)
        assert isinstance(number, int)
        origin = Origin("echo", address, port, "ipv4", "tcp")
        stream = Stream(sock, Caller.of(number, origin, peer), self.setting, self.connection())
        self.reactor.add(stream)
        return client, stream

    def connection(self) -> Connection:
        """Return one that begins now, under the limits that hold."""
        return Connection(self.setting.limits, self.clock.now)

    def facts(self, stream: Stream) -> dict[str, Any]:
        """Return what every record of `stream` says."""
        return stream.caller.facts()

    def streams(self) -> list[Stream]:
        """Return the connections that are open."""
        return [handler for handler in self.reactor.handlers if isinstance(handler, Stream)]

    def turn(self) -> None:
        """Turn once, waiting only a moment."""
        self.reactor.turn(TURN)

    def later(self, seconds: float) -> None:
        """Let time pass, and turn."""
        self.clock.now += seconds
        self.reactor.turn(0.0)

    def until(self, condition: Callable[[], object]) -> None:
        """Turn until `condition` holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "this takes too long"
            self.turn()

    def fetch(self, client: socket.socket, count: int) -> bytes:
        """Turn until `client` has got `count` bytes, and return them."""
        return self._collect(client, count)

    def fetch_all(self, client: socket.socket) -> bytes:
        """Turn until `client` has got FIN, and return what came before it."""
        return self._collect(client, None)

    def _collect(self, client: socket.socket, count: int | None) -> bytes:
        got = bytearray()

        def is_complete() -> bool:
            while count is None or len(got) < count:
                try:
                    chunk = client.recv(65536 if count is None else count - len(got))
                except BlockingIOError:
                    return False
                if not chunk:
                    assert count is None, f"FIN after {len(got)} of {count} bytes"
                    return True
                got.extend(chunk)
            return True

        self.until(is_complete)
        return bytes(got)

    def _close_handlers(self) -> None:
        for handler in self.reactor.handlers:
            handler.close()

    def stuff(self, client: socket.socket, stream: Stream) -> bytes:
        """Send from `client`, which does not read, until neither it nor `stream` can go on; return what was sent."""
        content = bytearray()
        while stream.connection.wants_read or _can_send(client):
            start = len(content) % 251
            chunk = _PATTERN[start : start + 4096]
            try:
                content += chunk[: client.send(chunk)]
            except BlockingIOError:
                self.reactor.turn(0.001)
        return bytes(content)

    def cut(self, client: socket.socket) -> None:
        """Close `client` by RST."""
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()


def _can_send(client: socket.socket) -> bool:
    """Tell whether the kernel would take more from `client`, without waiting."""
    poller = POLLERS["poll"]()
    poller.watch(client.fileno(), 2)
    return bool(poller.poll(0.0)[1])


@pytest.fixture(params=list(POLLERS))
def poller(request: pytest.FixtureRequest) -> str:
    """Name each poller in turn."""
    return str(request.param)


@pytest.fixture
def rig(poller: str) -> Iterator[Rig]:
    """Make a rig, once for each poller."""
    with ExitStack() as stack:
        yield Rig(poller, stack)
