"""What is said to systemd, byte for byte, and what is taken from it."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack, suppress
from math import inf
from typing import TYPE_CHECKING

import pytest

from echod.errors import ConfigError, StartError
from echod.process import systemd
from echod.process.systemd import MOST_UNSENT, Manager, manager, passed_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PID = str(os.getpid())


class Ear:
    """A datagram socket in systemd's place."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[bytes]:
        """Return every message that has come."""
        found: list[bytes] = []
        with suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(4096))
        return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close at the end whatever a test has opened."""
    with ExitStack() as made:
        yield made


def ear(stack: ExitStack, address: str) -> Ear:
    """Listen at an address until the test is over."""
    made = Ear(address)
    stack.enter_context(made.socket)
    return made


def talk(stack: ExitStack, address: str, watchdog: float = inf) -> Manager:
    """Talk to an address until the test is over."""
    made = Manager(address, watchdog)
    stack.callback(made.close)
    return made


def test_each_message(stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is ever said, as sd_notify(3) spells it, in the order it was said."""
    systemd_ = ear(stack, str(tmp_path / "notify"))
    monkeypatch.setattr(time, "monotonic_ns", lambda: 1_234_567_891)
    mine = talk(stack, str(tmp_path / "notify"), watchdog=20)
    mine.ready("Serving")
    mine.alive()
    mine.reloading()
    mine.stopping("Draining")
    mine.extend(1.5)
    mine.failed(StartError("one", "two", errno=98))
    mine.failed(StartError("no number"))
    mine.failed(ConfigError("the file"))

    assert [
        b"READY=1\nMAINPID=%s\nSTATUS=Serving" % PID.encode(),
        b"WATCHDOG=1",
        b"RELOADING=1\nMONOTONIC_USEC=1234567",
        b"STOPPING=1\nSTATUS=Draining",
        b"EXTEND_TIMEOUT_USEC=1500000",
        b"STATUS=one; two\nERRNO=98",
        b"STATUS=no number",
        b"STATUS=the file\nERRNO=22",
    ] == systemd_.heard()


def test_an_abstract_address(stack: ExitStack) -> None:
    """A name that begins with "@" is one of the abstract kind (unix(7))."""
    systemd_ = ear(stack, f"\0echod-test-{PID}")
    talk(stack, f"@echod-test-{PID}").ready("Serving")

    assert 1 == len(systemd_.heard())


def test_a_status_is_one_short_line(stack: ExitStack, tmp_path: Path) -> None:
    """What would break the line is escaped, what is too long is cut, and what is not Unicode is no failure."""
    systemd_ = ear(stack, str(tmp_path / "notify"))
    mine = talk(stack, str(tmp_path / "notify"))
    mine.stopping("a\nREADY=1\x1b\udcff" + "b" * 1000)
    (message,) = systemd_.heard()

    assert message.startswith(b"STOPPING=1\nSTATUS=a\\nREADY=1\\x1b\\udcffbbb")
    assert 1 == message.count(b"\n")
    assert len(message) < 600


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@echod-test-nobody", "x" * 200, "relative", "vsock:2:1"])
def test_nobody_listens(stack: ExitStack, address: str) -> None:
    """A manager that is not there is no reason to fail, or to keep what it misses."""
    mine = talk(stack, address, watchdog=1)
    for _ in range(3):
        mine.ready("Serving")
        mine.alive()
        mine.flush()

    assert not mine._unsent


