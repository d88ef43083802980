"""Unix sockets and their paths: what is taken over, what is left alone, and what is removed."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.config.listeners import Listener
from echod.errors import StartError
from echod.net import sockets, unix
from tests.net.binding import bind_resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


# -- a directory that somebody else may write to ----------------------------------------------------------------------


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away, or has something to lose")


@pytest.mark.parametrize("owner", ["", pytest.param("daemon:sys", marks=as_root)])
def test_path_swapped_after_bind_changes_no_other_file(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    """A directory's owner replaces the path by a link as soon as it exists: the file behind it keeps mode and owner."""
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    before = secret.stat()
    path = tmp_path / "s"
    original_bind, original_link = unix.PathSocket.bind, os.link

    def swap() -> None:
        if path.is_socket():
            path.unlink()
            path.symlink_to(secret)

    def bind_and_swap(self: socket.socket, address: str) -> None:
        original_bind(self, address)
        swap()

    def link_and_swap(*arguments: Any, **keys: Any) -> None:
        original_link(*arguments, **keys)
        swap()

    monkeypatch.setattr(unix.PathSocket, "bind", bind_and_swap)
    monkeypatch.setattr(os, "link", link_and_swap)
    bound(stack, at(path, mode="0666", **({"owner": owner} if owner else {})))
    after = secret.stat()

    assert path.is_symlink()
    assert oct(before.st_mode) == oct(after.st_mode)
    assert (before.st_uid, before.st_gid) == (after.st_uid, after.st_gid)


@as_root
@pytest.mark.parametrize("owner", ["", "daemon:sys"])
def test_path_has_mode_and_owner_when_it_appears(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    """The first process that sees the path sees its final mode and owner."""
    path, seen = tmp_path / "s", []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **keys: Any) -> Any:
            result = call(*arguments, **keys)
            if path.exists():
                found = path.stat()
                seen.append((oct(stat.S_IMODE(found.st_mode)), found.st_uid, found.st_gid))
            return result

        return called

    for holder, name in ((unix.PathSocket, "bind"), (os, "chown"), (os, "chmod"), (os, "link"), (os, "umask")):
        monkeypatch.setattr(holder, name, watched(getattr(holder, name)))
    bound(stack, at(path, mode="0624", **({"owner": owner} if owner else {})))

    assert {("0o624", 1, 3) if owner else ("0o624", 0, 0)} == set(seen)


@as_root
def test_path_made_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What appears at the path before the socket is linked into place stays, and nothing else is left behind."""
    path = tmp_path / "s"
    original = os.link

    def link_too_late(*arguments: Any, **keys: Any) -> None:
        path.write_text("precious")
        original(*arguments, **keys)

    monkeypatch.setattr(os, "link", link_too_late)
    with pytest.raises(StartError, match="Address already in use"):
        bind_resolved(at(path, owner="daemon"))

    assert "precious" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


@as_root
def test_private_directory_replaced_by_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory's owner puts a directory of its own in the place of the private one: the start fails."""
    original = os.mkdir

    def mkdir_and_swap(name: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        original(name, mode, dir_fd=dir_fd)
        if dir_fd is not None:
            os.rmdir(name, dir_fd=dir_fd)
            original(name, 0o777, dir_fd=dir_fd)
            os.chown(name, 1, 1, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir_and_swap)
    with pytest.raises(StartError, match="was replaced by another user"):
        bind_resolved(at(tmp_path / "s", owner="daemon"))

    assert not (tmp_path / "s").exists()


@as_root
@pytest.mark.parametrize("length", [1, 107])
def test_owned_path_of_any_length_works(stack: ExitStack, tmp_path: Path, length: int) -> None:
    """A path may have all 107 bytes; clients connect, the address is the configured one, and close removes it."""
    directory = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))  # a short one
    path = Path(directory) / ("s" * max(1, length - len(directory) - 1))
    listener = at(path, owner="daemon")
    ([sock], []) = bind_resolved(listener)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))

    assert str(path) == unix.bound_address(listener, sock)
    assert [path] == list(Path(directory).iterdir())
    sock.close()
    assert [] == list(Path(directory).iterdir())
