"""A listening socket: who comes in, who is turned away, and what happens when there is nothing left to let them in."""

from __future__ import annotations

import contextlib
import errno
import os
import pkgutil
import socket
from typing import TYPE_CHECKING, Any

import pytest

from echod.config import listeners as models
from echod.core.access import Networks
from echod.core.lifecycle import State
from echod.events import (
    CloseReason,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRefused,
    ListenerPaused,
    ListenerResumed,
    RefuseReason,
)
from echod.net.listener import ACCEPTS_PER_TURN, PAUSE, STEP_ASIDE, Listener
from echod.net.poller import READABLE
from echod.net.reactor import Handler
from echod.net.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.net.conftest import Rig


class Flaky(socket.socket):
    """A listening socket whose next accepts fail as told."""

    def __init__(self, real: socket.socket) -> None:
        super().__init__(fileno=real.detach())
        self.setblocking(False)
        self.failures: list[Exception] = []
        self.asked = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """Fail, while there are failures left."""
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return super().accept()


def failure(code: int) -> OSError:
    """Return what the socket module raises for `code`."""
    return OSError(code, os.strerror(code))


def flaky(rig: Rig, *failures: Exception) -> tuple[Flaky, Listener]:
    """Return a listener, and its socket whose accepts first fail with `failures`."""
    door = rig.keep(Flaky(rig.door()))
    door.failures += failures
    return door, rig.listen(door)


def facts(listener: Listener) -> dict[str, Any]:
    """Return what the records of a listener say."""
    host, port = listener.socket.getsockname()[:2]
    return {"listener": "echo", "address": host, "port": port, "transport": "tcp", "network": "ipv4"}


def streams(rig: Rig) -> list[Stream]:
    """Return the connections that are open."""
    return [handler for handler in rig.reactor.handlers if isinstance(handler, Stream)]


def ends(client: socket.socket) -> tuple[str, int]:
    """Return the address of a client."""
    host, port = client.getsockname()[:2]
    return host, port


# -- in ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "network"), [("127.0.0.1", "ipv4"), ("::1", "ipv6")])
def test_lets_in(rig: Rig, host: str, network: str) -> None:
    """Who connects is accepted, recorded with both addresses, and echoed to."""
    door = rig.door(host)
    rig.listen(door)
    client = rig.knock(door)
    client.send(b"hello")
    back = rig.fetch(client, 5)

    assert b"hello" == back
    assert [
        ConnectionOpened(
            id=1,
            listener="echo",
            client_address=ends(client)[0],
            client_port=ends(client)[1],
            server_address=host,
            server_port=door.getsockname()[1],
            transport="tcp",
            network=network,
        )
    ] == rig.recorded
    assert rig.gate.inside == 1


def test_accepted_sockets_do_not_block(rig: Rig) -> None:
    """No accepted socket ever waits, and none is inherited by another program."""
    door = rig.door()
    rig.listen(door)
    rig.knock(door)
    rig.until(lambda: streams(rig))
    [stream] = streams(rig)

    assert (0.0, False) == (stream.socket.gettimeout(), stream.socket.get_inheritable())
    assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)


def test_a_flood_is_let_in_by_portions(rig: Rig) -> None:
    """One turn accepts so many and no more, so that those who are in are not kept waiting."""
    door = rig.door()
    rig.listen(door)
    for _ in range(ACCEPTS_PER_TURN + 5):
        rig.knock(door)
    counts = []
    for _ in range(2):
        rig.turn()
        counts.append(len(streams(rig)))

    assert [ACCEPTS_PER_TURN, ACCEPTS_PER_TURN + 5] == counts


def test_renamed(rig: Rig) -> None:
    """A reload may rename a listener: who comes from then on has the new name, who is in keeps the old."""
    door = rig.door()
    listener = rig.listen(door)
    rig.knock(door)
    rig.until(lambda: streams(rig))
    [old] = streams(rig)
    listener.configure(models.Listener(name="other"))
    rig.knock(door)
    rig.until(lambda: len(streams(rig)) == 2)
    old.fail(CloseReason.STOPPED, rig.clock.now)
    rig.reactor.touch(old)
    rig.turn()

    assert ["echo", "other", "echo"] == [getattr(event, "listener", None) for event in rig.recorded]


