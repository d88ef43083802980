"""Which datagrams are answered, and why the others are not."""

from __future__ import annotations

from typing import Any

import pytest

from echod.config.udp import Udp
from echod.core import datagrams
from echod.core.access import Access
from echod.core.datagrams import Guard, SourceTable
from echod.events import DropReason

NOW = 100.0


def guard(*, allow: tuple[str, ...] = (), deny: tuple[str, ...] = (), own: tuple[int, ...] = (), **keys: Any) -> Guard:
    """Make a guard of one worker."""
    return Guard("echo", Udp.model_validate(keys), Access(allow, deny), own, 1, SourceTable())


def reconfigured(table: SourceTable, *, listener: str = "echo", deny: tuple[str, ...] = (), **keys: Any) -> Guard:
    """Make the guard that a listener has after a reload, over the table that its worker has."""
    return Guard(listener, Udp.model_validate(keys), Access((), deny), (), 1, table)


@pytest.mark.parametrize("port", [0, 7, 19, 53, 123, 1023, 1900, 2049, 5353, 11211])
def test_ports_of_services_are_not_answered(port: int) -> None:
    """Those that answer whatever comes; the next one is a client's."""
    assert DropReason.SOURCE_PORT is guard().objection("192.0.2.1", port, NOW)
    assert guard().objection("192.0.2.1", 1024, NOW) is None


def test_the_list_of_ports_is_the_operators() -> None:
    """What is on it counts, and what is not does not; echod's own ports are never answered."""
    mine = guard(own=(7007, 65535), deny_source_ports=["4000-4002"])

    assert [False, True, True, True, False] == [bool(mine.objection("192.0.2.1", p, NOW)) for p in range(3999, 4004)]
    assert [None, None] == [mine.objection("192.0.2.1", port, NOW) for port in (7, 53)]
    assert [DropReason.SOURCE_PORT] * 2 == [mine.objection("192.0.2.1", port, NOW) for port in (7007, 65535)]


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "224.0.0.1", "239.255.255.255", "255.255.255.255", "::", "ff02::1", "ff0e::1", "", "no address"]
)
def test_what_is_no_host_is_not_answered(host: str) -> None:
    """Unspecified, multicast and broadcast addresses, each time they come."""
    mine = guard()

    assert [DropReason.SOURCE_ADDRESS] * 2 == [mine.objection(host, 40000, NOW) for _ in range(2)]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "192.0.2.1",
        "240.0.0.1",
        "255.255.255.254",
        "::1",
        "fe80::1%eth0",
        "2001:db8::1",
        "::ffff:192.0.2.1",
        "::ffff:0:c000:207",
    ],
)
def test_hosts_are_answered(host: str) -> None:
    """Loopback and link-local ones too; those of 240.0.0.0/4, unicast to Linux; those of SIIT, which are IPv6."""
    assert guard().objection(host, 40000, NOW) is None


def test_the_lists_of_networks_count() -> None:
    """Who is denied is not answered, and not held to a rate."""
    mine = guard(allow=("192.0.2.0/24",), deny=("192.0.2.7/32",))

    assert [None, DropReason.DENIED, DropReason.DENIED] == [
        mine.objection(host, 40000, NOW) for host in ("192.0.2.1", "192.0.2.7", "198.51.100.1")
    ]


def test_each_address_has_its_rate() -> None:
    """However many ports it uses; another address has its own; time brings more."""
    mine = guard(rate=3, burst=2)
    answers = [mine.objection("192.0.2.1", 40000 + number, NOW) for number in range(3)]

    assert [None, None, DropReason.OVER_RATE] == answers
    assert mine.objection("192.0.2.2", 40000, NOW) is None
    assert mine.objection("192.0.2.1", 40000, NOW + 0.34) is None
    assert DropReason.OVER_RATE is mine.objection("192.0.2.1", 40000, NOW + 0.34)


def test_no_rate_is_no_limit() -> None:
    """Nothing is counted where nothing is asked for."""
    mine = guard(rate=0)

    assert {None} == {mine.objection("192.0.2.1", 40000, NOW) for _ in range(10_000)}


def test_a_rate_is_shared_by_the_workers() -> None:
    """Each has its part of it, and of the burst."""
    shares = [Guard("echo", Udp(rate=8), Access((), ()), (), 4, SourceTable()) for _ in range(4)]
    answered = sum(one.objection("192.0.2.1", 40000, NOW) is None for one in shares for _ in range(10))

    assert 8 == answered


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was met first is forgotten first, and starts anew."""
    monkeypatch.setattr(datagrams, "MAX_SOURCES", 3)
    table = SourceTable()
    mine = reconfigured(table, rate=1)
    for number in range(1, 5):
        assert mine.objection(f"192.0.2.{number}", 40000, NOW) is None

    assert 3 == len(table)
    assert DropReason.OVER_RATE is mine.objection("192.0.2.4", 40000, NOW)
    assert mine.objection("192.0.2.1", 40000, NOW) is None


def test_source_table_is_bounded_for_all_listeners_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """More listeners do not remember more addresses; the rate of an address is held at each listener by itself."""
    monkeypatch.setattr(datagrams, "MAX_SOURCES", 10)
    table = SourceTable()
    guards = [reconfigured(table, listener=name, rate=1) for name in ("one", "two", "three")]
    for number in range(100):
        for mine in guards:
            assert mine.objection(f"192.0.2.{number}", 40000, NOW) is None

    assert 10 == len(table)


def test_reload_keeps_the_tokens_that_are_left() -> None:
    """A source that has used up its rate has not more of it after a reload; another rate counts from then on."""
    table = SourceTable()
    mine = reconfigured(table, rate=2)
    before = [mine.objection("192.0.2.1", 40000, NOW) for _ in range(3)]
    mine = reconfigured(table, rate=4)
    at_once = mine.objection("192.0.2.1", 40000, NOW)
    after_a_second = [mine.objection("192.0.2.1", 40000, NOW + 1) for _ in range(5)]

    assert [None, None, DropReason.OVER_RATE] == before
    assert DropReason.OVER_RATE is at_once
    assert [None, None, None, None, DropReason.OVER_RATE] == after_a_second


def test_reload_judges_a_known_source_anew() -> None:
    """Who is on the new list is not answered, who no longer is on it is; with its tokens as they were."""
    table = SourceTable()
    assert reconfigured(table, rate=1).objection("192.0.2.1", 40000, NOW) is None
    denied = reconfigured(table, rate=1, deny=("192.0.2.1/32",)).objection("192.0.2.1", 40000, NOW)
    admitted = reconfigured(table, rate=1).objection("192.0.2.1", 40000, NOW)
    unlimited = reconfigured(table, rate=0).objection("192.0.2.1", 40000, NOW)

    assert DropReason.DENIED is denied
    assert DropReason.OVER_RATE is admitted
    assert unlimited is None
