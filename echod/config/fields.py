"""What all tables of the configuration are made of: the strict model, and types of keys with their sentences.

Rule: what is wrong with a value is one sentence in the words of the file; no type is lax.
"""

import ipaddress
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from echod.config.quantities import Duration

_MAPPED = 96  # bits of ::ffff:0:0/96, which stands for all of IPv4 (RFC 4291 §2.5.5.2)

MOST_NETWORKS = 1000  # in a list; each connection is held against all of them

RESTART: dict[str, Any] = {"restart": True}  # marks the fields which only a restart can change


def rule(sentence: str) -> PydanticCustomError:
    """Make an error whose sentence says it all; to that of a ValueError the value is added."""
    return PydanticCustomError("rule", "{sentence}", {"sentence": sentence})


def at_most(count: int) -> BeforeValidator:
    """Bound an array before each of its items is checked, which is what takes time."""

    def check(value: object) -> object:
        if isinstance(value, list) and len(value) > count:
            raise rule(f"must hold at most {count} items, got {len(value)}")
        return value

    return BeforeValidator(check)


def _plain(text: str) -> str:
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError("must not hold control characters")
    return text


def _absolute(path: str) -> str:
    if path and not path.startswith("/"):
        raise ValueError("must be an absolute path")
    return path


def _network(text: str) -> str:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        hint = ", with no bits set beyond its length" if "host bits" in str(error) else ""
        raise ValueError(f'must be a network such as "10.0.0.0/8" or "2001:db8::/32"{hint}') from None
    if "%" in text:
        raise ValueError("must not name an interface")
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped and network.prefixlen >= _MAPPED:  # such peers count as IPv4, whatever socket they come through
        return str(ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED)))
    return str(network)


def _some_time(seconds: float) -> float:
    if not seconds:
        raise rule('must be longer than "0s": whoever is silent would stay for ever')
    return seconds


Text = Annotated[str, AfterValidator(_plain)]
Deadline = Annotated[Duration, AfterValidator(_some_time)]
OptionalPath = Annotated[Text, AfterValidator(_absolute)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], at_most(MOST_NETWORKS)]


class Table(BaseModel):
    """What all tables have in common."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)
