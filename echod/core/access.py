"""Who may come in, by address.

Rules
    Pure. A network on the list of those denied wins over one on the list of those allowed; an empty list of those
    allowed stands for everybody.
    Nothing here raises on the text of an address, whatever it is: the addresses of peers are read by `parse` alone.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, TypeAlias

MAPPED = "::ffff:"
"""Prefix of an IPv4 peer's address on an IPv6 socket (RFC 4291 §2.5.5.2). IPv4-translated addresses of SIIT
(RFC 2765 §2.1), ::ffff:0:a.b.c.d, have it too, and are plain IPv6."""

if TYPE_CHECKING:
    from collections.abc import Iterable

IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse(host: str) -> IP | None:
    """Return the address that `host` is the text of, without its zone, an IPv4-mapped one as IPv4; None for no address.

    The text is what getpeername(2), recvmsg(2) or a PROXY header gives; "" is a Unix socket's.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def unmap(host: str) -> str:
    """Return `host`, an IPv4-mapped address as the kernel writes it in the notation of IPv4."""
    rest = host.removeprefix(MAPPED)
    return rest if rest != host and isinstance(parse(rest), ipaddress.IPv4Address) else host


def address_key(host: str) -> int:
    """Return what an address is counted under, 64 bits and never 0: IPv6 by its /64, which may be one client's.

    In ::/64 each address counts by itself. It is no client's network (RFC 4291 §4), but holds the loopback address and
    the IPv4-translated ones of many clients. A text that is no address has the loopback's key.
    """
    address = parse(host)
    if isinstance(address, ipaddress.IPv4Address):
        return 0xFFFF << 32 | int(address)  # the lower half of its mapped form, which is no IPv6 network
    number = int(address or 1)
    return number >> 64 or number or 1


class Networks:
    """A list of networks, prepared for looking up many addresses."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._by_version: dict[int, list[tuple[int, int]]] = {}
        for network in map(ipaddress.ip_network, networks):
            entry = (int(network.netmask), int(network.network_address))
            self._by_version.setdefault(network.version, []).append(entry)

    def __bool__(self) -> bool:
        return bool(self._by_version)

    def __contains__(self, host: str | None) -> bool:
        if not self._by_version or not host:
            return False
        address = parse(host)
        if address is None:
            return False
        number = int(address)
        return any(number & mask == prefix for mask, prefix in self._by_version.get(address.version, ()))


class Access:
    """The two lists of one listener."""

    def __init__(self, allow: Iterable[str], deny: Iterable[str]) -> None:
        self._allow = Networks(allow)
        self._deny = Networks(deny)

    def __bool__(self) -> bool:
        return bool(self._allow or self._deny)

    def admits(self, host: str) -> bool:
        """Tell whether a client with this address may come in."""
        return host not in self._deny and (not self._allow or host in self._allow)
