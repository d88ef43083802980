"""UDP in networks as they are: machines with several addresses, and forged datagrams between two echo services."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.daemon import Daemon, StartFailedError, wait_until
from tests.system.network import BROADCAST, CLIENT4, CLIENT6, SERVER4, SERVER6, Network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.daemon import Starter

RATE = 1000
"""Datagrams a second that an address is answered by default, and as many at once."""


@pytest.fixture
def network() -> Iterator[Network]:
    """Make a network, where that is possible."""
    with Network() as made:
        yield made


def door(address: str, **keys: Any) -> dict[str, Any]:
    """Describe a UDP listener."""
    return {"name": "echo", "kind": "udp", "address": address} | keys


def counted(daemon: Daemon, reason: str) -> int:
    """Return how many datagrams were reported as dropped for a reason."""
    return sum(record.get(f"echod.dropped.{reason}", 0) for record in daemon.records("datagram.dropped"))


@contextlib.contextmanager
def client(network: Network, host: str) -> Iterator[socket.socket]:
    """Bind a client's socket at the other end of the cable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with network.client(), socket.socket(family, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.bind((host, 0))
        made.settimeout(5)
        yield made


def ask(peer: socket.socket, host: str, port: int) -> Any:
    """Ask an address, and return the one that answers."""
    peer.sendto(b"who?", (host, port))
    answer, source = peer.recvfrom(100)
    assert b"who?" == answer
    return source[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_each_address_of_an_interface_answers_as_itself(start: Starter, network: Network, workers: int) -> None:
    """Bound to the wildcard of either family, the reply leaves from the address that was asked; after a reload too."""
    with network.server():
        listeners = [door("0.0.0.0:7007", name="v4"), door("[::]:7007", name="v6")]
        daemon = start(workers=workers, listeners=listeners)
    with client(network, CLIENT4) as four, client(network, CLIENT6) as six:
        for _ in range(2):
            for peer, hosts in ((four, SERVER4), (six, SERVER6)):
                assert [*hosts, *hosts] == [ask(peer, host, 7007) for host in (*hosts, *hosts)]
            daemon.reload(limits={"idle_timeout": "9m"})


def test_datagrams_that_do_not_fit_the_cable_come_back_whole(start: Starter, network: Network) -> None:
    """They travel in fragments, there and back, over both families; up to the largest that there are."""
    with network.server():
        start(listeners=[door("0.0.0.0:7007", name="v4"), door("[::]:7007", name="v6")])
    for host, asked in ((CLIENT4, SERVER4[1]), (CLIENT6, SERVER6[1])):
        with client(network, host) as peer:
            for size in (0, 1472, 1473, 20_000, 65_507):
                content = bytes(range(251)) * 261
                peer.sendto(content[:size], (asked, 7007))
                answer, source = peer.recvfrom(70_000)
                assert (content[:size], asked) == (answer, source[0])


def test_a_socket_for_both_families_answers_as_itself(start: Starter, network: Network) -> None:
    """Without `ipv6_only` one socket serves both, and IPv4 clients hear the address that they asked as well."""
    with network.server():
        start(listeners=[door("[::]:7007", ipv6_only=False)])
    with client(network, CLIENT4) as four, client(network, CLIENT6) as six:
        assert [*SERVER4] == [ask(four, host, 7007) for host in SERVER4]
        assert [*SERVER6] == [ask(six, host, 7007) for host in SERVER6]


def test_a_link_local_address_answers_as_itself(start: Starter, network: Network) -> None:
    """It means nothing without its interface, by which the reply leaves."""
    with network.server():
        start(listeners=[door("[::]:7007")])
        with Path("/proc/thread-self/net/if_inet6").open() as table:
            digits = next(line.split()[0] for line in table if line.startswith("fe80"))
        host = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
    with network.client(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
        peer.settimeout(0.5)
        scope = socket.if_nametoindex("cable")
        answer = wait_until(lambda: link_local(peer, (host, 7007, 0, scope)), what="an address that is no duplicate")

    assert (host, 7007, 0, scope) == answer


def test_a_link_local_address_is_shown_with_its_zone(start: Starter, network: Network) -> None:
    """Log and status show an address as it is typed: server's and client's, and a listening socket's too."""
    host = network.link_local("server")
    address = f"[{host}%cable]:7007"
    with network.server():
        listener = {"name": "echo", "kind": "tcp", "address": address}
        daemon = start(listeners=[listener, door(address, name="udp")])
    with network.client():
        scope = socket.if_nametoindex("cable")
        own = network.link_local("client")
        with socket.socket(socket.AF_INET6) as peer:
            peer.settimeout(5)
            peer.connect((host, 7007, 0, scope))
            peer.sendall(b"who?")
            assert b"who?" == peer.recv(10)
    closed = daemon.wait_for("connection.closed")
    opened = daemon.records("listener.opened")

    assert f"{own}%cable" == closed["client.address"]
    assert f"{host}%cable" == closed["server.address"]
    assert [f"{host}%cable"] * 2 == [record["server.address"] for record in opened]
    assert [[address]] * 2 == [entry["bound"] for entry in daemon.state()["listeners"]]


def link_local(peer: socket.socket, address: tuple[str, int, int, int]) -> Any:
    """Ask once; None while the kernel is still finding out whether the address is unique on the link."""
    with contextlib.suppress(OSError):
        peer.sendto(b"who?", address)
        return peer.recvfrom(100)[1]
    return None


@pytest.mark.parametrize(("address", "reason"), [("0.0.0.0:7007", "destination"), ("[::]:7007", "send_failed")])
def test_nobody_answers_a_broadcast(start: Starter, network: Network, address: str, reason: str) -> None:
    """A datagram to all is answered by none, or one forged packet would have a whole network talk to its victim."""
    with network.server():
        daemon = start(listeners=[door(address, ipv6_only=address.startswith("0"))])
    with client(network, CLIENT4) as peer:
        peer.sendto(b"all?", (BROADCAST, 7007))
        wait_until(lambda: counted(daemon, reason) == 1, 5, "the drop")
        assert SERVER4[1] == ask(peer, SERVER4[1], 7007)


TRANSLATED = "::ffff:0:c000:207"
"""192.0.2.7 behind a translator (SIIT, RFC 7915): IPv6 to the kernel, with the prefix of the mapped form."""


def test_translated_clients_take_no_slot_for_good(start: Starter, network: Network) -> None:
    """More of them than there are slots are served one after the other, then everybody else, and TERM is quick."""
    network.add_address(f"{TRANSLATED}/128")
    limits = {"max_connections": 20, "max_connections_per_address": 20}
    with network.server():
        listener = {"name": "echo", "kind": "tcp", "address": "[::]:7007", "deny": ["198.51.100.0/24"]}
        daemon = start(listeners=[listener], limits=limits, log={"quiet": ["192.0.2.0/24"]})
        for source in [TRANSLATED] * 25 + ["::1"]:
            with socket.create_connection(("::1", 7007), 5, source_address=(source, 0)) as peer:
                peer.sendall(b"who?")
                assert b"who?" == peer.recv(10)
        daemon.wait_for("connection.closed", count=26)

    assert 25 == len(daemon.records("connection.closed", {"client.address": TRANSLATED, "network.type": "ipv6"}))
    assert 0 == daemon.active()
    assert daemon.stop() < 5


def test_translated_datagrams_are_answered_and_pause_nothing(start: Starter, network: Network) -> None:
    """They are datagrams like others: each one is answered, and so is each one of another peer in between."""
    network.add_address(f"{TRANSLATED}/128")
    with network.server():
        daemon = start(listeners=[door("[::]:7007", deny=["198.51.100.0/24"])])
        translated, other = (bound(host) for host in (TRANSLATED, "::1"))
    with translated, other:
        for _ in range(50):
            assert ["::1"] * 2 == [ask(peer, "::1", 7007) for peer in (translated, other)]

    assert [] == daemon.records("datagram.dropped")


def bound(host: str) -> socket.socket:
    """Return a client's socket in the namespace that this thread is in."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((host, 0))
    made.settimeout(5)
    return made


@pytest.mark.parametrize("address", ["0.0.0.0:7007", "[::]:7007"])
def test_class_e_addresses_are_answered(start: Starter, network: Network, address: str) -> None:
    """240.0.0.0/4 is unicast to Linux, and used for pods: what has such an address is answered over UDP and TCP."""
    network.add_address("240.0.0.1/32")
    both: dict[str, Any] = {"address": address, "ipv6_only": address.startswith("0")}
    with network.server():
        start(listeners=[door(**both), {"name": "tcp", "kind": "tcp"} | both])
        with bound("240.0.0.1") as peer:
            assert SERVER4[0] == ask(peer, SERVER4[0], 7007)
        with socket.create_connection((SERVER4[0], 7007), 5, source_address=("240.0.0.1", 0)) as stream:
            stream.sendall(b"who?")
            assert b"who?" == stream.recv(10)


@contextlib.contextmanager
def loop(start: Starter, network: Network, first: int, second: int) -> Iterator[tuple[Daemon, Daemon, Any]]:
    """Start two daemons at two addresses, and give a function that forges datagrams from the one to the other."""
    with network.server():
        daemons = [
            start(listeners=[door(f"127.0.0.{last}:{port}")], expect=["datagram.throttled"])
            for last, port in ((1, first), (2, second))
        ]
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    with raw:
        raw.bind(("127.0.0.1", 0))
        packet = b"".join(number.to_bytes(2, "big") for number in (first, second, 12, 0)) + b"ping"

        def forge(count: int) -> None:
            for _ in range(count):
                raw.sendto(packet, ("127.0.0.2", second))

        yield daemons[0], daemons[1], forge


@pytest.mark.parametrize("port", [7, 7007])
def test_two_echo_services_on_one_port_never_loop(start: Starter, network: Network, port: int) -> None:
    """A datagram forged from the one to the other is dropped where it arrives: a port of one's own is no client's."""
    with loop(start, network, port, port) as (first, second, forge):
        forge(20)
        wait_until(lambda: counted(second, "source_port") == 20, 5, "the drops")

        assert 20 == network.received()
        assert [] == first.records("datagram.dropped")
        assert [] == first.records("datagram.throttled") + second.records("datagram.throttled")


@pytest.mark.alone
def test_a_loop_that_no_port_list_stops_is_held_to_the_rate(start: Starter, network: Network) -> None:
    """On 7007 and 7008 a datagram goes round until the rate is used up: counted, warned of once, its key named."""
    with loop(start, network, 7007, 7008) as (first, second, forge):
        began = time.monotonic()
        forge(1)
        wait_until(lambda: dropped(first, second) == 1, 10, "the end of the loop")
        took, passed = time.monotonic() - began, network.received()
        # Each daemon had as many tokens as a second brings, and what came in meanwhile.
        assert 2 * RATE <= passed <= 2 * RATE * (1 + took) + 2

        time.sleep(0.5)  # what is watched is that nothing goes on
        assert passed == network.received()

        began = time.monotonic()
        while time.monotonic() < began + 2:
            forge(10)
            time.sleep(0.01)
        most = 2 * RATE * (time.monotonic() - began + 1)
        wait_until(lambda: network.received() - passed - dropped(first, second) <= most, 5, "all drops to be counted")
        assert network.received() - passed > most / 2
        warnings = [daemon.records("datagram.throttled") for daemon in (first, second)]

    assert 1 in map(len, warnings)
    assert all(len(records) <= 1 for records in warnings)
    assert {"listener.udp.rate"} == {record["echod.config.key"] for records in warnings for record in records}


def dropped(*daemons: Daemon) -> int:
    """Return how many datagrams were over the rate of any of these."""
    return sum(counted(daemon, "over_rate") for daemon in daemons)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_reload_binds_to_an_interface_that_was_made_again(start: Starter, network: Network, kind: str) -> None:
    """An interface with a new index makes a socket deaf: that is told once and shown, and a reload binds anew."""
    listener = {"name": "echo", "kind": kind, "address": "0.0.0.0:7007", "interface": "wg0"}
    with network.server():
        network.make_interface("wg0")
        daemon = start(listeners=[listener], expect=["listener.degraded"])
        network.remove_interface("wg0")
        missing = daemon.wait_for("listener.degraded")["echod.degradation"]
        network.make_interface("wg0")
        changed = daemon.wait_for("listener.degraded", count=2)["echod.degradation"]
        shown = daemon.state()["listeners"][0]["degraded"]
        daemon.reload()
        daemon.wait_for("listener.opened", count=2)
        wait_until(lambda: not daemon.state()["listeners"][0]["degraded"], what="a listener that is reached")

    assert (missing, changed, shown) == ("interface_missing", "interface_changed", ["interface_changed"])
    assert len(daemon.records("listener.degraded")) == 2


def test_tentative_address_is_named_with_its_remedy(start: Starter, network: Network, tmp_path: Path) -> None:
    """While the kernel looks for a duplicate of an address, the error says so; free_bind binds it all the same."""
    listener = {"name": "echo", "address": "[2001:db8::77]:7007"}
    with network.server():
        network.add_tentative("2001:db8::77/64")
        (tmp_path / "refused").mkdir()
        with pytest.raises(StartFailedError) as failed, Daemon(tmp_path / "refused", listeners=[listener]):
            pass
        start(listeners=[listener | {"free_bind": True}])

    assert "it is tentative: duplicate address detection has not finished" in failed.value.stderr
    assert "free_bind = true" in failed.value.stderr


def test_zone_without_interface_is_named(start: Starter, network: Network) -> None:
    """A link-local address on an interface that does not exist: the error names the interface and free_bind."""
    with network.server(), pytest.raises(StartFailedError) as failed:
        start(listeners=[{"name": "echo", "address": "[fe80::1%wg9]:7007"}])

    assert failed.value.code == 1
    assert 'there is no interface "wg9"; make it first, since not even free_bind' in failed.value.stderr
