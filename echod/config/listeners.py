"""`[[listener]]`: where echod answers, to whom, and with which options of the socket.

Rule: as in `models`. A key that one kind of listener lacks is refused there, unless it is at its default: what is
printed of a listener has all keys.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator
from pydantic_core import InitErrorDetails

from echod.config.address import WILDCARD, Address, parse_address, parse_path
from echod.config.fields import RESTART, Networks, Table, rule
from echod.config.injection import DATAGRAMS, STREAMS, Faults
from echod.config.proxy import ProxyProtocol
from echod.config.quantities import KIB, MIB, Duration, Size, size_text
from echod.config.tls import Tls
from echod.config.udp import Udp
from echod.config.wording import quoted

WILDCARD_SOCKETS = 2
NAME_SOCKETS = 4
LONGEST_INTERFACE = 15  # IFNAMSIZ of netdevice(7) holds 16, and the last must be NUL
HIGHEST_PRECEDENCE = 255

ADMIN = "admin"
"""What the log calls the listener that `[admin]` stands for."""

KINDS = {
    **dict.fromkeys(("allow", "deny", "ipv6_only", "interface", "tos", "free_bind"), ("tcp", "udp")),
    **dict.fromkeys(("accept_rate", "backlog", "proxy_protocol", "tls"), ("tcp", "unix")),
    **dict.fromkeys(("nodelay", "keepalive", "mptcp"), ("tcp",)),
    **dict.fromkeys(("mode", "owner"), ("unix",)),
    "udp": ("udp",),
}
"""Which kinds of listener have a key, where it is not all of them."""


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", name):
        raise ValueError('must be 1 to 63 letters, digits, "_", "." or "-"')
    return name


def _interface(name: str) -> str:
    if not re.fullmatch(rf"[^\s/\x00-\x1f\x7f]{{0,{LONGEST_INTERFACE}}}", name):
        raise ValueError(f"must be the name of a network interface, at most {LONGEST_INTERFACE} characters")
    return name


def _mode(text: str) -> str:
    if not re.fullmatch(r"0[0-7]{3}", text):
        raise ValueError('must be a file mode such as "0660"')
    return text


def _owner(text: str) -> str:
    if not re.fullmatch(r"([a-z_][a-z0-9_.-]{0,31})?(:[a-z_][a-z0-9_.-]{0,31})?", text):
        raise ValueError('must be "USER", "USER:GROUP" or ":GROUP"')
    return text


def _buffer(count: int) -> int:
    if count and not 4 * KIB <= count <= 64 * MIB:
        raise ValueError(f'must be a size from {size_text(4 * KIB)} to {size_text(64 * MIB)}, or "0B"')
    return count


BufferSize = Annotated[Size, AfterValidator(_buffer)]


class Listener(Table):
    """`[[listener]]`: an address on which echod answers."""

    name: Annotated[str, AfterValidator(_name)] = Field(
        default="echo", description="What the log calls this listener; no two share one."
    )
    kind: Literal["tcp", "udp", "unix"] = Field(
        default="tcp", description='The transport: "tcp", "udp", or "unix" for a stream on a path.'
    )
    address: str = Field(
        default="localhost:10000",
        validate_default=True,
        description='HOST:PORT: a name has all its addresses, "*" all of the machine, port 0 any free one. Or a path.',
    )
    allow: Networks = Field(
        default=(), strict=False, description='Networks whose clients are let in, such as ["10.0.0.0/8"]; [] for all.'
    )
    deny: Networks = Field(default=(), strict=False, description="Networks whose clients are turned away in any case.")
    accept_rate: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Connections a second that are let in, each worker its share of it; 0 for any.",
    )
    backlog: int = Field(
        default=4096, ge=1, le=65535, description="Connections that may wait; the kernel has a limit (somaxconn) too."
    )
    nodelay: bool = Field(default=True, description="Send at once, without waiting for more (TCP_NODELAY).")
    keepalive: Duration = Field(
        default=0.0, description="Ask a silent peer whether it is there, after so long and 3 more times; 0s never does."
    )
    mptcp: bool = Field(
        default=False,
        description="Accept Multipath TCP (RFC 8684) too. Other clients are served as before.",
        json_schema_extra=RESTART,
    )
    receive_buffer: BufferSize = Field(
        default=0,
        description='The kernel\'s buffer for what comes in (SO_RCVBUF); "0B" leaves it to the kernel.',
        json_schema_extra=RESTART,
    )
    send_buffer: BufferSize = Field(
        default=0,
        description='The kernel\'s buffer for what goes out (SO_SNDBUF); "0B" leaves it to the kernel.',
        json_schema_extra=RESTART,
    )
    ipv6_only: bool = Field(
        default=True, description="An IPv6 address takes no IPv4 clients (IPV6_V6ONLY).", json_schema_extra=RESTART
    )
    interface: Annotated[str, AfterValidator(_interface)] = Field(
        default="", description="Only what comes in there (SO_BINDTODEVICE).", json_schema_extra=RESTART
    )
    tos: int = Field(
        default=0, ge=0, le=HIGHEST_PRECEDENCE, description="The type of service or traffic class of what goes out."
    )
    free_bind: bool = Field(
        default=False, description="Bind an address before the machine has it (IP_FREEBIND).", json_schema_extra=RESTART
    )
    mode: Annotated[str, AfterValidator(_mode)] = Field(
        default="0660", description="Who may connect to a Unix socket, as chmod writes it.", json_schema_extra=RESTART
    )
    owner: Annotated[str, AfterValidator(_owner)] = Field(
        default="",
        description='Whose a Unix socket is, "USER:GROUP"; "" for whoever runs echod.',
        json_schema_extra=RESTART,
    )

    proxy_protocol: ProxyProtocol = Field(
        default=ProxyProtocol(), description="Whose connections these are, told by a proxy in front."
    )
    tls: Tls = Field(default=Tls(), description="Speak TLS on this listener.")
    faults: Faults = Field(default=Faults(), description="What goes wrong here, on purpose: for tests of clients.")
    udp: Udp = Field(default=Udp(), description="What keeps a UDP echo from being abused.")

    @field_validator("address")
    @classmethod
    def _canonical(cls, address: str, info: Any) -> str:
        match info.data.get("kind"):
            case "tcp" | "udp":
                return str(parse_address(address))
            case "unix":
                return parse_path(address)
        return address  # the kind is refused already

    @field_validator("ipv6_only")
    @classmethod
    def _has_one_family_each(cls, ipv6_only: bool, info: Any) -> bool:
        address = info.data.get("address", "")
        if not ipv6_only and address.startswith(f"{WILDCARD}:"):  # no path begins like that
            raise rule(f'does nothing with address = "{address}", which has one socket for each family')
        return ipv6_only

    @field_validator(*KINDS)
    @classmethod
    def _belongs(cls, value: Any, info: Any) -> Any:
        kinds = KINDS[info.field_name]
        if info.data.get("kind", kinds[0]) not in kinds and value != cls.model_fields[info.field_name].default:
            raise rule(f"is for kind = {' or '.join(map(quoted, kinds))} only")
        return value

    @field_validator("proxy_protocol")
    @classmethod
    def _is_trusted(cls, proxy: ProxyProtocol, info: Any) -> ProxyProtocol:
        if proxy.enabled and not proxy.trusted and info.data.get("kind") == "tcp":
            raise rule("needs trusted to name the networks of the proxies")
        if proxy.trusted and info.data.get("kind") == "unix":
            raise rule("trusts by the mode of the path; leave trusted out")
        return proxy

    @field_validator("faults")
    @classmethod
    def _can_happen(cls, faults: Faults, info: Any) -> Faults:
        kind = info.data.get("kind")
        for key in faults.active:
            if kind == "udp" and key in STREAMS:
                raise rule(f'{key} is for kind = "tcp" or "unix" only')
            if kind in {"tcp", "unix"} and key in DATAGRAMS:
                raise rule(f'{key} is for kind = "udp" only')
        return faults

    @cached_property
    def parsed(self) -> Address | None:
        """Host and port; None for a Unix socket."""
        return None if self.kind == "unix" else parse_address(self.address)

    @property
    def most_sockets(self) -> int:
        """How many sockets to reckon with; what a name resolves to is known only later."""
        if self.parsed and self.parsed.is_name:
            return NAME_SOCKETS
        return WILDCARD_SOCKETS if self.parsed and self.parsed.is_wildcard else 1

    @property
    def ephemeral(self) -> bool:
        """Whether the kernel picks the port."""
        return bool(self.parsed and not self.parsed.port)


def apart(listeners: tuple[Listener, ...]) -> tuple[Listener, ...]:
    """Return `listeners`; raise ValidationError for all that cannot stand beside each other."""
    if not listeners:
        raise rule("must hold at least one listener")
    clashes: dict[tuple[int, str], str] = {
        (index, "name"): f'"{ADMIN}" is the name of the listener of [admin]'
        for index, listener in enumerate(listeners)
        if listener.name == ADMIN
    }
    for (_, first), (index, second) in combinations(enumerate(listeners), 2):
        for key, sentence in clashes_between(first, second):
            clashes.setdefault((index, key), sentence)
    if clashes:
        faults = [InitErrorDetails(type=rule(text), loc=loc, input=None) for loc, text in clashes.items()]
        raise ValidationError.from_exception_data("listener", faults)
    return listeners


def check_shares(listeners: tuple[Listener, ...], workers: int) -> tuple[Listener, ...]:
    """Return `listeners`; raise ValidationError for each rate of which a worker's share is less than one."""
    faults = [
        InitErrorDetails(
            type=rule(f"{value} is below daemon.workers ({workers}), which share it; raise it or lower daemon.workers"),
            loc=(index, *path),
            input=None,
        )
        for index, listener in enumerate(listeners)
        for path, value in (
            (("accept_rate",), listener.accept_rate),
            (("udp", "rate"), listener.udp.rate),
            (("udp", "burst"), listener.udp.burst),
        )
        if 0 < value < workers
    ]
    if faults:
        raise ValidationError.from_exception_data("listener", faults)
    return listeners


def clashes_between(first: Listener, second: Listener) -> Iterator[tuple[str, str]]:
    """Say (key, sentence) for whatever the second of two listeners cannot share with the first."""
    if first.name == second.name:
        yield "name", f'"{second.name}" is the name of another listener already'
    if first.kind != second.kind or second.ephemeral:  # the kernel gives each port 0 a port of its own
        return
    if first.address == second.address:
        yield "address", f'{second.address} is the address of listener "{first.name}" already'
        return
    if not first.parsed or not second.parsed or first.parsed.port != second.parsed.port:
        return
    if _overlap(first.parsed, second.parsed):
        yield "address", f'{second.address} overlaps with {first.address} of listener "{first.name}"'


def _overlap(first: Address, second: Address) -> bool:
    if first.is_wildcard or second.is_wildcard:
        return True
    one, two = first.ip, second.ip
    return bool(one and two and one.version == two.version and (one.is_unspecified or two.is_unspecified))
