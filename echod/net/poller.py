"""Which descriptors are ready: the tutorial's three lists, from `select`, `poll` or `epoll`.

Rule: whatever the kernel offers, `poll` returns (readable, writable, exceptional). A descriptor is exceptional when
urgent data has arrived or an error is pending on it. It is watched for urgent data only while it is watched for
reading, since a mark that nobody reads would stay ready for ever. `selectors` is not used: it drops the third list.

Fails: OSError from `poll` means that this poller is broken for good; the process should end.
"""

from __future__ import annotations

import errno
import os
import select
from math import ceil
from typing import Protocol

WRITABLE = 1
READABLE = 2
"""The two bits of an interest. A handler with neither is forgotten until it has one again.

READABLE is the higher, for the sake of who asks for it most: an interest that includes it is not less.
"""

Ready = tuple[list[int], list[int], list[int]]

_FD_SETSIZE = 1024
"""Of glibc, and so of CPython's select module."""

LONGEST = 2_000_000.0
"""Seconds; poll and epoll count milliseconds in 31 bits. Waking up once in 23 days does no harm."""


class Poller(Protocol):
    """What the loop needs to know about descriptors."""

    capacity: int | None
    """Descriptors must be below this number; None for no bound."""

    def watch(self, fd: int, interest: int) -> None:
        """Watch `fd` for `interest`, in place of what it was watched for before."""
        ...

    def watch_shared(self, fd: int) -> None:
        """Watch a listening socket that other processes watch too; end it by `forget`, never by `watch`."""
        ...

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; call it before the descriptor is closed."""
        ...

    def poll(self, timeout: float) -> Ready:
        """Wait for at most `timeout` seconds, no more than LONGEST, and return what is ready."""
        ...

    def close(self) -> None:
        """Release what the kernel holds for this poller."""
        ...


class SelectPoller:
    """`select(2)`: the original. Every call costs time in proportion to all descriptors, none may reach 1,024."""

    capacity: int | None = _FD_SETSIZE

    def __init__(self) -> None:
        self._inputs: set[int] = set()
        self._outputs: set[int] = set()

    def watch(self, fd: int, interest: int) -> None:
        """Put `fd` into the lists of its interest and take it off the others; raise OSError where they end."""
        if fd >= _FD_SETSIZE:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # one pays, instead of all at the next `select`
        (self._inputs.add if interest & READABLE else self._inputs.discard)(fd)
        (self._outputs.add if interest & WRITABLE else self._outputs.discard)(fd)

    def watch_shared(self, fd: int) -> None:
        """Watch `fd` for reading: every process that does so wakes up."""
        self.watch(fd, READABLE)

    def forget(self, fd: int) -> None:
        """Take `fd` off all lists."""
        self._inputs.discard(fd)
        self._outputs.discard(fd)

    def poll(self, timeout: float) -> Ready:
        """Call `select` with the three lists."""
        return select.select(self._inputs, self._outputs, self._inputs, timeout)

    def close(self) -> None:
        """Forget everything; the kernel holds nothing."""
        self._inputs.clear()
        self._outputs.clear()


_READ = select.POLLIN
_WRITE = select.POLLOUT
_EXCEPT = select.POLLPRI | select.POLLERR | select.POLLHUP | select.POLLNVAL

_MASKS = (0, _WRITE, _READ | select.POLLPRI, _READ | select.POLLPRI | _WRITE)
"""What poll and epoll call an interest, by its bits; errors and hang-ups they always report (epoll_ctl(2))."""


class PollPoller:
    """`poll(2)`: any descriptor number, but still all of them at every call."""

    capacity: int | None = None

    def __init__(self) -> None:
        self._poll = select.poll()

    def watch(self, fd: int, interest: int) -> None:
        """Register `fd`, or change what it is registered for."""
        self._poll.register(fd, _MASKS[interest])

    def watch_shared(self, fd: int) -> None:
        """Watch `fd` for reading: every process that does so wakes up."""
        self.watch(fd, READABLE)

    def forget(self, fd: int) -> None:
        """Unregister `fd`."""
        self._poll.unregister(fd)

    def poll(self, timeout: float) -> Ready:
        """Call `poll` and sort its answer into the three lists."""
        return _three_lists(self._poll.poll(ceil(timeout * 1000)))

    def close(self) -> None:
        """Forget everything; the kernel holds nothing."""
        self._poll = select.poll()


class EpollPoller:
    """`epoll(7)`, level-triggered: costs time in proportion to what is ready."""

    capacity: int | None = None

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._known: set[int] = set()

    def watch(self, fd: int, interest: int) -> None:
        """Add `fd`, or change what it is watched for."""
        if fd in self._known:
            self._epoll.modify(fd, _MASKS[interest])
        else:
            self._epoll.register(fd, _MASKS[interest])
            self._known.add(fd)

    def watch_shared(self, fd: int) -> None:
        """Watch `fd` so that a connect wakes one waiting process rather than all.

        EPOLLEXCLUSIVE goes with EPOLLIN only and cannot be modified (epoll_ctl(2)).
        """
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._known.add(fd)

    def forget(self, fd: int) -> None:
        """Delete `fd` from the epoll set."""
        self._known.remove(fd)
        self._epoll.unregister(fd)

    def poll(self, timeout: float) -> Ready:
        """Call `epoll_wait` and sort its answer into the three lists."""
        events = self._epoll.poll(timeout)
        readable = [fd for fd, mask in events if mask == _READ]
        return (readable, [], []) if len(readable) == len(events) else _three_lists(events)  # nearly always the first

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()


def _three_lists(events: list[tuple[int, int]]) -> Ready:
    return (
        [fd for fd, mask in events if mask & _READ],
        [fd for fd, mask in events if mask & _WRITE],
        [fd for fd, mask in events if mask & _EXCEPT],
    )


POLLERS: dict[str, type[Poller]] = {"epoll": EpollPoller, "poll": PollPoller, "select": SelectPoller}
"""The pollers by the words of `daemon.poller`."""


def resolve(name: str) -> str:
    """Return the word for the poller that `name`, one of POLLERS or "auto", means on this system."""
    if name == "auto":
        return "epoll" if hasattr(select, "epoll") else "poll"
    return name