def test_exceptional_tries_to_accept(rig: Rig) -> None:
    """When the third list has the socket, accept says what is wrong, if anything is."""
    door = rig.door()
    listener = rig.listen(door)
    rig.knock(door)
    listener.on_exceptional(rig.clock.now)

    assert 1 == len(streams(rig))


def test_a_client_that_is_gone_again(rig: Rig) -> None:
    """A client that went before it was accepted is passed over; the next one is let in, within the same turn."""
    door, listener = flaky(rig, ConnectionAbortedError(errno.ECONNABORTED, "x"), failure(errno.EPROTO))
    door.failures.pop()
    rig.knock(door)
    rig.until(lambda: door.asked)

    assert (1, READABLE) == (len(streams(rig)), listener.interest)


def test_closing_leaves_the_socket_to_the_others(rig: Rig) -> None:
    """A worker closes its own descriptor only: the same socket, held by the supervisor, goes on listening."""
    door = rig.door()
    mine = rig.keep(door.dup())
    listener = rig.listen(mine)
    listener.retire()
    rig.reactor.touch(listener)
    rig.turn()
    client = rig.knock(door)

    sock, peer = door.accept()
    rig.keep(sock)

    assert (-1, ends(client)) == (mine.fileno(), peer)


# -- the limit --------------------------------------------------------------------------------------------------------


def test_over_the_limit(rig: Rig) -> None:
    """Who comes when all places are taken is accepted, recorded and closed at once; who is in is not disturbed."""
    door = rig.door()
    rig.listen(door)
    rig.gate.limit = 1
    first = rig.knock(door)
    rig.until(lambda: streams(rig))
    second = rig.knock(door)
    ended = rig.fetch_all(second)
    first.send(b"x")

    assert (b"", b"x") == (ended, rig.fetch(first, 1))
    assert [
        ConnectionRefused(
            id=2,
            listener="echo",
            client_address=ends(second)[0],
            client_port=ends(second)[1],
            server_address="127.0.0.1",
            server_port=door.getsockname()[1],
            transport="tcp",
            network="ipv4",
            reason=RefuseReason.OVER_LIMIT,
        )
    ] == rig.recorded[1:]
    assert (1, 1) == (rig.gate.inside, len(streams(rig)))


def test_a_place_that_is_free_again(rig: Rig) -> None:
    """Once somebody has left, the next one is let in."""
    door = rig.door()
    rig.listen(door)
    rig.gate.limit = 1
    rig.knock(door).close()
    rig.until(lambda: rig.recorded and not streams(rig))
    rig.knock(door)
    rig.until(lambda: streams(rig))

    assert 1 == rig.gate.inside


def test_listener_goes_on_after_a_defect(rig: Rig) -> None:
    """When accepting lets an exception out the listener pauses, and accepts again."""
    error = ZeroDivisionError("a defect")
    door, listener = flaky(rig, error)
    rig.knock(door)
    rig.until(lambda: rig.crashes)

    assert rig.crashes == [(listener, error)]
    assert listener.interest == 0

    rig.later(PAUSE)
    rig.until(lambda: streams(rig))

    assert READABLE == listener.interest


FAULTY_STEPS = {
    "address": ("echod.net.listener.address_key", {}),
    "caller": ("echod.net.listener.Caller.of", {}),
    "connection": ("echod.net.listener.Listener._connection", {}),
    "connection with faults": ("echod.net.listener.FaultyConnection", {"faults": {"close_after": "1B"}}),
    "stream": ("echod.net.listener.Stream.__init__", {}),
    "opened record": ("echod.net.stream.ConnectionOpened.of", {}),
    "proxied stream": (
        "echod.net.listener.ProxiedStream.__init__",
        {"proxy_protocol": {"enabled": True, "trusted": ["127.0.0.0/8"]}},
    ),
    "reactor": ("echod.net.reactor.Reactor._watch", {}),
}


