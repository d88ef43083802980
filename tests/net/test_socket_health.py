"""What a look at a socket tells: whether clients reach it, and why not."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from echod.config.listeners import Listener
from echod.net import socket_health
from echod.net.socket_health import Degradation
from tests.net.binding import bind_resolved

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the Unix socket of a test is."""
    return tmp_path / "echo.sock"


@pytest.fixture
def bound(path: Path) -> Iterator[tuple[Listener, socket.socket]]:
    """Bind a Unix socket to the path."""
    listener = Listener(name="path", kind="unix", address=str(path))
    ([sock], _) = bind_resolved(listener)
    yield listener, sock
    sock.close()


def test_socket_that_is_reached(bound: tuple[Listener, socket.socket]) -> None:
    """A socket at its path, one of TCP, one of UDP and an abstract one have nothing wrong."""
    assert socket_health.degradation(*bound) is None
    for kind, address in (("tcp", "127.0.0.1:0"), ("udp", "127.0.0.1:0"), ("unix", f"@echod-{os.getpid()}")):
        listener = Listener.model_validate({"kind": kind, "address": address})
        ([sock], _) = bind_resolved(listener)
        with sock:
            assert socket_health.degradation(listener, sock) is None


def test_path_that_was_removed_or_replaced(bound: tuple[Listener, socket.socket], path: Path) -> None:
    """A path that leads nowhere, or to another socket, is found."""
    path.unlink()
    assert Degradation.PATH_REMOVED is socket_health.degradation(*bound)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        assert Degradation.PATH_REMOVED is socket_health.degradation(*bound)


def test_unix_socket_that_was_shut_down(bound: tuple[Listener, socket.socket]) -> None:
    """It counts as listening to the kernel, and takes no connection any more."""
    bound[1].shutdown(socket.SHUT_RD)

    assert Degradation.SHUT_DOWN is socket_health.degradation(*bound)


def test_interface_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index at the time of bind(2) is held against that of the name now."""
    listener = Listener(address="127.0.0.1:0", interface="lo")
    try:
        ([sock], _) = bind_resolved(listener)
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"this machine does not let a socket be bound so: {error}")

    def missing(_: str) -> int:
        raise OSError(19, "No such device")

    with sock:
        assert socket_health.degradation(listener, sock) is None
        monkeypatch.setattr(socket, "if_nametoindex", lambda _: 4711)
        assert Degradation.INTERFACE_CHANGED is socket_health.degradation(listener, sock)
        monkeypatch.setattr(socket, "if_nametoindex", missing)
        assert Degradation.INTERFACE_MISSING is socket_health.degradation(listener, sock)


def test_only_a_missing_interface_needs_patience() -> None:
    """A new socket helps against all else."""
    assert [Degradation.INTERFACE_MISSING] == [each for each in Degradation if not each.needs_new_socket]
