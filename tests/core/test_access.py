"""Who may come in, by address."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from echod.core.access import Access, Networks, address_key, parse, unmap

MAPPED = "::ffff:192.0.2.7"
TRANSLATED = "::ffff:0:c000:207"
"""192.0.2.7 as SIIT writes it; in either notation it has the prefix of the mapped form."""


@pytest.mark.parametrize(
    ("allow", "deny", "host", "admitted"),
    [
        ([], [], "192.0.2.1", True),
        (["192.0.2.0/24"], [], "192.0.2.255", True),
        (["192.0.2.0/24"], [], "192.0.3.0", False),
        (["192.0.2.0/24"], [], "2001:db8::1", False),
        ([], ["2001:db8::/32"], "2001:db8:ffff::1", False),
        ([], ["2001:db8::/32"], "2001:db9::1", True),
        (["192.0.2.0/24"], ["192.0.2.7/32"], "192.0.2.7", False),
        (["192.0.2.7/32"], ["192.0.2.0/24"], "192.0.2.7", False),
        (["fe80::/10"], [], "fe80::1%eth0", True),
        (["0.0.0.0/0"], [], "255.255.255.255", True),
        ([], ["0.0.0.0/0", "::/0"], "::1", False),
        (["192.0.2.0/24"], [], "::ffff:192.0.2.7", True),
        (["192.0.2.0/24"], [], "::ffff:0:c000:207", False),
        (["::ffff:0:0:0/96"], [], "::ffff:0:c000:207", True),
        (["::/0"], [], "no address", False),
    ],
)
def test_the_two_lists(allow: list[str], deny: list[str], host: str, admitted: bool) -> None:
    """Denied wins; without anybody allowed by name everybody else is."""
    assert admitted is Access(allow, deny).admits(host)


@pytest.mark.parametrize(("allow", "deny", "any_"), [([], [], False), (["::/0"], [], True), ([], ["::/0"], True)])
def test_no_list_is_nothing_to_ask(allow: list[str], deny: list[str], any_: bool) -> None:
    """A door without lists need not look at an address."""
    assert any_ is bool(Access(allow, deny))


def test_parse_reads_a_mapped_address_as_ipv4() -> None:
    """An IPv4 client is one, through whatever socket it came."""
    assert ipaddress.ip_address("192.0.2.7") == parse(MAPPED)


@pytest.mark.parametrize("host", [TRANSLATED, "::ffff:0:192.0.2.7", "::ffff:1", "64:ff9b::c000:207"])
def test_parse_reads_any_other_address_that_holds_ipv4_as_ipv6(host: str) -> None:
    """The translated addresses of SIIT and NAT64 (RFC 2765, RFC 6052) are IPv6 to the kernel, and so they are here."""
    assert ipaddress.IPv6Address(host) == parse(host)


@pytest.mark.parametrize("host", ["fe80::1%eth0", "fe80::1%eth0.100", "fe80::1%a%b", "fe80::1%"])
def test_parse_leaves_the_zone_out(host: str) -> None:
    """Whatever an interface is called."""
    assert ipaddress.ip_address("fe80::1") == parse(host)


@given(st.text() | st.builds("::ffff:{}".format, st.text(alphabet="0123456789abcdef:.%")))
def test_no_text_makes_parse_raise(host: str) -> None:
    """Nor anything that is built on it."""
    parse(host)
    unmap(host)

    assert 0 < address_key(host) < 2**64
    assert isinstance(Access(["::/0"], ["192.0.2.0/24"]).admits(host), bool)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        (MAPPED, "192.0.2.7"),
        (TRANSLATED, TRANSLATED),
        ("::ffff:0:192.0.2.7", "::ffff:0:192.0.2.7"),
        ("::ffff:1", "::ffff:1"),
        ("192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0.100", "fe80::1%eth0.100"),
        ("", ""),
    ],
)
def test_unmap_shows_only_a_mapped_address_as_ipv4(host: str, shown: str) -> None:
    """Every other one is shown as the kernel writes it."""
    assert shown == unmap(host)


def test_translated_addresses_are_counted_one_by_one() -> None:
    """They share a /64 with the loopback address, which is none of a client's."""
    hosts = ("::ffff:0:c000:207", "::ffff:0:c000:208", "::1", "192.0.2.7")

    assert len(hosts) == len({address_key(host) for host in hosts})


def test_an_address_is_counted_with_its_network() -> None:
    """An IPv6 address with its /64, whatever its interface; an IPv4 address by itself, and beside no IPv6 network."""
    same = ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::1%eth0")
    others = ("2001:db8:1:3::1", "192.0.2.1", "192.0.2.2", "::1", "255.255.255.255", "0.0.0.0")

    assert 1 == len(set(map(address_key, same)))
    assert 1 + len(others) == len({address_key(host) for host in (same[0], *others)})
    assert all(0 < address_key(host) < 2**64 for host in (*same, *others))


@given(
    networks=st.lists(st.ip_addresses().flatmap(lambda ip: st.integers(0, ip.max_prefixlen).map(lambda n: (ip, n)))),
    host=st.ip_addresses(),
)
def test_a_list_finds_what_the_standard_library_finds(
    networks: list[tuple[ipaddress.IPv4Address, int]], host: ipaddress.IPv4Address
) -> None:
    """However many networks, of both versions."""
    assume(getattr(host, "ipv4_mapped", None) is None)  # which stands for an IPv4 address
    texts = [str(ipaddress.ip_network((ip, length), strict=False)) for ip, length in networks]
    expected = any(host in ipaddress.ip_network(text) for text in texts)

    assert expected is (str(host) in Networks(texts))
