"""The loop: wait, dispatch the three lists, then the deadlines, then put things in order.

Rules
    One turn: readable, writable, exceptional, deadlines; then the interest of each handler that was touched is read
    again; handlers that are done are closed last, so that no descriptor number is used twice within a turn.
    A handler never registers, arms or frees itself: it sets its attributes, the reactor acts on them.
    Deadlines are lazy: a handler has one armed entry in the heap. It may fire early, and is armed again; what moves a
    deadline away costs nothing. One clock reading a turn: a deadline may be late by as long as the turn before took.
    An exception from a handler is caught here and nowhere else; the handler pays for it.

    A handler that the kernel has no memory to watch pays for that too. A poller without memory is asked again.

Fails: OSError from `turn` means that the poller is broken for good; whatever a handler's `on_crash` raises passes too.
"""

from __future__ import annotations

import errno
import heapq
import time
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from echod.net.poller import LONGEST, READABLE, WRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from echod.net.poller import Poller, Ready


PASSING = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
"""What a poller may fail with for want of memory, which others may give back (poll(2), select(2))."""

NAP = 0.1
"""Seconds until it is asked again."""


class Handler:
    """Someone who owns a descriptor and is told when it is ready.

    `fd`, `interest`, `deadline` and `done` belong to the handler, `watched` and `armed` to the reactor. `deadline` must
    never be later than what the handler needs; earlier is fine. Whoever is `done` has no interest in being readable.
    """

    __slots__ = ("armed", "deadline", "done", "fd", "interest", "watched")

    shared = False
    """Whether other processes watch the same socket."""

    def __init__(self, fd: int, interest: int = READABLE, deadline: float = inf) -> None:
        self.fd = fd
        self.interest = interest
        self.deadline = deadline
        self.done = False
        self.watched = 0
        self.armed = inf

    def on_readable(self, now: float) -> bool | None:
        """Read, since it will not block. True says that no attribute has changed: the reactor need not look again."""

    def on_writable(self, now: float) -> None:
        """Write, since it will not block."""

    def on_exceptional(self, now: float) -> None:
        """Find out what is wrong, and consume it or be done: what is ignored comes back at once."""

    def on_deadline(self, now: float) -> None:
        """Act on a deadline that has passed, or may have."""

    def on_crash(self, error: Exception, now: float) -> None:
        """Recover from an exception that one of the methods above let out; raise it if that cannot be.

        Called with an OSError too when the kernel cannot watch the descriptor.
        """
        raise error

    def retire(self) -> None:
        """Be done: nothing more is told, not even what was ready already, and `close` follows at the turn's end."""
        self.interest = 0
        self.done = True

    def close(self) -> None:
        """Release the descriptor; the reactor has forgotten it."""


class Timer(Handler):
    """A deadline without a descriptor: calls `act` once when it has passed. Start it by `Reactor.schedule`."""

    __slots__ = ("_act",)

    def __init__(self, act: Callable[[float], None]) -> None:
        super().__init__(fd=-id(self), interest=0)  # a key of its own among the handlers, and no descriptor
        self._act = act

    def on_deadline(self, now: float) -> None:
        """Act, unless the timer was put off or called off; `act` may schedule it again."""
        if now >= self.deadline:
            self.deadline = inf
            self._act(now)


