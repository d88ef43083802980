"""Traffic that goes on in a thread of its own while a test troubles the daemon, verified byte for byte.

    with Traffic(daemon.address(), SEED, streams=500) as traffic:
        daemon.reload()
        traffic.stop()
    assert traffic.faults == {}

Rule: a stream lives from the beginning to the end; a visitor connects, sends a little, half-closes, reads to the end
and is followed by the next one at once, so that there are as many as the machine gives. Nobody tries again.
`Arrivals` come by the clock instead, so that more and more are there while nobody lets them in.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from itertools import cycle
from math import inf
from typing import TYPE_CHECKING, Self

from tests.system.clients import KIB, Client, Load, Payload, connect

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from types import TracebackType

    from tests.system.clients import Address

ENDLESS = 1 << 60
WINDOW = 32 * KIB  # what a stream has under way
PACE = (16 * KIB, 0.1)  # and how slowly it reads: all streams together leave the machine time for the visitors
LONGEST_VISIT = 8 * KIB
PATIENCE = 60.0
TURNED_AWAY = ("ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError", "OSError")
"""How the connect ends, or the connection before the first byte, where a door closes (OSError: not connected)."""

_Tally = Counter[str]


class Visitor(Client):
    """A client that comes and goes; `passing` when it came through a door that may close."""

    def __init__(self, opened: socket.socket, payload: Payload, seed: int, size: int, *, passing: bool) -> None:
        super().__init__(opened, payload, seed, size)
        self.passing = passing
        self.came = time.monotonic()


class Traffic(Load):
    """So many streams, and so many visitors at any time."""

    def __init__(self, address: Address, seed: int, *, streams: int = 0, visitors: int = 16) -> None:
        """Connect the streams; entering the context starts the traffic."""
        print(f"seed {seed}: {streams} streams, {visitors} visitors at a time")  # noqa: T201
        self.address = address
        self.passing: Address | None = None
        """The address of a door that may close at any time, for every other visitor."""
        self.came: _Tally = Counter()
        """Connections that were made, by kind: stream, visitor, passing."""
        self.faults: _Tally = Counter()
        """What went wrong, by kind and word; a door that closes may refuse, and reset whom it had not let in."""
        self.turned_away: _Tally = Counter()
        """What happened to the visitors of a door that closes, by word."""
        self._shut_out = 0
        self._visitors = visitors
        self._random = random.Random(seed)
        self._payload = Payload(seed)
        self._ending = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="traffic")
        self._began = 0.0
        super().__init__(self._stream(seed + number) for number in range(streams))

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._thread.join(PATIENCE)
        self.close()

    def stop(self) -> None:
        """Let every visitor finish, have all streams sent back, and judge them."""
        self._ending = True
        self._thread.join(PATIENCE)
        took = time.monotonic() - self._began
        if self._failure:
            raise self._failure
        for client in self.clients:
            self._judge(client, "stream")
        print(f"{took:.1f} s: {self.rate(took)}; came {dict(self.came)}, turned away {dict(self.turned_away)}")  # noqa: T201

    @property
    def let_in(self) -> int:
        """How many connections the daemon must have accepted: all but those of a door that was closed before it did."""
        return self.came.total() - self._shut_out

    def rate(self, seconds: float) -> str:
        """Say how much went on."""
        visits = self.came["visitor"] + self.came["passing"]
        volume = sum(client.received for client in self.clients) / KIB / KIB
        return f"{visits / seconds:.0f} visitors a second, {volume / seconds:.0f} MiB a second through the streams"

    def await_visits(self, count: int, timeout: float = 10.0) -> None:
        """Wait until so many visitors more have come."""
        wanted = self.came["visitor"] + count
        end = time.monotonic() + timeout
        while self.came["visitor"] < wanted:
            if time.monotonic() > end:
                raise AssertionError(f"{self.came['visitor']} of {wanted} visitors came; faults {dict(self.faults)}")
            time.sleep(0.01)

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            for _ in range(self._visitors):
                self._visit()
            self.run(inf, until=lambda: self._ending)
            for client in self.clients:
                client.finish()
            self.run(PATIENCE)
        except BaseException as error:  # noqa: BLE001  # a thread cannot raise to its test
            self._failure = error

    def _stream(self, seed: int) -> Client:
        self.came["stream"] += 1
        opened = connect(self.address)
        return Client(opened, self._payload, seed, ENDLESS, writes=(1, WINDOW), pace=PACE, window=WINDOW)

    def _visit(self) -> None:
        passing = self.passing if self._random.random() < 0.5 else None
        kind = "passing" if passing else "visitor"
        try:
            opened = connect(passing or self.address)
        except OSError as error:
            self._fault(kind, type(error).__name__)
            if passing:
                if self.passing == passing:
                    self.passing = None  # it is closed: nobody knocks again
                self._visit()
            return
        self.came[kind] += 1
        size = self._random.randrange(LONGEST_VISIT)
        seed = self._random.randrange(1 << 30)
        self.watch(Visitor(opened, self._payload, seed, size, passing=passing is not None))

    def ended(self, client: Client) -> None:
        """See one visitor off and let the next one come."""
        if isinstance(client, Visitor):
            kind = "passing" if client.passing else "visitor"
            self._judge(client, kind)
            client.socket.close()
            if not self._ending:
                self._visit()

    def _judge(self, client: Client, kind: str) -> None:
        if client.wrong:
            self.faults[f"{kind}: wrong bytes"] += client.wrong
        elif not client.complete:
            heard = f" after {client.received} of {client.sent} bytes" if client.received else ""
            self._shut_out += kind == "passing"
            self._fault(kind, f"{client.end}{heard}")

    def _fault(self, kind: str, word: str) -> None:
        if kind == "passing" and word in TURNED_AWAY:
            self.turned_away[word] += 1
        else:
            self.faults[f"{kind}: {word}"] += 1


class Arrivals(Traffic):
    """Visitors who come by the clock, to one address after the other, whether or not those before them have left."""

    def __init__(self, addresses: Sequence[Address], seed: int, *, a_second: int) -> None:
        """Plan for so many a second; entering the context starts the traffic."""
        super().__init__(addresses[0], seed, visitors=0)
        self.longest = 0.0
        """How many seconds the one stayed who was there longest."""
        self._turns = cycle(addresses)
        self._interval = 1 / a_second
        self._due = 0.0

    def _live(self) -> None:
        try:
            self._due = time.monotonic()
            while not self._ending:
                self.run(inf, until=self._come)
                time.sleep(max(0.0, self._due - time.monotonic()))  # nobody is there
            self.run(PATIENCE)
        except BaseException as error:  # noqa: BLE001  # a thread cannot raise to its test
            self._failure = error

    def _come(self) -> bool:
        while self._due <= time.monotonic() and not self._ending:
            self._due += self._interval
            self.address = next(self._turns)
            self._visit()
        return self._ending

    def ended(self, client: Client) -> None:
        """See one visitor off."""
        assert isinstance(client, Visitor)
        self.longest = max(self.longest, time.monotonic() - client.came)
        self._judge(client, "visitor")
        client.socket.close()
