"""The listening sockets: all or nothing when they are opened, exactly those asked for when they are closed."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from echod.config.listeners import Listener
from echod.errors import ConfigError, StartError
from echod.events import BufferClamped, DropReason, ListenerClosed
from echod.net import binding, sockets, udp_options
from echod.observe.scoreboard import DROPPED, Scoreboard
from echod.process import doors as module
from echod.process.doors import Doors
from echod.process.status import ListenerStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.events import Event
    from echod.observe.scoreboard import Row

ONE = Listener(name="one", address="127.0.0.1:0")
TWO = Listener(name="two", address="127.0.0.1:0")


@pytest.fixture
def doors() -> Iterator[Doors]:
    """Give doors that are closed at the end."""
    made = Doors({})
    yield made
    made.close_all()


def targets(*listeners: Listener) -> dict[str, binding.BindTarget]:
    """Resolve the names of listeners, as the start and a reload do."""
    return {listener.name: binding.resolve(listener) for listener in listeners}


def count_descriptors() -> int:
    """Count the descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_opened_listens(doors: Doors) -> None:
    """Each listener has its sockets, named after it; the status tells the addresses really bound."""
    doors.open([ONE, TWO], targets(ONE, TWO))
    (name, sock), (other, _) = doors.of([ONE, TWO])

    assert ("one", "two") == (name, other)
    with socket.create_connection(sock.getsockname(), 5):
        pass
    assert [sock.fileno() for _, sock in doors.of([ONE, TWO])] == doors.filenos()
    bound = [sockets.text(sock.getsockname())]
    expected = ListenerStatus(name="one", transport="tcp", address="127.0.0.1:0", inherited=False, bound=bound)
    assert [expected] == doors.status([ONE])


