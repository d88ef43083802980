"""Unix sockets and their paths: what is taken over, what is left alone, and what is removed."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from echod.config.listeners import Listener
from echod.errors import StartError
from echod.net import sockets, unix
from tests.net.binding import bind_resolved

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close at the end whatever a test has opened."""
    with ExitStack() as made:
        yield made


def at(path: Path | str, **keys: str) -> Listener:
    """Describe a listener at a path."""
    return Listener.model_validate({"name": "door", "kind": "unix", "address": str(path)} | keys)


def bound(stack: ExitStack, listener: Listener) -> socket.socket:
    """Bind it until the test is over."""
    ([sock], []) = bind_resolved(listener)
    return stack.enter_context(sock)


@pytest.mark.parametrize("mode", ["0600", "0660", "0777"])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_mode_is_what_was_asked_for(stack: ExitStack, tmp_path: Path, mode: str, umask: int) -> None:
    """Whatever the umask, which is left as it was."""
    before = os.umask(umask)
    try:
        bound(stack, at(tmp_path / "s", mode=mode))
    finally:
        left = os.umask(before)

    assert (int(mode, 8), umask) == (stat.S_IMODE((tmp_path / "s").stat().st_mode), left)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_is_who_was_asked_for(stack: ExitStack, tmp_path: Path) -> None:
    """User, group, or both; what is not said stays."""
    for number, (owner, expected) in enumerate({"daemon:sys": (1, 3), "daemon": (1, 0), ":sys": (0, 3)}.items()):
        path = tmp_path / str(number)
        bound(stack, at(path, owner=owner))

        assert expected == (path.stat().st_uid, path.stat().st_gid)


@pytest.mark.parametrize("owner", ["no-such", "daemon:no-such"])
def test_an_unknown_owner_is_one_sentence(tmp_path: Path, owner: str) -> None:
    """Nothing is bound for somebody who does not exist."""
    with pytest.raises(StartError, match=r'^listener "door": owner: .*no-such'):
        bind_resolved(at(tmp_path / "s", owner=owner))

    assert [] == list(tmp_path.iterdir())


def test_a_path_goes_with_its_socket(tmp_path: Path) -> None:
    """Whoever has bound it removes it; closing twice does no harm."""
    ([sock], []) = bind_resolved(at(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
    sock.close()
    sock.close()

    assert [] == list(tmp_path.iterdir())


def test_what_somebody_else_has_put_there_stays(tmp_path: Path) -> None:
    """A path that was replaced meanwhile leads to another socket, and is not removed."""
    ([sock], []) = bind_resolved(at(tmp_path / "s"))
    (tmp_path / "s").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        sock.close()

        assert (tmp_path / "s").is_socket()


def test_what_a_dead_process_has_left_is_taken_over(stack: ExitStack, tmp_path: Path) -> None:
    """Nobody listens there any more."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
        dead.listen()
    bound(stack, at(tmp_path / "s"))
    client = stack.enter_context(socket.socket(socket.AF_UNIX))

    assert 0 == client.connect_ex(str(tmp_path / "s"))


def test_where_somebody_lives_nothing_is_taken(tmp_path: Path) -> None:
    """Also when so many wait there that one more cannot."""
    with ExitStack() as stack:
        living = stack.enter_context(socket.socket(socket.AF_UNIX))
        living.bind(str(tmp_path / "s"))
        living.listen(0)
        for _ in range(2):
            with pytest.raises(StartError, match=r'"door": .*/s: Address already in use \(see who has it: ss -lxp\)$'):
                bind_resolved(at(tmp_path / "s"))
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(tmp_path / "s"))

        assert (tmp_path / "s").is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_never_touched(tmp_path: Path, kind: str) -> None:
    """Not a file, not a directory, not a link wherever it leads."""
    path = tmp_path / "s"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to("elsewhere")
    before = path.lstat()
    with pytest.raises(StartError, match="there is something that is no socket; remove it"):
        bind_resolved(at(path))

    assert before == path.lstat()


def test_a_directory_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """The system's reason, and where."""
    with pytest.raises(StartError, match=r"/nowhere/s: No such file or directory$"):
        bind_resolved(at(tmp_path / "nowhere" / "s"))


def test_an_abstract_name_has_no_path(stack: ExitStack) -> None:
    """It is bound, cannot be bound twice, and is free again when it is closed."""
    listener = at(f"@echod-test-{os.getpid()}")
    sock = bound(stack, listener)
    with pytest.raises(StartError, match="Address already in use"):
        bind_resolved(listener)

    assert listener.address == sockets.text(sock.getsockname())
    sock.close()
    bound(stack, listener)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("", ""), ("/run/x", "/run/x"), ("/\udcff", "/\\xff"), (b"\0name", "@name"), (b"\0\xff\0", "@\\xff\0")],
)
def test_text(address: str | bytes, expected: str) -> None:
    """An address as the configuration writes it; a peer without one has none."""
    assert expected == unix.text(address)