def test_a_socket_that_cannot_be_made_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that forbids sockets only makes echod silent."""

    def forbidden(*_: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", forbidden)
    Manager("/run/systemd/notify").ready("Serving")


def test_a_full_socket_gets_it_later_in_order(stack: ExitStack, tmp_path: Path) -> None:
    """Nothing blocks; what matters is sent once there is room, the newest of it; a watchdog never waits in line."""
    systemd_ = ear(stack, str(tmp_path / "notify"))
    mine = talk(stack, str(tmp_path / "notify"), watchdog=1)
    while not mine._unsent:
        mine.alive()
    systemd_.heard()
    mine._unsent.clear()
    while not mine._unsent:
        mine.stopping("filling")
    mine.alive()
    for number in range(2 * MOST_UNSENT):
        mine.ready(str(number))
    systemd_.heard()
    mine.flush()
    heard = systemd_.heard()

    assert [b"STATUS=%d" % (MOST_UNSENT + number) for number in range(len(heard))] == [
        message.splitlines()[-1] for message in heard
    ]
    assert heard
    while mine._unsent:
        mine.flush()
        heard += systemd_.heard()
    assert b"STATUS=%d" % (2 * MOST_UNSENT - 1) == heard[-1].splitlines()[-1]
    assert MOST_UNSENT == len(heard)


@pytest.mark.parametrize(
    ("environment", "watchdog"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 20.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": PID}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, inf),
        ({"WATCHDOG_USEC": "0"}, inf),
        ({"WATCHDOG_USEC": "soon"}, inf),
        ({"WATCHDOG_USEC": "-1"}, inf),
        ({"WATCHDOG_USEC": "²"}, inf),
        ({"WATCHDOG_USEC": "9" * 5000}, inf),
        ({}, inf),
    ],
)
def test_the_watchdog(environment: dict[str, str], watchdog: float) -> None:
    """It watches this very process, at an interval that is a number; else it does not watch."""
    found = manager(environment)

    assert watchdog == found.watchdog
    assert {} == environment


def test_no_watchdog_is_not_fed(stack: ExitStack, tmp_path: Path) -> None:
    """Who is not watched does not say so all the time."""
    systemd_ = ear(stack, str(tmp_path / "notify"))
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "HOME": "/"}
    mine = manager(environment)
    stack.callback(mine.close)
    mine.alive()

    assert [] == systemd_.heard()
    assert {"HOME": "/"} == environment


class Passed:
    """Sockets at the descriptors from 3 on, as far as `systemd` can tell: there the test's own stand."""

    def __init__(self, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.first = 700
        self.listening = []
        monkeypatch.setattr(systemd, "FIRST_FD", self.first)
        for number in range(count):
            with socket.create_server(("127.0.0.1", 0)) as sock:
                os.dup2(sock.fileno(), self.first + number, inheritable=True)
                self.listening.append(sock.getsockname())


def test_sockets_come_by_name(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several may share a name; none of them is inheritable any more, and the variables are gone."""
    passed = Passed(stack, monkeypatch, 3)
    environment = {"LISTEN_PID": PID, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "echo:other:echo", "HOME": "/"}
    found = passed_sockets(environment)
    for sock in (*found["echo"], *found["other"]):
        stack.enter_context(sock)

    assert {"HOME": "/"} == environment
    assert {"echo": [passed.listening[0], passed.listening[2]], "other": [passed.listening[1]]} == {
        name: [sock.getsockname() for sock in sockets] for name, sockets in found.items()
    }
    assert [False] * 3 == [sock.get_inheritable() for sock in (*found["echo"], *found["other"])]


def test_sockets_without_names_are_unknown(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """So calls them sd_listen_fds_with_names(3)."""
    Passed(stack, monkeypatch, 1)
    found = passed_sockets({"LISTEN_PID": PID, "LISTEN_FDS": "1"})

    assert ["unknown"] == list(found)
    stack.enter_context(found["unknown"][0])


@pytest.mark.parametrize("pid", [{}, {"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_PID": "rubbish"}])
def test_sockets_of_another_process_are_left_alone(pid: dict[str, str]) -> None:
    """The variables were meant for a parent: nothing is taken, and nobody else shall believe them."""
    environment = {**pid, "LISTEN_FDS": "rubbish", "LISTEN_FDNAMES": "a:b"}

    assert {} == passed_sockets(environment)
    assert {} == environment


@pytest.mark.parametrize(
    ("fds", "names", "sentence"),
    [
        ("", "", 'LISTEN_FDS: must be a number, got ""'),
        ("-1", "", 'LISTEN_FDS: must be a number, got "-1"'),
        ("1e3\n", "", 'LISTEN_FDS: must be a number, got "1e3\\n"'),
        ("2", "echo", "LISTEN_FDNAMES: 1 names for 2 descriptors"),
        ("1", "a\x1b", 'LISTEN_FDS: descriptor 700, named "a\\x1b": Bad file descriptor'),
    ],
)
def test_a_broken_promise_is_one_sentence(
    fds: str, names: str, sentence: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the variables promise and is not there is said, with the variable's name."""
    Passed(stack, monkeypatch, 0)
    with pytest.raises(StartError) as refused:
        passed_sockets({"LISTEN_PID": PID, "LISTEN_FDS": fds, "LISTEN_FDNAMES": names})

    assert (sentence,) == refused.value.lines


def test_what_is_no_socket_is_refused(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, say, that ListenFIFO= would pass."""
    monkeypatch.setattr(systemd, "FIRST_FD", 700)
    with open(os.devnull) as file:  # noqa: PTH123  # a descriptor is what is wanted
        os.dup2(file.fileno(), 700)
    stack.callback(os.close, 700)
    with pytest.raises(StartError, match='descriptor 700, named "pipe": Socket operation on non-socket'):
        passed_sockets({"LISTEN_PID": PID, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "pipe"})
