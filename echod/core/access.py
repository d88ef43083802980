"""Who may come in, by address.

Rule: pure. A network on the list of those denied wins over one on the list of those allowed; an empty list of those
allowed stands for everybody.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

IPV6 = 6

if TYPE_CHECKING:
    from collections.abc import Iterable


def address_key(host: str) -> int:
    """Return what an address is counted under, 64 bits and never 0: IPv6 by its /64, which may be one client's."""
    address = ipaddress.ip_address(host)
    if address.version == IPV6:
        return int(address) >> 64 or 1  # the loopback's; 0:0:0:1::/64 is reserved (RFC 4291 §4)
    return 0xFFFF << 32 | int(address)  # the lower half of its mapped form, which is no IPv6 network


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
        address = ipaddress.ip_address(host)
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
