"""Where a daemon is found, and when it is not trusted."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod.errors import StartError
from echod.process import control_endpoint
from echod.process.control_endpoint import SOCKET_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """Return a directory in which a control socket listens."""
    directory = tmp_path / "echod"
    directory.mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(directory / SOCKET_FILE))
        (directory / SOCKET_FILE).chmod(0o600)
        listening.listen()
        yield directory


def connects(path: Path) -> bool:
    """Tell whether a client can connect."""
    connection = control_endpoint.connect(path)
    if connection:
        connection.close()
    return connection is not None


def test_default_places_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service manager's directory comes first, then the user's own: in /tmp without a session; root has one."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/first:/run/second")
    assert Path("/run/first") == control_endpoint.default_places()[0]
    monkeypatch.setenv("RUNTIME_DIRECTORY", "relative")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert [Path("/run/echod")] == control_endpoint.default_places()
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert [Path("/run/user/1234/echod"), Path("/run/echod")] == control_endpoint.default_places()
    for unusable in ("", "relative/path"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert Path("/tmp/echod-1234") == control_endpoint.default_places()[0]


def test_connect_finds_nothing(tmp_path: Path) -> None:
    """No directory, a link to one, no socket, another file, and a socket without a listener are no daemon."""
    assert not connects(tmp_path / "none")
    assert not connects(tmp_path)
    (tmp_path / SOCKET_FILE).touch()
    assert not connects(tmp_path)
    (tmp_path / SOCKET_FILE).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unheard:
        unheard.bind(str(tmp_path / SOCKET_FILE))
        assert not connects(tmp_path)


def test_connect_follows_no_links(served: Path, tmp_path: Path) -> None:
    """Neither the directory nor the socket may be a link to that of another daemon."""
    (tmp_path / "link").symlink_to(served)
    (tmp_path / SOCKET_FILE).symlink_to(served / SOCKET_FILE)

    assert connects(served)
    assert not connects(tmp_path / "link")
    assert not connects(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give away a directory")
def test_connect_refuses_server_of_third_user(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is neither root nor the owner of the directory is not trusted with a command."""
    monkeypatch.setattr(control_endpoint, "peer_credentials", lambda _: (7, 54_321))

    with pytest.raises(StartError, match="served by user 54321, who is neither root nor the owner"):
        control_endpoint.connect(served)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_connect_is_denied_to_other_users(served: Path) -> None:
    """The kernel decides by the mode of the socket, and the command says who may."""
    served.parent.chmod(0o755)
    for parent in served.parents[:3]:
        parent.chmod(0o755)
    os.seteuid(54_321)
    try:
        with pytest.raises(StartError, match="permission denied; only root and the user that runs echod"):
            control_endpoint.connect(served)
    finally:
        os.seteuid(0)


def test_connect_ignores_users_directory_of_another_owner(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can make /tmp/echod-UID: it counts only while it belongs to that user."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(served.parent))
    assert connects(served)
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)

    assert not connects(served)
