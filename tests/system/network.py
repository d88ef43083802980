"""A network of its own for a test: a server with several addresses, a client at the other end of a cable.

    with Network() as network:
        with network.server():
            daemon = start(...)     # what is started here, or opened as a socket, lives there
        with network.client():
            ...

It takes root. Both ends are named network namespaces (ip-netns(8)) that are gone when the test is over.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.system.daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

CLONE_NEWNET = 0x40000000
"""Which kind of namespace is entered (setns(2)); os.setns is there from Python 3.12 on."""

SERVER4 = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
SERVER6 = ("2001:db8::1", "2001:db8::2", "2001:db8::3")
CLIENT4, CLIENT6 = "192.0.2.100", "2001:db8::100"
BROADCAST = "192.0.2.255"


class Network:
    """Two namespaces and the cable between them."""

    def __init__(self) -> None:
        self._names = {end: f"echod-{os.getpid()}-{end}" for end in ("server", "client")}

    def __enter__(self) -> Self:
        if not shutil.which("ip") or not Path("/proc/net/if_inet6").exists():
            pytest.skip("needs ip of iproute2, and IPv6")
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    @contextlib.contextmanager
    def server(self) -> Iterator[None]:
        """Be at the server's end."""
        with _inside(self._names["server"]):
            yield

    @contextlib.contextmanager
    def client(self) -> Iterator[None]:
        """Be at the client's end."""
        with _inside(self._names["client"]):
            yield

    def add_address(self, address: str) -> None:
        """Give the server's end one more address, ADDRESS/LENGTH, on its loopback."""
        done = _ip("-n", self._names["server"], "address", "add", address, "dev", "lo")
        assert not done.returncode, f"address {address}: {done.stderr}"

    def add_tentative(self, address: str) -> None:
        """Give the server's end an address, ADDRESS/LENGTH, that the kernel takes long to find to be no duplicate."""
        setting = "net.ipv6.conf.cable.dad_transmits=200"
        steps = (
            ("netns", "exec", self._names["server"], "sysctl", "-q", setting),
            ("-n", self._names["server"], "address", "add", address, "dev", "cable"),
        )
        for step in steps:
            done = _ip(*step)
            assert not done.returncode, f"ip {' '.join(step)}: {done.stderr}"

    def make_interface(self, name: str) -> None:
        """Give the server's end an interface that leads nowhere, with a new index."""
        for step in (f"link add {name} type veth peer name {name}-peer", f"link set {name} up"):
            done = _ip("-n", self._names["server"], *step.split())
            assert not done.returncode, f"ip {step}: {done.stderr}"

    def remove_interface(self, name: str) -> None:
        """Remove an interface of the server's end."""
        done = _ip("-n", self._names["server"], "link", "delete", name)
        assert not done.returncode, f"delete {name}: {done.stderr}"

    def shrink(self, mtu: int) -> None:
        """Let the client's end take packets of at most `mtu` bytes; longer ones vanish without a word of ICMP."""
        done = _ip("-n", self._names["client"], "link", "set", "cable", "mtu", str(mtu))
        assert not done.returncode, f"mtu {mtu}: {done.stderr}"

    def link_local(self, end: str) -> str:
        """Return the link-local address of "server" or "client", once no duplicate of it was found."""

        def found() -> str | None:
            shown = _ip("-n", self._names[end], "-6", "-o", "address", "show", "dev", "cable", "scope", "link")
            return None if "tentative" in shown.stdout or not shown.stdout else shown.stdout.split()[3].split("/")[0]

        return str(wait_until(found, what="an address that is no duplicate"))

    def received(self) -> int:
        """Count the datagrams that all sockets at the server's end were given."""
        with self.server():
            lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, counts = (line.split()[1:] for line in lines if line.startswith("Udp:"))
        return int(dict(zip(names, counts, strict=True))["InDatagrams"])

    def _build(self) -> None:
        server, client = self._names.values()
        for name in (server, client):
            done = _ip("netns", "add", name)
            if done.returncode:
                pytest.skip(f"no network can be made here: {done.stderr.strip()}")
        steps = [
            f"link add cable netns {server} type veth peer name cable netns {client}",
            *(f"-n {name} link set {device} up" for name in (server, client) for device in ("lo", "cable")),
            *(f"-n {server} address add {host}/24 broadcast + dev cable" for host in SERVER4),
            *(f"-n {server} address add {host}/64 dev cable nodad" for host in SERVER6),
            f"-n {client} address add {CLIENT4}/24 broadcast + dev cable",
            f"-n {client} address add {CLIENT6}/64 dev cable nodad",
        ]
        for step in steps:
            done = _ip(*step.split())
            assert not done.returncode, f"ip {step}: {done.stderr}"

    def _remove(self) -> None:
        for name in self._names.values():
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@contextlib.contextmanager
def _inside(name: str) -> Iterator[None]:
    with Path("/proc/thread-self/ns/net").open() as own, Path("/run/netns", name).open() as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def _enter(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
