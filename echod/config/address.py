"""Reads the addresses of listeners: HOST:PORT, an IPv6 address in brackets, "*" for all; or the path of a Unix socket.

Rule: what `getaddrinfo` would guess at (`127.1`, `010.0.0.1`, `0x7f.1`) or choke on (NUL, empty labels) is refused
here, with a sentence, and each address has one spelling, so that equal addresses are equal texts.
"""

import ipaddress
import re
from dataclasses import dataclass

LONGEST_HOST = 253  # RFC 1035 §2.3.4 in presentation form
HIGHEST_PORT = 65535
WILDCARD = "*"
"""The host that stands for every address of the machine, of every family that the machine has."""

LONGEST_PATH = 107  # bytes; sun_path of unix(7) holds 108, and the last must be NUL

_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")  # inet_aton(3) would take it for an address


@dataclass(frozen=True)
class Address:
    """Where to listen. `literal` is true for an IP address, false for a name and for the wildcard."""

    host: str
    port: int
    literal: bool

    def __str__(self) -> str:
        """Spell the address in its one canonical way."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """Whether the address stands for every address of the machine."""
        return self.host == WILDCARD

    @property
    def is_name(self) -> bool:
        """Whether the host is a name that has to be resolved."""
        return not self.literal and not self.is_wildcard

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The IP address, None for a name and for the wildcard."""
        return ipaddress.ip_address(self.host) if self.literal else None


def parse_address(text: str) -> Address:
    """Read an address, or raise ValueError with a sentence that says what it must be."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must not hold spaces, control characters or characters outside ASCII")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise ValueError('lacks the closing bracket of its IPv6 address, as in "[::1]:7"')
        if not rest.startswith(":"):
            raise ValueError('has no port, as in "[::1]:7"')
        return Address(_ipv6(host), _port(rest[1:]), literal=True)
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError('has no port, as in "localhost:10000"')
    if ":" in host:
        raise ValueError('must be HOST:PORT; put the IPv6 address in brackets, as in "[::1]:7"')
    return _named(host, _port(port))


def parse_path(text: str) -> str:
    """Read the path of a Unix socket, or "@" and an abstract name, or raise ValueError with a sentence."""
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    if not text.startswith(("/", "@")):
        raise ValueError('must be an absolute path, or "@" and an abstract name')
    if len(text.encode()) > LONGEST_PATH:
        raise ValueError(f"must be at most {LONGEST_PATH} bytes long")
    if text.endswith(("/", "@")):
        raise ValueError("must name a socket")
    if text.startswith("@"):
        return text
    return "/" + "/".join(part for part in text.split("/") if part not in {"", "."})


def _named(host: str, port: int) -> Address:
    if host == WILDCARD:
        return Address(host, port, literal=False)
    if not host:
        raise ValueError('has no host; "*:7" stands for every address of the machine')
    if len(host) > LONGEST_HOST:
        raise ValueError(f"has a host of more than {LONGEST_HOST} characters")
    if not _NAME.fullmatch(host):
        raise ValueError("has a host that is neither an IP address nor a name of letters, digits, dots and hyphens")
    if not _NUMERIC_END.fullmatch(host):
        return Address(host.lower(), port, literal=False)
    try:
        return Address(str(ipaddress.IPv4Address(host)), port, literal=True)
    except ValueError:
        raise ValueError('is not a valid IPv4 address: four numbers from 0 to 255, as in "127.0.0.1:7"') from None


def _ipv6(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError('has no valid IPv6 address in its brackets, as in "[::1]:7"') from None
    if address.is_link_local and address.scope_id is None:
        raise ValueError('is link-local and must name its interface, as in "[fe80::1%eth0]:7"')
    return str(address)


def _port(text: str) -> int:
    # Five digits at most: int() itself refuses thousands of them, in its own words.
    if not text.isdigit() or len(text) > len(str(HIGHEST_PORT)) or int(text) > HIGHEST_PORT:
        raise ValueError(f"must end in a port from 0 to {HIGHEST_PORT}")
    return int(text)
