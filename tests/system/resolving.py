"""Name servers of a test's own, which receive every query and answer only when the test says so.

    with NameServers(tmp_path) as servers:
        daemon = start(prefix=servers.prefix)   # resolves names through these two servers and no others
        ...
        assert servers.wait_asked() == "echo.example"
        servers.answer("127.0.0.1")

It takes root: the daemon gets a mount namespace with a resolv.conf(5) and an nsswitch.conf(5) of its own.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Self

import pytest

from tests.system.daemon import SCALE

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

MOUNT = 'mount --bind "$1" /etc/resolv.conf && mount --bind "$2" /etc/nsswitch.conf && shift 2 && exec "$@"'

TYPE_A = 1
FLAGS = 0x8180
"""A response, recursion desired and available, no error (RFC 1035 section 4.1.1)."""

PORT = 53


class NameServers:
    """Two name servers on loopback addresses, which are silent until `answer` is called."""

    def __init__(self, directory: Path) -> None:
        number = os.getpid() % 250 + 1  # tests run in parallel, each process with addresses of its own
        self._addresses = [f"127.53.{number}.{host}" for host in (1, 2)]
        self._resolv = directory / "resolv.conf"
        self._nsswitch = directory / "nsswitch.conf"
        self._selector = selectors.DefaultSelector()
        self._queries: list[tuple[socket.socket, bytes, tuple[str, int]]] = []

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or not shutil.which("unshare"):
            pytest.skip("needs root and unshare of util-linux")
        self._resolv.write_text("".join(f"nameserver {address}\n" for address in self._addresses))
        self._nsswitch.write_text("passwd: files\ngroup: files\nhosts: dns\n")
        tried = subprocess.run([*self.prefix, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"no mount namespace can be made here: {tried.stderr.strip()}")
        for address in self._addresses:
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._selector.register(server, selectors.EVENT_READ)
            server.bind((address, PORT))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    @property
    def prefix(self) -> list[str]:
        """The words before a command that make it use these name servers; its process id stays the same."""
        return self.prefix_with()

    def prefix_with(self, *options: str) -> list[str]:
        """Return the same with further options of unshare(1)."""
        return ["unshare", "--mount", *options, "sh", "-c", MOUNT, "sh", str(self._resolv), str(self._nsswitch)]

    def wait_asked(self, timeout: float = 10.0) -> str:
        """Wait for a query that was not there before, and return the name that is asked for."""
        self._read()
        before, end = len(self._queries), time.monotonic() + timeout * SCALE
        while len(self._queries) == before:
            assert time.monotonic() < end, f"no query within {timeout} s"
            self._read(0.1)
        return _name(self._queries[-1][1])

    def answer(self, host: str, seconds: float = 3.0) -> None:
        """Answer every query so far, and each that comes within `seconds`, with the IPv4 address `host`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read(0.05)
            for server, query, client in self._queries:
                server.sendto(_response(query, host), client)
            self._queries.clear()

    def _read(self, patience: float = 0.0) -> None:
        for key, _ in self._selector.select(patience):
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(ConnectionError):
                query, client = key.fileobj.recvfrom(4096)
                self._queries.append((key.fileobj, query, client))


def _name(query: bytes) -> str:
    labels, rest = [], query[12:]
    while length := rest[0]:
        labels.append(rest[1 : length + 1].decode())
        rest = rest[length + 1 :]
    return ".".join(labels)


def _response(query: bytes, host: str) -> bytes:
    end = query.index(b"\0", 12) + 5
    (kind,) = struct.unpack("!H", query[end - 4 : end - 2])
    found = kind == TYPE_A
    record = struct.pack("!HHHIH", 0xC00C, TYPE_A, 1, 60, 4) + socket.inet_aton(host) if found else b""
    return query[:2] + struct.pack("!HHHHH", FLAGS, 1, found, 0, 0) + query[12:end] + record
