"""The service behind echod.socket, which systemd binds and keeps: clients wait, and none is refused."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import ping, read_to_end
from tests.system.daemon import ROOT, SCALE, wait_until
from tests.system.service import DROP_INS, ON_MACHINE, Service, make
from tests.system.traffic import Arrivals

if TYPE_CHECKING:
    from tests.conftest import Size

pytestmark = ON_MACHINE

SEED = 20261126
PORT_7 = [("127.0.0.1", 7), ("::1", 7)]
SECOND = '[[listener]]\n[[listener]]\nname = "second"\naddress = "127.0.0.1:10001"\n'
ADMIN = '[admin]\naddress = "127.0.0.1:10001"\n'
WHY = (
    'listener "second": 127.0.0.1:10001: Address family not supported by protocol (this machine has no such addresses, '
    "or RestrictAddressFamilies= keeps them from this service: then a socket unit must pass the socket, with "
    "FileDescriptorName=second)"
)


@pytest.fixture
def activated(service: Service) -> Service:
    """Return the service with its socket, which listens; the service itself waits for the first client."""
    make(service.machine, "install-socket")
    service.machine.systemctl("daemon-reload")
    service.machine.systemctl("start", "echod.socket")
    return service


def listening(service: Service) -> set[str]:
    """Return the inodes of the sockets that listen on port 7 inside."""
    lines = [
        line.split()
        for name in ("net/tcp", "net/tcp6")
        for line in service.process(1, name).read_text().splitlines()[1:]
    ]
    return {fields[9] for fields in lines if fields[1].endswith(":0007") and fields[3] == "0A"}


def held(service: Service) -> set[str]:
    """Return the inodes of all sockets that the supervisor holds."""
    links = [str(fd.readlink()) for fd in service.process(service.main_pid(), "fd").iterdir()]
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}


def remedy() -> str:
    """Return the command that the socket unit names for sockets that systemd has closed."""
    (command,) = re.findall(r"^# {5}(systemctl .+)$", (ROOT / "systemd/echod.socket").read_text(), re.MULTILINE)
    return str(command)


def errors(service: Service) -> list[str]:
    """Return the journal's lines above the level of a warning."""
    return [entry["MESSAGE"] for entry in service.journal() if entry["PRIORITY"] == "3"]


def test_port_7_needs_no_rights(activated: Service) -> None:
    """The first client starts the service; IPv4 and IPv6 answer, and it is said which address the file has."""
    before = activated.show("ActiveState")
    for address in PORT_7:
        activated.echo(address)
    status = json.loads(activated.machine.run("echod", "status", "--json").stdout)["listeners"]
    opened = [
        (record["server.address"], record["server.port"], record["echod.configured_address"])
        for record in activated.records("listener.opened")
    ]
    rights = [activated.process(pid, "status").read_text() for pid in [activated.main_pid(), *activated.workers()]]

    assert {"ActiveState": "inactive"} == before
    assert [
        {
            "name": "echo",
            "transport": "tcp",
            "address": "localhost:10000",
            "inherited": True,
            "bound": ["0.0.0.0:7", "[::]:7"],
            "degraded": [],
        }
    ] == status
    assert [("0.0.0.0", 7, "localhost:10000"), ("::", 7, "localhost:10000")] == opened
    assert [("0" * 16, "0" * 16)] * 2 == [
        (re.findall(r"CapEff:\t(\w+)", text)[0], re.findall(r"CapBnd:\t(\w+)", text)[0]) for text in rights
    ]
    assert not any("Uid:\t0\t" in text for text in rights)
    with pytest.raises(ConnectionRefusedError):
        activated.connect(("127.0.0.1", 10000))


def test_another_address_is_a_drop_in(activated: Service) -> None:
    """An empty ListenStream= takes back port 7, as the socket unit says."""
    activated.drop_in("[Socket]\nListenStream=\nListenStream=127.0.0.9:7007\n", "echod.socket")
    activated.machine.systemctl("restart", "echod.socket")
    activated.echo(("127.0.0.9", 7007))

    for address in PORT_7:
        with pytest.raises(ConnectionRefusedError):
            activated.connect(address)


def test_udp_on_port_7_has_a_unit_of_its_own(activated: Service) -> None:
    """With the unit of the manual page, the very datagram that starts the service is answered, and all that follow."""
    page = (ROOT / "man/echod.8").read_text().replace("\\-", "-")
    unit, _, _ = page[page.index("[Socket]\n") :].partition(".in\n")
    activated.machine.path(f"{DROP_INS}/echod-udp.socket").write_text(unit)
    activated.configure('[[listener]]\n[[listener]]\nname = "udp"\nkind = "udp"\n')
    activated.machine.systemctl("daemon-reload")
    activated.machine.systemctl("start", "echod-udp.socket")
    said = activated.machine.run("systemd-analyze", "verify", "echod-udp.socket").stderr
    before = activated.show("ActiveState")
    answers = [ask(activated, address) for address in PORT_7]
    activated.machine.systemctl("restart", "echod")
    answers += [ask(activated, address) for address in PORT_7]
    activated.echo(PORT_7[0])

    assert ("", {"ActiveState": "inactive"}) == (said, before)
    assert [(b"hello", address) for address in PORT_7 * 2] == answers


