"""`[listener.udp]`: what keeps a UDP echo from being abused.

Rule: the defaults are safe for a daemon that anybody can reach. A datagram's source can be forged, so that what answers
can be aimed at others, and two services that answer each other never stop (CVE-1999-0103, CVE-2024-2169).
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from echod.config.address import HIGHEST_PORT
from echod.config.fields import Table, at_most, rule

MOST_RANGES = 100


def _ports(text: str) -> str:
    first, _, last = text.partition("-")
    if not re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?", text) or not int(first) <= int(last or first) <= HIGHEST_PORT:
        raise ValueError('must be a port or a range of ports such as "53" or "0-1023"')
    return text


class Udp(Table):
    """`[listener.udp]`."""

    deny_source_ports: Annotated[tuple[Annotated[str, AfterValidator(_ports)], ...], at_most(MOST_RANGES)] = Field(
        # Services that answer whatever comes: those below 1024, SSDP, NFS, mDNS, memcached.
        default=("0-1023", "1900", "2049", "5353", "11211"),
        strict=False,
        description="Source ports that are not answered, besides all of echod's own.",
    )
    rate: int = Field(
        default=1000,
        ge=0,
        le=10_000_000,
        description="Datagrams a second for one address, each worker its share of it; 0 for any.",
    )
    burst: int = Field(
        default=0, ge=0, le=10_000_000, description="Datagrams at once after a quiet time; 0 for as many as rate."
    )
    path_mtu_discovery: Literal["dont", "want", "do", "probe"] = Field(
        default="dont",
        description='Path MTU discovery for replies, as in ping -M: "dont" fragments them where needed, "do" never.',
    )

    @field_validator("burst")
    @classmethod
    def _is_used(cls, burst: int, info: Any) -> int:
        if burst and info.data.get("rate") == 0:
            raise rule("does nothing with rate = 0, which bounds nobody")
        return burst