def test_one_failure_undoes_all_that_was_opened(doors: Doors) -> None:
    """When an address is taken nothing new stays bound, and what was open before stays open."""
    doors.open([ONE], targets(ONE))
    before, descriptors = doors.filenos(), count_descriptors()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = Listener(name="bad", address=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(StartError, match='listener "bad": '):
            doors.open([TWO, bad], targets(TWO, bad))

    assert before == doors.filenos()
    assert [] == doors.of([TWO])
    assert descriptors == count_descriptors()


def test_more_sockets_than_a_message_holds_are_refused(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be handed to a worker is refused with both numbers, and closed."""
    monkeypatch.setattr(module, "MOST_DESCRIPTORS", 2)
    doors.open([ONE], targets(ONE))
    descriptors = count_descriptors()
    with pytest.raises(StartError, match="the listeners need 2 sockets, and 1 is the most"):
        doors.open([TWO], targets(TWO), keep=[ONE])

    assert descriptors == count_descriptors()
    doors.open([TWO], targets(TWO))  # in place of the other one, which need not be handed over any more


def test_close_closes_only_what_is_named(doors: Doors) -> None:
    """Closing one listener leaves the other; closing it twice does no harm."""
    doors.open([ONE, TWO], targets(ONE, TWO))
    (_, sock), (_, kept) = doors.of([ONE, TWO])
    doors.close([ONE])
    doors.close([ONE])

    assert -1 == sock.fileno()
    assert [kept.fileno()] == doors.filenos()


@pytest.fixture
def port() -> int:
    """Return a port that is free on both families."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as probe:
        return int(probe.getsockname()[1])


def pass_on(doors: Doors, old: list[Listener], new: list[Listener]) -> list[str]:
    """Do to the sockets what a reload does; return its events, as their names and addresses."""
    events: list[Event] = []
    doors.open(new, targets(*new), release=old)
    doors.say_opened(new, events.append)
    doors.retire(old, Scoreboard().row(0), events.append)
    return [f"{type(event).__name__} {getattr(event, 'address', '')}" for event in events]


def test_open_keeps_the_sockets_that_fit_a_wildcard(doors: Doors, port: int) -> None:
    """From one family to both, and back: only the other one is opened and closed."""
    four = Listener(name="one", address=f"0.0.0.0:{port}")
    both = Listener(name="two", address=f"*:{port}")
    doors.open([four], targets(four))
    (before,) = [sock for _, sock in doors.of([four])]

    assert pass_on(doors, [four], [both]) == ["ListenerOpened ::"]
    assert doors.of([both])[0] == ("two", before)
    assert pass_on(doors, [both], [four]) == ["ListenerClosed ::"]
    assert doors.of([four]) == [("one", before)]


def test_open_keeps_the_sockets_of_two_listeners_for_a_wildcard(doors: Doors, port: int) -> None:
    """Both families were bound; nothing is opened or closed, one way and the other."""
    four = Listener(name="four", address=f"0.0.0.0:{port}")
    six = Listener(name="six", address=f"[::]:{port}")
    both = Listener(name="both", address=f"*:{port}")
    doors.open([four, six], targets(four, six))
    before = doors.filenos()

    assert pass_on(doors, [four, six], [both]) == []
    assert doors.filenos() == before
    assert pass_on(doors, [both], [four, six]) == []
    assert doors.filenos() == before


def test_open_that_fails_leaves_the_sockets_that_it_would_have_kept(doors: Doors, port: int) -> None:
    """The old listener listens on, and has its socket."""
    four = Listener(name="four", address=f"0.0.0.0:{port}")
    both = Listener(name="both", address=f"*:{port}")
    doors.open([four], targets(four))
    before, descriptors = doors.filenos(), count_descriptors()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = Listener(name="bad", address=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(StartError, match="bad"):
            doors.open([both, bad], targets(both, bad), release=[four])

    assert doors.filenos() == before
    assert count_descriptors() == descriptors
    doors.open([both], targets(both), release=[four])
    doors.close([both])  # as when a later step of the reload fails
    assert doors.filenos() == before
    with socket.create_connection(("127.0.0.1", port), 5):
        pass


def test_stop_during_a_reload_closes_each_socket_once(doors: Doors, port: int) -> None:
    """A socket that two listeners have is told of once."""
    four = Listener(name="four", address=f"0.0.0.0:{port}")
    both = Listener(name="both", address=f"*:{port}")
    events: list[Event] = []
    doors.open([four], targets(four))
    doors.open([both], targets(both), release=[four])
    doors.retire([both, four], Scoreboard().row(0), events.append)

    assert sorted(str(event.address) for event in events if isinstance(event, ListenerClosed)) == ["0.0.0.0", "::"]
    assert doors.filenos() == []


@pytest.mark.parametrize("new", ["127.0.0.1", "*"])
def test_address_of_another_listener_is_named(doors: Doors, port: int, new: str) -> None:
    """A socket that does not fit cannot be closed before the reload has succeeded."""
    old = Listener(name="old", address=f"0.0.0.0:{port}", interface="" if new == "127.0.0.1" else "lo")
    added = Listener(name="new", address=f"{new}:{port}")
    doors.open([old], targets(old))
    with pytest.raises(StartError) as refused:
        doors.open([added], targets(added), release=[old])

    assert f'echod itself listens on 0.0.0.0:{port}, as listener "old"' in refused.value.lines[0]


def test_address_of_another_program_is_not_said_to_be_ones_own(doors: Doors, port: int) -> None:
    """Not even where echod has the port of the other family."""
    six = Listener(name="six", address=f"[::]:{port}")
    four = Listener(name="four", address=f"0.0.0.0:{port}")
    doors.open([six], targets(six))
    with socket.create_server(("127.0.0.1", port)), pytest.raises(StartError) as refused:
        doors.open([four], targets(four), keep=[six])

    assert "see who has it" in refused.value.lines[0]


def test_events_tell_what_became_of_each_address(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound addresses are opened, those this machine lacks are skipped, and what is closed is said before it is."""
    lacking = binding.Skipped(("192.0.2.1", 7), socket.AF_INET, "EADDRNOTAVAIL")
    real = binding.bind
    monkeypatch.setattr(binding, "bind", lambda *arguments: (real(*arguments)[0], [lacking]))
    said: list[Event] = []
    emit: Callable[[Event], None] = said.append
    doors.open([ONE], targets(ONE))
    doors.say_opened([ONE], emit)
    doors.say_closed([ONE], emit)

    assert ["listener.opened", "listener.skipped", "listener.closed"] == [event.name for event in said]
    port = doors.of([ONE])[0][1].getsockname()[1]
    assert [("127.0.0.1", port), ("192.0.2.1", 7), ("127.0.0.1", port)] == [
        (vars(event)["address"], vars(event)["port"]) for event in said
    ]
    assert "EADDRNOTAVAIL" == vars(said[1])["error"]


def test_listener_that_has_no_mptcp_is_warned_of(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each of its sockets; it serves TCP."""
    monkeypatch.setattr(binding, "_socket", lambda _, family: socket.socket(family, socket.SOCK_STREAM))
    listener = Listener(name="one", address="127.0.0.1:0", mptcp=True)
    doors.open([listener], targets(listener))
    events: list[Event] = []
    doors.say_opened([listener], events.append)

    assert [event.name for event in events] == ["listener.opened", "mptcp.disabled"]


def test_faults_are_warned_of_as_they_are_written(doors: Doors) -> None:
    """The log has what is asked for at which address, when that is opened and whenever it is asked again."""
    harmed = Listener.model_validate({"name": "harmed", "address": "127.0.0.1:0", "faults": {"delay": "1s"}})
    said: list[Event] = []
    doors.open([ONE, harmed], targets(ONE, harmed))
    doors.say_opened([ONE, harmed], said.append)
    doors.say_faults([ONE, harmed], said.append)
    port = doors.of([harmed])[0][1].getsockname()[1]

    assert ["listener.opened"] * 2 + ["faults.enabled"] * 2 == [event.name for event in said]
    assert [("harmed", port, True, ['delay = "1s"'])] * 2 == [
        (vars(event)["listener"], vars(event)["port"], vars(event)["fault"], vars(event)["faults"])
        for event in said[2:]
    ]


@pytest.fixture
def passed() -> Iterator[socket.socket]:
    """Give a listening socket that came from somewhere else, blocking as systemd leaves it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_an_inherited_socket_wins_over_the_address(passed: socket.socket) -> None:
    """A listener of that name uses it, whatever its address says; the event and the state tell both addresses."""
    doors = Doors({"one": [passed]})
    said: list[Event] = []
    doors.open([ONE, TWO], targets(ONE, TWO))
    doors.say_opened([ONE, TWO], said.append)
    other = doors.of([TWO])[0][1]

    assert [("one", passed)] == doors.of([ONE])
    assert not passed.getblocking()
    assert [("127.0.0.1:0", passed.getsockname()[1]), (None, other.getsockname()[1])] == [
        (vars(event)["configured"], vars(event)["port"]) for event in said
    ]
    assert [True, False] == [entry.inherited for entry in doors.status([ONE, TWO])]
    doors.close_all()
    assert (-1, -1) == (passed.fileno(), other.fileno())


def test_a_socket_of_the_wrong_type_is_refused() -> None:
    """One line says which listener it was passed for, and what it is."""
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with datagram, pytest.raises(ConfigError, match=r'^listener "one": a AF_INET SOCK_DGRAM socket was passed for it'):
        Doors({"one": [datagram]}).open([ONE], {})
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = Listener(name="path", kind="unix", address="/run/echod-test.sock")
    with datagram, pytest.raises(ConfigError, match=r"a AF_UNIX SOCK_DGRAM socket was passed for it, and it is unix"):
        Doors({"path": [datagram]}).open([path], {})
    deaf = socket.socket()
    with deaf, pytest.raises(ConfigError, match=r'^listener "one": a socket was passed for it that does not listen'):
        Doors({"one": [deaf]}).open([ONE], {})


def test_sockets_are_not_inherited(doors: Doors) -> None:
    """A program that echod executes would not keep the address bound."""
    doors.open([ONE], targets(ONE))

    assert [False] == [os.get_inheritable(fd) for fd in doors.filenos()]


# -- sockets that a worker has shut down ------------------------------------------------------------------------------


def shut_down(sock: socket.socket) -> None:
    """Do what a hostile worker can do with its copy of a listening socket."""
    sock.shutdown(socket.SHUT_RD)


def check(doors: Doors, *listeners: Listener) -> list[dict[str, object]]:
    """Let the doors look once, and return what they emit."""
    said: list[Event] = []
    doors.check_listening(listeners, said.append)
    return [{"event": event.name} | vars(event) for event in said]


def test_sockets_that_listen_are_left_alone(doors: Doors, tmp_path: Path) -> None:
    """Of TCP, UDP and Unix sockets that nobody has touched nothing is said."""
    udp = Listener(name="udp", kind="udp", address="127.0.0.1:0")
    path = Listener(name="path", kind="unix", address=f"{tmp_path}/sock")
    doors.open([ONE, udp, path], targets(ONE, udp, path))

    assert [] == check(doors, ONE, udp, path)


@pytest.mark.parametrize("chosen", [True, False], ids=["a port of the kernel's choice", "a configured port"])
def test_socket_that_was_shut_down_listens_again(doors: Doors, chosen: bool) -> None:
    """On the port that it had, also where the kernel has taken that back; one warning names the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listener = ONE if chosen else Listener(name="one", address=f"127.0.0.1:{port}")
    doors.open([listener], targets(listener))
    [(_, sock)] = doors.of([listener])
    address = sock.getsockname()
    shut_down(sock)
    [said] = check(doors, listener)

    assert ("listener.restored", "one", *address) == tuple(
        said[key] for key in ("event", "listener", "address", "port")
    )
    with socket.create_connection(address, 5):
        pass
    assert [] == check(doors, listener)


def test_socket_whose_port_was_taken_is_lost_until_it_is_free(doors: Doors) -> None:
    """That is said once; each look tries again, and the first that succeeds says so."""
    doors.open([ONE], targets(ONE))
    [(_, sock)] = doors.of([ONE])
    address = sock.getsockname()
    shut_down(sock)
    with socket.create_server(address):
        first, second = check(doors, ONE), check(doors, ONE)
    third = check(doors, ONE)

    assert [("listener.failed", "EADDRINUSE", address[1])] == [(e["event"], e["error"], e["port"]) for e in first]
    assert [] == second
    assert ["listener.restored"] == [said["event"] for said in third]


def test_reload_is_refused_while_a_socket_is_lost(doors: Doors) -> None:
    """The error names listener, address and reason; what the reload has bound is closed; options raise nothing."""
    doors.open([ONE], targets(ONE))
    [(_, sock)] = doors.of([ONE])
    address = sock.getsockname()
    shut_down(sock)
    with socket.create_server(address):
        before = count_descriptors()
        with pytest.raises(StartError, match=rf'^listener "one": 127.0.0.1:{address[1]}: .*Address already in use'):
            doors.open([TWO], targets(TWO), keep=[ONE])
        doors.adjust([ONE])

        assert before == count_descriptors()
        assert [] == doors.of([TWO])


def test_reload_makes_a_socket_listen_again(doors: Doors) -> None:
    """A reload that comes before the next look is not refused for what can be mended."""
    doors.open([ONE], targets(ONE))
    [(_, sock)] = doors.of([ONE])
    address = sock.getsockname()
    shut_down(sock)
    doors.open([TWO], targets(TWO), keep=[ONE])

    with socket.create_connection(address, 5):
        pass


def test_socket_that_was_made_to_block_does_not_block_any_more(doors: Doors) -> None:
    """The flag is shared: a worker that clears it makes its siblings wait in accept(2)."""
    doors.open([ONE], targets(ONE))
    [(_, sock)] = doors.of([ONE])
    os.set_blocking(sock.fileno(), True)
    check(doors, ONE)

    assert not os.get_blocking(sock.fileno())


def test_unix_socket_that_was_shut_down_is_lost(doors: Doors, tmp_path: Path) -> None:
    """The kernel lets it listen no more, though it says that it does: its loss is said once."""
    path = Listener(name="path", kind="unix", address=f"{tmp_path}/sock")
    doors.open([path], targets(path))
    shut_down(doors.of([path])[0][1])
    first, second = check(doors, path), check(doors, path)

    assert [("listener.failed", "ESHUTDOWN")] == [(said["event"], said["error"]) for said in first]
    assert [] == second


def test_closing_does_not_wait_for_what_a_worker_has_left(doors: Doors) -> None:
    """A worker may connect a socket that it has shut down, and let it linger: the last one to close it would wait."""
    doors.open([ONE], targets(ONE))
    [(_, sock)] = doors.of([ONE])
    shut_down(sock)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sock.setblocking(True)
        try:
            sock.connect(silent.getsockname())
        except OSError as error:
            pytest.skip(f"this kernel connects no socket that has listened: {error.strerror}")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
        sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 20))
        sock.setblocking(True)
        began = monotonic()
        doors.close([ONE])
        took = monotonic() - began

    assert took < 1.0


UDP = Listener.model_validate({"name": "udp", "kind": "udp", "address": "127.0.0.1:0", "receive_buffer": "4KiB"})


def drop_some(sock: socket.socket) -> int:
    """Send more than the receive buffer of `sock` holds, and return how many datagrams the kernel has dropped."""
    before = udp_options.drops(sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for _ in range(100):
            peer.sendto(b"x", sock.getsockname())
    after = udp_options.drops(sock)
    assert before is not None
    assert after is not None
    assert after > before
    return after - before


def counted(doors: Doors, row: Row) -> list[int]:
    """Have the drops of `UDP` counted, and return those that the events say; they are those that the row has more."""
    events: list[Event] = []
    column = DROPPED[DropReason.RECEIVE_BUFFER_FULL]
    before = row[column]
    doors.count_drops([ONE, UDP], row, events.append)
    counts = [vars(event)["receive_buffer_full"] for event in events]
    assert sum(counts) == row[column] - before
    return counts


def test_count_drops_counts_each_drop_once(doors: Doors) -> None:
    """What the kernel has dropped since the last time; nothing is said of nothing, nor of a socket of TCP."""
    doors.open([ONE, UDP], targets(ONE, UDP))
    [(_, sock)] = doors.of([UDP])
    row = Scoreboard().row(0)

    assert [] == counted(doors, row)
    first = drop_some(sock)
    assert [first] == counted(doors, row)
    assert [] == counted(doors, row)
    second = drop_some(sock)
    assert [second] == counted(doors, row)


def test_count_drops_goes_on_where_the_kernels_number_wraps(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has 32 bits."""
    numbers = iter([2**32 - 3, 4])
    monkeypatch.setattr(udp_options, "drops", lambda _: next(numbers))
    doors.open([UDP], targets(UDP))

    assert [7] == counted(doors, Scoreboard().row(0))


def test_count_drops_is_silent_where_the_kernel_does_not_tell(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """SO_MEMINFO came with Linux 4.12."""
    numbers = iter([5, None, 6])
    monkeypatch.setattr(udp_options, "drops", lambda _: next(numbers))
    doors.open([UDP], targets(UDP))

    assert [[], [1]] == [counted(doors, Scoreboard().row(0)) for _ in range(2)]


def test_count_drops_leaves_out_those_before_a_socket_was_inherited() -> None:
    """They are nothing that this daemon has to answer for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as passed:
        passed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        passed.bind(("127.0.0.1", 0))
        drop_some(passed)
        doors = Doors({"udp": [passed]})
        doors.open([UDP], targets(UDP))
        row = Scoreboard().row(0)
        before = counted(doors, row)
        new = drop_some(passed)

        assert [] == before
        assert [new] == counted(doors, row)


def test_clamped_buffer_of_an_inherited_socket_names_the_socket_unit() -> None:
    """What the file says of its size is not done to a socket that systemd has made; the log says so."""
    events: list[Event] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as passed:
        passed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        passed.bind(("127.0.0.1", 0))
        doors = Doors({"udp": [passed]})
        listener = UDP.model_copy(update={"receive_buffer": 8192})
        doors.open([listener], targets(listener))
        doors.say_opened([listener], events.append)
        [clamped] = [event for event in events if isinstance(event, BufferClamped)]

    assert "ReceiveBuffer= of the socket unit" == clamped.cause
    assert (8192, 4096) == (clamped.configured, clamped.value)
