"""The three lists, from each of the three pollers, on real descriptors."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from echod.net.poller import LONGEST, POLLERS, READABLE, WRITABLE, EpollPoller, Poller, SelectPoller, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def watcher(poller: str) -> Iterator[Poller]:
    """Make a poller of each kind."""
    made = POLLERS[poller]()
    yield made
    made.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what is entered when the test is over."""
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Connect two sockets by TCP, so that there is urgent data, and a reset."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = stack.enter_context(socket.create_connection(door.getsockname()))
        server = stack.enter_context(door.accept()[0])
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    return server, client


def cut(sock: socket.socket) -> None:
    """Close `sock` by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


Pair = tuple[socket.socket, socket.socket]


def test_an_idle_socket_is_writable_only(watcher: Poller, pair: Pair) -> None:
    """With nothing to read and room to write, only the second list has the descriptor."""
    fd = pair[0].fileno()
    watcher.watch(fd, READABLE | WRITABLE)

    assert ([], [fd], []) == watcher.poll(1.0)


def test_input_makes_readable(watcher: Poller, pair: Pair) -> None:
    """Bytes that have arrived put the descriptor into the first list, for as long as they are not read."""
    fd = pair[0].fileno()
    watcher.watch(fd, READABLE)
    pair[1].send(b"x")

    assert ([fd], [], []) == watcher.poll(1.0)
    assert ([fd], [], []) == watcher.poll(1.0)

    pair[0].recv(1)

    assert ([], [], []) == watcher.poll(0.0)


def test_end_of_input_makes_readable(watcher: Poller, pair: Pair) -> None:
    """A half-close of the peer is input, not an exception."""
    fd = pair[0].fileno()
    watcher.watch(fd, READABLE)
    pair[1].shutdown(socket.SHUT_WR)

    assert ([fd], [], []) == watcher.poll(1.0)


def test_urgent_data_is_exceptional(watcher: Poller, pair: Pair) -> None:
    """An urgent byte is in the third list as well as in the first, until it is read."""
    fd = pair[0].fileno()
    watcher.watch(fd, READABLE)
    pair[1].send(b"!", socket.MSG_OOB)

    assert ([fd], [], [fd]) == watcher.poll(1.0)

    pair[0].recv(10)

    assert ([], [], []) == watcher.poll(0.0)


def test_urgent_data_is_watched_only_with_input(watcher: Poller, pair: Pair) -> None:
    """Who does not want to read is not told of an urgent mark, which nobody would take away."""
    fd = pair[0].fileno()
    pair[1].send(b"!", socket.MSG_OOB)
    watcher.watch(fd, WRITABLE)

    assert ([], [fd], []) == watcher.poll(1.0)

    watcher.watch(fd, READABLE)

    assert ([fd], [], [fd]) == watcher.poll(1.0)


def test_watch_again_replaces_the_interest(watcher: Poller, pair: Pair) -> None:
    """The second `watch` of a descriptor stands in place of the first, not beside it."""
    fd = pair[0].fileno()
    pair[1].send(b"x")
    seen = []
    for interest in (READABLE, WRITABLE, READABLE | WRITABLE, 0, READABLE):
        watcher.watch(fd, interest)
        seen.append(watcher.poll(0.0))

    assert [([fd], [], []), ([], [fd], []), ([fd], [fd], []), ([], [], []), ([fd], [], [])] == seen


def test_forget(watcher: Poller, pair: Pair) -> None:
    """A descriptor that was forgotten is in no list, and may be watched anew."""
    fd = pair[0].fileno()
    pair[1].send(b"!", socket.MSG_OOB)
    watcher.watch(fd, READABLE | WRITABLE)
    watcher.forget(fd)

    assert ([], [], []) == watcher.poll(0.0)

    watcher.watch(fd, WRITABLE)

    assert ([], [fd], []) == watcher.poll(1.0)


def test_a_number_that_comes_back(watcher: Poller, pair: Pair) -> None:
    """A forgotten descriptor may be closed and its number watched for somebody else."""
    fd = pair[0].fileno()
    watcher.watch(fd, READABLE)
    watcher.forget(fd)
    pair[0].close()
    os.dup2(pair[1].fileno(), fd)
    watcher.watch(fd, WRITABLE)
    found = watcher.poll(1.0)
    watcher.forget(fd)
    os.close(fd)

    assert ([], [fd], []) == found


def test_a_reset_wakes_a_reader(watcher: Poller, pair: Pair) -> None:
    """A reset makes readable on every poller; poll and epoll also call it an exception."""
    fd = pair[0].fileno()
    watcher.watch(fd, READABLE)
    cut(pair[1])
    readable, writable, exceptional = watcher.poll(1.0)

    assert ([fd], []) == (readable, writable)
    assert exceptional in ([fd], [])


def test_a_reset_wakes_a_writer(watcher: Poller, pair: Pair) -> None:
    """So does it for who only waits to write: the next send says what happened."""
    fd = pair[0].fileno()
    watcher.watch(fd, WRITABLE)
    cut(pair[1])

    assert [fd] == watcher.poll(1.0)[1]


@pytest.mark.parametrize("kind", ["poll", "epoll"])
def test_errors_and_hangups_are_exceptional(kind: str, pair: Pair) -> None:
    """Poll and epoll report an error, and a peer gone in both directions, whatever is asked for."""
    watcher = POLLERS[kind]()
    fd = pair[0].fileno()
    watcher.watch(fd, 0)
    cut(pair[1])
    found = watcher.poll(1.0)
    watcher.close()

    assert ([], [], [fd]) == found


def test_a_hangup_of_a_pair_is_exceptional() -> None:
    """A socket pair whose other end is closed is exceptional on epoll, readable everywhere."""
    for name, made in POLLERS.items():
        watcher = made()
        one, other = socket.socketpair()
        with one:
            watcher.watch(one.fileno(), READABLE)
            other.close()
            readable, _, exceptional = watcher.poll(1.0)
            watcher.close()

            assert ([one.fileno()], [] if name == "select" else [one.fileno()]) == (readable, exceptional), name


def test_many_at_once(watcher: Poller, stack: ExitStack) -> None:
    """Each list has exactly those that are ready, out of many."""
    pairs = [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(50)]
    for one, _ in pairs:
        watcher.watch(one.fileno(), READABLE)
    for _, other in pairs[::5]:
        other.send(b"x")
    for one, _ in pairs[1::5]:
        watcher.watch(one.fileno(), WRITABLE)
    readable, writable, exceptional = watcher.poll(1.0)

    assert {one.fileno() for one, _ in pairs[::5]} == set(readable)
    assert {one.fileno() for one, _ in pairs[1::5]} == set(writable)
    assert [] == exceptional


def test_shared_listening_socket(watcher: Poller, stack: ExitStack) -> None:
    """A listening socket that is shared is readable when somebody waits, and can be forgotten and watched again."""
    door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    fd = door.fileno()
    watcher.watch_shared(fd)
    before = watcher.poll(0.0)
    stack.enter_context(socket.create_connection(door.getsockname()))
    after = watcher.poll(1.0)
    watcher.forget(fd)
    forgotten = watcher.poll(0.0)
    watcher.watch_shared(fd)
    again = watcher.poll(1.0)
    watcher.forget(fd)

    assert [([], [], []), ([fd], [], []), ([], [], []), ([fd], [], [])] == [before, after, forgotten, again]


# -- timeouts ---------------------------------------------------------------------------------------------------------


def test_zero_does_not_wait(watcher: Poller, pair: Pair) -> None:
    """A timeout of 0 asks and returns."""
    watcher.watch(pair[0].fileno(), READABLE)

    assert ([], [], []) == watcher.poll(0.0)


@pytest.mark.parametrize("timeout", [0.0004, 0.0021, 0.02])
def test_a_timeout_is_not_cut_short(watcher: Poller, pair: Pair, timeout: float) -> None:
    """A poll waits for no less than its timeout, else a deadline below a millisecond would spin the loop."""
    watcher.watch(pair[0].fileno(), READABLE)
    start = time.monotonic()
    found = watcher.poll(timeout)
    passed = time.monotonic() - start

    assert ([], [], []) == found
    assert timeout <= passed


@pytest.mark.parametrize("timeout", [86400.0, LONGEST])
def test_a_long_timeout_ends_with_the_first_event(watcher: Poller, pair: Pair, timeout: float) -> None:
    """The longest timeout that there is waits for the first descriptor that is ready."""
    fd = pair[0].fileno()
    watcher.watch(fd, WRITABLE)

    assert ([], [fd], []) == watcher.poll(timeout)


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_capacity_of_select(pair: Pair) -> None:
    """Select takes descriptors below 1,024 and none above; the others have no such bound."""
    watcher = SelectPoller()
    highest = fcntl.fcntl(pair[0].fileno(), fcntl.F_DUPFD, 1023)
    watcher.watch(highest, WRITABLE)
    found = watcher.poll(1.0)
    with pytest.raises(OSError, match="Too many open files"):
        watcher.watch(1024, WRITABLE)

    assert ([], [1023], []) == found
    assert {"epoll": None, "poll": None, "select": 1024} == {name: made.capacity for name, made in POLLERS.items()}

    assert found == watcher.poll(0.0)
    os.close(highest)


def test_a_closed_poller_is_broken(watcher: Poller, poller: str) -> None:
    """A closed epoll refuses to poll; the other two hold nothing in the kernel, and are empty."""
    watcher.close()
    if poller == "epoll":
        with pytest.raises(ValueError, match="closed epoll"):
            watcher.poll(0.0)
    else:
        assert ([], [], []) == watcher.poll(0.0)


def test_an_epoll_that_fails_raises() -> None:
    """When the descriptor behind an epoll is gone, `poll` raises the OSError that ends the process."""
    watcher = EpollPoller()
    os.close(watcher._epoll.fileno())

    with pytest.raises(OSError, match="Bad file descriptor"):
        watcher.poll(0.0)


@pytest.mark.parametrize("name", POLLERS)
def test_a_poller_by_its_name(name: str) -> None:
    """The words of the configuration mean themselves."""
    assert name == resolve(name)


def test_auto_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word "auto" means epoll where the kernel has it, else poll."""
    here = resolve("auto")
    monkeypatch.delattr(select, "epoll")

    assert ("epoll", "poll") == (here, resolve("auto"))