def ask(service: Service, address: tuple[str, int]) -> tuple[bytes, tuple[str, int]]:
    """Send a datagram; return the answer and the address it comes from."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with service.machine.network(), socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(5 * SCALE)
        client.sendto(b"hello", address)
        answer, source = client.recvfrom(100)
        return answer, source[:2]


def test_restarts_refuse_nobody(activated: Service, size: Size) -> None:
    """Hundreds of clients a second, restart after restart: nobody is refused or reset, and each has all of it back."""
    activated.drop_in("[Unit]\nStartLimitIntervalSec=0\n")  # which counts what an administrator starts, too
    activated.echo(PORT_7[0])
    before = listening(activated)
    restarts = size(20, 50)
    with activated.machine.network(), Arrivals(PORT_7, SEED, a_second=size(300, 500)) as traffic:
        traffic.await_visits(100)
        for _ in range(restarts):
            activated.machine.systemctl("restart", "echod")
        traffic.await_visits(100)
        traffic.stop()
    print(f"{restarts} restarts, the longest visit {traffic.longest:.2f} s")  # noqa: T201
    started = [record["process.pid"] for record in activated.records("service.started")]

    assert {} == traffic.faults
    assert traffic.longest <= 3 * SCALE
    assert restarts + 1 == len(set(started))
    assert before == listening(activated)


def test_a_supervisor_that_is_killed_refuses_nobody(activated: Service) -> None:
    """Who comes meanwhile waits; the very same sockets serve afterwards."""
    activated.echo(PORT_7[0])
    before = listening(activated)
    pid = activated.main_pid()
    with activated.machine.network(), Arrivals(PORT_7, SEED, a_second=300) as traffic:
        traffic.await_visits(100)
        activated.kill("KILL", pid)
        wait_until(lambda: activated.main_pid() not in (0, pid), 10, "the new supervisor")
        activated.machine.wait_for("echod", ActiveState="active", NRestarts="1")
        traffic.await_visits(100)
        traffic.stop()
    closed = activated.records("connection.closed")
    lost = [record for record in closed if record["echod.close.reason"] == "supervisor_lost"]
    print(f"the longest visit {traffic.longest:.2f} s, faults {dict(traffic.faults)}, lost {len(lost)}")  # noqa: T201

    # Whom the dead supervisor's workers had just let in may get FIN: they send what they hold, and read no more.
    assert set() == {fault for fault in traffic.faults if not fault.startswith("visitor: fin")}
    assert traffic.faults.total() <= len(lost)
    assert traffic.longest <= 5 * SCALE
    assert 2 == len(before)
    assert before == listening(activated)
    assert before <= held(activated)


@pytest.mark.parametrize(("text", "name"), [(SECOND, "second"), (ADMIN, "admin")])
def test_a_listener_without_a_passed_socket_ends_the_start(activated: Service, text: str, name: str) -> None:
    """The service has no network of its own; the journal says so, and what to do; that of `[admin]` is no exception."""
    activated.configure(text)
    failed = activated.machine.systemctl("start", "echod", check=False)
    activated.machine.systemctl("stop", "echod", check=False)
    said = [json.loads(line)["error.message"] for line in errors(activated)]

    assert 1 == failed.returncode
    assert {WHY.replace("second", name)} == set(said)


def test_a_listener_without_a_passed_socket_is_refused_by_a_reload(activated: Service) -> None:
    """`systemctl reload` fails, the journal says why, and the service goes on with the sockets that it has."""
    with activated.connect(PORT_7[0]) as client:
        ping(client)
        pid = activated.main_pid()
        activated.configure(SECOND)
        failed = activated.machine.systemctl("reload", "echod", check=False)
        ping(client)
    activated.echo(PORT_7[1])

    assert (1, pid) == (failed.returncode, activated.main_pid())
    assert any(json.dumps(WHY)[1:-1] in line and '"event":"reload.refused"' in line for line in errors(activated))


def test_a_broken_configuration_closes_the_sockets_in_the_end(activated: Service) -> None:
    """After five starts for a client that waits, systemd gives up; what the unit names as the remedy is one."""
    activated.configure('[daemon]\nworkers = "many"\n')
    with activated.connect(PORT_7[0]) as client:
        activated.machine.wait_for("echod.socket", ActiveState="failed", Result="service-start-limit-hit")
        ended = read_to_end(client)
    with pytest.raises(ConnectionRefusedError):
        activated.connect(PORT_7[0])
    shown = activated.show("ActiveState", "ExecMainStatus")
    starts = len(activated.records("command.failed"))
    activated.configure("")
    activated.machine.run("sh", "-c", f"echod check && {remedy()}")
    for address in PORT_7:
        activated.echo(address)

    assert (b"", "reset") == ended
    assert ({"ActiveState": "failed", "ExecMainStatus": "78"}, 5) == (shown, starts)
    assert {"ActiveState": "active"} == activated.show("ActiveState")


def test_enabled_it_is_wanted_by_the_sockets(activated: Service) -> None:
    """`systemctl enable` links the socket into sockets.target, and `disable` takes the link away."""
    machine = activated.machine
    link = machine.path("/etc/systemd/system/sockets.target.wants/echod.socket")
    machine.systemctl("enable", "echod.socket")
    enabled = link.is_symlink()
    machine.systemctl("disable", "echod.socket")

    assert (True, False) == (enabled, link.is_symlink())
