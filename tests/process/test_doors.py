"""The listening sockets: all or nothing when they are opened, exactly those asked for when they are closed."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod.config.listeners import Listener
from echod.errors import ConfigError, StartError
from echod.net import sockets
from echod.process import doors as module
from echod.process.doors import Doors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.events import Event

ONE = Listener(name="one", address="127.0.0.1:0")
TWO = Listener(name="two", address="127.0.0.1:0")


@pytest.fixture
def doors() -> Iterator[Doors]:
    """Give doors that are closed at the end."""
    made = Doors({})
    yield made
    made.close_all()


def targets(*listeners: Listener) -> dict[str, sockets.BindTarget]:
    """Resolve the names of listeners, as the start and a reload do."""
    return {listener.name: sockets.resolve(listener) for listener in listeners}


def count_descriptors() -> int:
    """Count the descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_opened_listens(doors: Doors) -> None:
    """Each listener has its sockets, named after it; the state tells the addresses really bound."""
    doors.open([ONE, TWO], targets(ONE, TWO))
    (name, sock), (other, _) = doors.of([ONE, TWO])

    assert ("one", "two") == (name, other)
    with socket.create_connection(sock.getsockname(), 5):
        pass
    assert [sock.fileno() for _, sock in doors.of([ONE, TWO])] == doors.filenos()
    bound = [sockets.text(sock.getsockname())]
    expected = {"name": "one", "kind": "tcp", "address": "127.0.0.1:0", "inherited": False, "bound": bound}
    assert [expected] == doors.state([ONE])


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


def test_events_tell_what_became_of_each_address(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound addresses are opened, those this machine lacks are skipped, and what is closed is said before it is."""
    lacking = sockets.Skipped(("192.0.2.1", 7), socket.AF_INET, "EADDRNOTAVAIL")
    real = sockets.bind
    monkeypatch.setattr(sockets, "bind", lambda *arguments: (real(*arguments)[0], [lacking]))
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
    assert [True, False] == [entry["inherited"] for entry in doors.state([ONE, TWO])]
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