@pytest.mark.parametrize("step", FAULTY_STEPS)
def test_slot_is_given_back_when_a_step_after_accept_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever fails before a stream owns the slot: it is free again, the client reset, and the next one served."""
    target, keys = FAULTY_STEPS[step]
    door = rig.door()
    listener = rig.listen(door)
    rig.setting.gate.per_address = 5
    listener.configure(models.Listener.model_validate(keys))
    rig.turn()  # what the loop has to do for the listener itself is done
    clients = [rig.knock(door) for _ in range(3)]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names, and no paths
    failures = [ZeroDivisionError("a defect") for _ in clients]
    with fails_once_each(monkeypatch, target, failures):
        listener.on_readable(rig.clock.now)

    assert failures == [error for _, error in rig.crashes]
    assert 0 == rig.gate.inside
    assert before == len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    admitted = 0 if step == "address" else len(clients)
    assert [CloseReason.INTERNAL_ERROR] * admitted == [connection.reason for connection in rig.tally.ended]
    assert READABLE == listener.interest
    for client in clients:
        with pytest.raises(ConnectionResetError):
            rig.fetch_all(client)

    listener.configure(models.Listener())
    client = rig.knock(door)
    client.send(b"served")
    assert b"served" == rig.fetch(client, 6)


@contextlib.contextmanager
def fails_once_each(monkeypatch: pytest.MonkeyPatch, target: str, failures: list[ZeroDivisionError]) -> Iterator[None]:
    """Let the first calls of `target` fail, each with one of `failures`, and the later ones work."""
    real = pkgutil.resolve_name(target)
    left = list(failures)

    def call(*arguments: Any, **keywords: Any) -> Any:
        if left:
            raise left.pop(0)
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(target, call)
        yield


# -- fairness ---------------------------------------------------------------------------------------------------------


def test_steps_aside_after_accepting(rig: Rig) -> None:
    """A worker with too many accepts whom it was woken for, then leaves the next ones to its siblings for a moment."""
    door = rig.door()
    listener = rig.listen(door)
    rig.gate.stuffed = True
    rig.knock(door)
    rig.until(lambda: streams(rig))
    rig.knock(door)

    assert (0, ([], [], [])) == (listener.interest, rig.poller.poll(0.0))
    assert rig.clock.now + STEP_ASIDE == listener.deadline

    rig.gate.stuffed = False
    rig.later(STEP_ASIDE)
    rig.until(lambda: len(streams(rig)) == 2)

    assert READABLE == listener.interest


# -- nothing left -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
def test_pause_and_resume(rig: Rig, code: int) -> None:
    """An accept that fails pauses the listener, said once however often it is tried; when all are in it is resumed."""
    error = failure(code)
    door, listener = flaky(rig, error, error, error)
    client = rig.knock(door)
    client.send(b"x")
    rig.until(lambda: door.asked)
    quiet = rig.poller.poll(0.0)
    for _ in range(2):
        rig.later(PAUSE)  # watch again
        rig.turn()  # and try
    paused = list(rig.recorded)
    rig.later(PAUSE)
    back = rig.fetch(client, 1)
    [stream] = streams(rig)

    assert (([], [], []), b"x") == (quiet, back)
    assert [ListenerPaused(**facts(listener), error=errno.errorcode[code])] == paused
    assert [
        ListenerPaused(**facts(listener), error=errno.errorcode[code]),
        ConnectionOpened(**rig.facts(stream)),
        ListenerResumed(**facts(listener), duration=round(3 * PAUSE, 3)),
    ] == rig.recorded
    assert listener.interest == READABLE


def test_a_pause_does_not_spin(rig: Rig) -> None:
    """While it is paused, a client that waits costs one attempt each tenth of a second."""
    door, _ = flaky(rig, *[failure(errno.EMFILE)] * 1000)
    rig.knock(door)
    rig.until(lambda: door.asked)
    for _ in range(50):
        rig.later(PAUSE / 10)
        rig.later(0.0)

    assert 4 <= door.asked <= 7


def test_existing_connections_live_through_a_pause(rig: Rig) -> None:
    """Who is in does not notice that nobody else can come."""
    door, _ = flaky(rig)
    client = rig.knock(door)
    rig.until(lambda: streams(rig))
    door.failures += [failure(errno.EMFILE)] * 1000
    rig.knock(door)
    for _ in range(5):
        client.send(b"x")
        assert rig.fetch(client, 1) == b"x"

    assert 1 == len(streams(rig))


def test_a_pause_outlasts_stepping_aside(rig: Rig) -> None:
    """A worker that is paused and crowded waits for as long as the pause says."""
    door, listener = flaky(rig, failure(errno.EMFILE))
    rig.gate.stuffed = True
    rig.knock(door)
    rig.until(lambda: door.asked)

    assert rig.clock.now + PAUSE == listener.deadline


def test_a_connection_that_cannot_be_watched(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel cannot watch one more, that one is reset, recorded and counted out; nothing leaks."""
    door = rig.door()
    rig.listen(door)
    client = rig.knock(door)

    def refuse(fd: int, interest: int) -> None:
        raise failure(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(rig.poller, "watch", refuse)
        if type(rig.poller).__name__ != "EpollPoller":
            patch.setattr(rig.poller, "watch_shared", lambda fd: None)
        rig.until(lambda: len(rig.recorded) == 2)
    opened, closed = rig.recorded

    assert isinstance(opened, ConnectionOpened)
    assert isinstance(closed, ConnectionClosed)
    assert (opened.id, CloseReason.INTERNAL_ERROR, "ENOSPC") == (closed.id, closed.reason, closed.error)
    assert (0, [], []) == (rig.gate.inside, streams(rig), rig.crashes)

    with pytest.raises(ConnectionResetError):
        rig.fetch_all(client)


def test_a_door_that_cannot_be_watched(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel cannot watch the door again, that is a pause like any other: it is said, and passes."""
    door = rig.door()
    listener = rig.listen(door)
    rig.knock(door)

    def refuse(fd: int) -> None:
        raise failure(errno.ENOMEM)

    with monkeypatch.context() as patch:
        patch.setattr(rig.poller, "watch_shared", refuse)
        rig.reactor.renew(listener)
        rig.turn()
    rig.later(PAUSE)
    rig.until(lambda: len(rig.recorded) == 3)

    assert [ListenerPaused, ConnectionOpened, ListenerResumed] == [type(event) for event in rig.recorded]
    assert [] == rig.crashes


# -- release ----------------------------------------------------------------------------------------------------------


def test_release_accepts_all_who_wait(rig: Rig) -> None:
    """An address that is no longer listed takes in all who had connected by then, more than a turn's portion."""
    door = rig.door()
    listener = rig.listen(door)
    clients = [rig.knock(door) for _ in range(3 * ACCEPTS_PER_TURN)]
    listener.release(rig.clock.now)
    rig.reactor.touch(listener)
    for client in clients:
        client.send(b"x")
    got = {rig.fetch(client, 1) for client in clients}

    assert ({b"x"}, len(clients), -1) == (got, len(streams(rig)), door.fileno())
    assert {stream.connection.state for stream in streams(rig)} == {State.OPEN}


def test_release_while_paused(rig: Rig) -> None:
    """Without descriptors a release accepts nobody, and is done all the same."""
    _, listener = flaky(rig, failure(errno.EMFILE))
    listener.release(rig.clock.now)

    assert ([], True) == (streams(rig), listener.done)


# -- who may --------------------------------------------------------------------------------------------------------


def test_who_is_denied_is_told_apart(rig: Rig) -> None:
    """A client on the wrong list is closed and recorded, and a reload that changes the list holds for the next one."""
    door = rig.door()
    listener = rig.listen(door)
    listener.configure(models.Listener(deny=("127.0.0.0/8",)))
    client = rig.knock(door)
    rig.until(lambda: rig.recorded)
    [refused] = rig.recorded
    host, port = ends(client)

    assert isinstance(refused, ConnectionRefused)
    assert (RefuseReason.DENIED, host, port) == (refused.reason, refused.client_address, refused.client_port)
    assert [] == streams(rig)
    listener.configure(models.Listener(allow=("127.0.0.0/8",)))
    rig.knock(door)
    rig.until(lambda: streams(rig))


def test_a_rate_is_shared_by_the_workers(rig: Rig) -> None:
    """Of 8 a second each of 2 workers lets 4 in; those beyond are closed and recorded; a second brings as many."""
    door = rig.door()
    rig.setting.workers = 2
    rig.listen(door).configure(models.Listener(accept_rate=8))
    for turn in (1, 2):
        for _ in range(6):
            rig.knock(door)
        rig.until(lambda turn=turn: len(rig.recorded) == 6 * turn)  # type: ignore[misc]
        assert 4 * turn == len(streams(rig))
        rig.clock.now += 1.0

    assert {RefuseReason.OVER_RATE} == {event.reason for event in rig.recorded if isinstance(event, ConnectionRefused)}


def test_reload_keeps_what_is_left_of_the_accept_rate(rig: Rig) -> None:
    """A flood that has used up the rate does not get a new second's worth with each reload."""
    door = rig.door()
    listener = rig.listen(door)
    for _ in range(2):
        listener.configure(models.Listener(accept_rate=4))
        for _ in range(6):
            rig.knock(door)
        rig.turn()

    assert 4 == len(streams(rig))


def test_a_quiet_client_is_recorded_once_it_speaks(rig: Rig) -> None:
    """One that only looks leaves no record; one that sends a byte has both, the first when the byte comes."""
    door = rig.door()
    rig.setting.quiet = Networks(["127.0.0.0/8"])
    rig.listen(door)
    rig.knock(door).close()
    rig.until(lambda: rig.gate.serial == 1 and rig.gate.inside == 0)
    client = rig.knock(door)
    rig.until(lambda: streams(rig))
    assert [] == rig.recorded
    client.send(b"x")
    rig.until(lambda: rig.recorded)
    client.close()
    rig.until(lambda: len(rig.recorded) == 2)

    assert [ConnectionOpened, ConnectionClosed] == [type(event) for event in rig.recorded]


def test_a_release_comes_to_an_end(rig: Rig) -> None:
    """Accepting all who wait already is bounded by how many can wait, not by how many come meanwhile."""
    door, listener = flaky(rig)
    listener.configure(models.Listener(backlog=100))
    most = 200
    door.failures += [ConnectionAbortedError(errno.ECONNABORTED, "x")] * 300
    listener.release(rig.clock.now)

    assert door.asked <= most


class Channel(Handler):
    """A handler that, once it is readable, releases a listener and ends who is in, as a stop does."""

    __slots__ = ("_listener", "_rig", "told")

    def __init__(self, end: socket.socket, listener: Listener, rig: Rig) -> None:
        super().__init__(end.fileno())
        self._listener = listener
        self._rig = rig
        self.told = False

    def on_readable(self, now: float) -> None:
        """Stop, and have one more client come right then."""
        self._listener.release(now)
        self._rig.reactor.touch(self._listener)
        for stream in streams(self._rig):
            stream.fail(CloseReason.STOPPED, now)
            self._rig.reactor.touch(stream)
        self._rig.knock(self._listener.socket)
        self.interest = 0
        self.told = True


def test_nobody_comes_in_after_the_release(rig: Rig) -> None:
    """A listener that was ready in the very turn of its release accepts no more: nobody would end that connection."""
    end, other = (rig.keep(sock) for sock in socket.socketpair())
    door = rig.door()
    listener = Listener(models.Listener(), door, rig.reactor, rig.setting)
    channel = Channel(end, listener, rig)
    rig.reactor.add(channel)
    rig.reactor.add(listener)
    other.send(b"stop")
    rig.knock(door)
    rig.until(lambda: channel.told)
    rig.turn()

    assert ([], 0) == (streams(rig), rig.gate.inside)


def test_faults_are_for_those_who_come_from_now_on(rig: Rig) -> None:
    """A faulty listener delays and marks its connections; after a reload the next one is like any other."""
    door = rig.door()
    listener = rig.listen(door)
    listener.configure(models.Listener.model_validate({"faults": {"delay": "5s"}}))
    slow = rig.knock(door)
    rig.until(rig.streams)
    listener.configure(models.Listener())
    plain = rig.knock(door)
    rig.until(lambda: len(rig.streams()) == 2)
    slow.send(b"hello")
    plain.send(b"hello")

    assert b"hello" == rig.fetch(plain, 5)
    rig.until(lambda: [stream.connection.received for stream in rig.streams()] == [5, 5])
    rig.later(4.9)
    with pytest.raises(BlockingIOError):
        slow.recv(5)
    rig.later(0.2)
    assert b"hello" == rig.fetch(slow, 5)
    assert [True, None] == [stream.caller.facts()["fault"] for stream in rig.streams()]