class Reactor:
    """One poller, its handlers and their deadlines."""

    def __init__(
        self,
        poller: Poller,
        crashed: Callable[[Handler, Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.poller = poller
        self.busy_poll = 0.0
        """Seconds to look again and again before sleeping."""
        self.now = clock()
        self._clock = clock
        self._crashed = crashed
        self._handlers: dict[int, Handler] = {}
        self._touched: list[Handler] = []
        self._deadlines: list[tuple[float, int, Handler]] = [(inf, -1, Handler(-1))]  # there always is a first
        self._sequence = count()

    @property
    def handlers(self) -> Iterable[Handler]:
        """Every handler that is being watched over, at this moment."""
        return tuple(self._handlers.values())

    def add(self, handler: Handler) -> None:
        """Watch over `handler` from now on; raise OSError, and do not, when the kernel cannot watch its descriptor."""
        self._watch(handler)
        self._handlers[handler.fd] = handler
        self._arm(handler)

    def adopt(self, handler: Handler) -> None:
        """Watch over `handler` from the end of a turn on; when the kernel cannot, that is told to its `on_crash`."""
        self._handlers[handler.fd] = handler
        self._arm(handler)
        self.touch(handler)

    def schedule(self, handler: Handler, deadline: float) -> None:
        """Set the deadline of `handler`, at any time."""
        handler.deadline = deadline
        if deadline < handler.armed:
            self._arm(handler)

    def renew(self, handler: Handler) -> None:
        """Watch `handler` anew from the end of this turn on, so that the kernel says once more what is ready."""
        if handler.watched and handler.interest == handler.watched and not handler.done:
            self.poller.forget(handler.fd)
            handler.watched = 0
            self.touch(handler)

    def report(self, handler: Handler, error: Exception) -> None:
        """Report an exception that `handler` has recovered from by itself."""
        self._crashed(handler, error)

    def touch(self, handler: Handler) -> None:
        """Read the handler's attributes again at the end of this turn; for those who change it from outside."""
        self._touched.append(handler)

    def turn(self, longest: float = inf) -> None:  # noqa: C901, PLR0912  # three loops, told alike
        """Wait until something is ready or due, for at most `longest` seconds, and see to it."""
        handlers, touched = self._handlers, self._touched
        patience = self._patience(longest)
        try:
            readable, writable, exceptional = self._spin(patience) if self.busy_poll else self.poller.poll(patience)
        except OSError as error:
            readable, writable, exceptional = self._nap(error)
        now = self.now = self._clock()
        for fd in readable:
            handler = handlers[fd]
            if handler.interest >= READABLE:
                try:
                    if not handler.on_readable(now):
                        touched.append(handler)
                except Exception as error:  # noqa: BLE001  # the one place: see the rules
                    self._crash(handler, error)
            else:
                touched.append(handler)
        for fd in writable:
            handler = handlers[fd]
            touched.append(handler)
            if handler.interest & WRITABLE and not handler.done:
                try:
                    handler.on_writable(now)
                except Exception as error:  # noqa: BLE001  # as above
                    self._crash(handler, error)
        for fd in exceptional:
            handler = handlers[fd]
            touched.append(handler)
            if not handler.done:
                try:
                    handler.on_exceptional(now)
                except Exception as error:  # noqa: BLE001  # as above
                    self._crash(handler, error)
        if self._deadlines[0][0] <= now:
            self._expire(now)
        for handler in touched:  # which may touch others: they come last
            self._settle(handler)
        touched.clear()

    def _patience(self, longest: float) -> float:
        if self._touched:
            return 0.0  # between two turns somebody has changed: this one is to see to it
        due = self._deadlines[0][0] - self.now
        if due > longest:  # noqa: PLR1730  # min and max would be a tenth of what a turn costs
            due = longest
        if due > LONGEST:
            return LONGEST
        return due if due > 0.0 else 0.0  # noqa: FURB136

    def _spin(self, patience: float) -> Ready:
        end = self._clock() + min(patience, self.busy_poll)
        while not any(ready := self.poller.poll(0.0)) and self._clock() < end:
            pass
        return ready if any(ready) or not patience else self.poller.poll(patience)

    def _nap(self, error: OSError) -> Ready:
        if error.errno not in PASSING:
            raise error
        time.sleep(NAP)
        return [], [], []

    def _expire(self, now: float) -> None:
        while self._deadlines[0][0] <= now:
            armed, _, handler = heapq.heappop(self._deadlines)
            if armed != handler.armed:
                continue  # armed anew since, or closed
            handler.armed = inf
            self._touched.append(handler)
            if not handler.done:
                try:
                    handler.on_deadline(now)
                except Exception as error:  # noqa: BLE001  # as in `turn`
                    self._crash(handler, error)

    def _settle(self, handler: Handler) -> None:
        if handler.interest != handler.watched and not handler.done:
            try:
                self._watch(handler)
            except OSError as error:
                handler.on_crash(error, self.now)
        if handler.done:
            self._remove(handler)
        else:
            self.schedule(handler, handler.deadline)

    def _watch(self, handler: Handler) -> None:
        if handler.interest and handler.shared:
            self.poller.watch_shared(handler.fd)
        elif handler.interest:
            self.poller.watch(handler.fd, handler.interest)
        elif handler.watched:
            self.poller.forget(handler.fd)
        handler.watched = handler.interest

    def _arm(self, handler: Handler) -> None:
        handler.armed = handler.deadline
        if handler.armed != inf:
            heapq.heappush(self._deadlines, (handler.armed, next(self._sequence), handler))

    def _remove(self, handler: Handler) -> None:
        if self._handlers.pop(handler.fd, None) is None:
            return  # touched twice
        if handler.watched:
            self.poller.forget(handler.fd)
        handler.armed = inf
        try:
            handler.close()
        except Exception as error:  # noqa: BLE001  # whatever is wrong with one, the others go on
            self._crashed(handler, error)
        if len(self._deadlines) > 2 * len(self._handlers) + 64:
            self._compact()

    def _compact(self) -> None:
        # Entries of handlers that are gone would pile up for as long as an idle timeout, and keep them alive.
        self._deadlines = [entry for entry in self._deadlines if entry[0] == entry[2].armed]
        heapq.heapify(self._deadlines)

    def _crash(self, handler: Handler, error: Exception) -> None:
        self._touched.append(handler)
        self._crashed(handler, error)
        handler.on_crash(error, self.now)
