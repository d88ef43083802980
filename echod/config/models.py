"""What an operator can ask for: the tables and keys of the configuration file.

Rule: a key stands here only together with the code that makes it work, so what is accepted is done. Types are strict,
unknown keys are refused, and everything that is said about a key (bounds, description, restart) is said on its field.
"""

import difflib
import os
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from echod import events
from echod.config.address import Address, parse_address, parse_path
from echod.config.quantities import KIB, MIB, Duration, Size, within
from echod.config.wording import LONGEST, quoted

MOST_WORKERS = 128  # retiring ones are recalled before anybody is started, so there are never more; the rows are 256
MOST_LISTENERS = 100  # an assignment carries 250 descriptors at most, and a name binds several addresses
MOST_SUPPRESSED = 100  # more than there are events

RESTART: dict[str, Any] = {"restart": True}  # marks the fields which only a restart can change


def _rule(sentence: str) -> PydanticCustomError:
    """Make an error whose sentence says it all; to that of a ValueError the value is added."""
    return PydanticCustomError("rule", "{sentence}", {"sentence": sentence})


def _at_most(count: int) -> BeforeValidator:
    """Bound an array before each of its items is checked, which is what takes time."""

    def check(value: object) -> object:
        if isinstance(value, list) and len(value) > count:
            raise _rule(f"must hold at most {count} items, got {len(value)}")
        return value

    return BeforeValidator(check)


def _workers(value: object, check: Any) -> Any:
    try:
        return check(value)
    except ValidationError:  # one sentence instead of one for each member of the union
        raise ValueError(f'must be an integer from 1 to {MOST_WORKERS}, or "auto"') from None


def _plain(text: str) -> str:
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError("must not hold control characters")
    return text


def _absolute(path: str) -> str:
    if path and not path.startswith("/"):
        raise ValueError("must be an absolute path")
    return path


def _event_name(name: str) -> str:
    known = [event.name for event in events.catalogue()]
    if name not in known:
        close = difflib.get_close_matches(name[:LONGEST], known, n=1)
        hint = f", did you mean {quoted(close[0])}?" if close else ""
        raise _rule(f"unknown event {quoted(name)}{hint}")
    return name


def _listener_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", name):
        raise ValueError('must be 1 to 63 letters, digits, "_", "." or "-"')
    return name


def _mode(text: str) -> str:
    if not re.fullmatch(r"0[0-7]{3}", text):
        raise ValueError('must be a file mode such as "0660"')
    return text


def _owner(text: str) -> str:
    if not re.fullmatch(r"([a-z_][a-z0-9_.-]{0,31})?(:[a-z_][a-z0-9_.-]{0,31})?", text):
        raise ValueError('must be "USER", "USER:GROUP" or ":GROUP"')
    return text


Text = Annotated[str, AfterValidator(_plain)]
OptionalPath = Annotated[Text, AfterValidator(_absolute)]
EventName = Annotated[str, AfterValidator(_event_name)]
Workers = Annotated[
    Annotated[int, Field(ge=1, le=MOST_WORKERS)] | Literal["auto"],
    WrapValidator(_workers),
]


class Table(BaseModel):
    """What all tables have in common."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class Daemon(Table):
    """`[daemon]`: processes, and how they end."""

    workers: Workers = Field(default=1, description='Worker processes, 1 to 128; "auto" starts one per usable CPU.')
    poller: Literal["auto", "epoll", "poll", "select"] = Field(
        default="auto",
        description='How sockets are watched: "auto" (the best there is), "epoll", "poll" or "select".',
        json_schema_extra=RESTART,
    )
    runtime_directory: OptionalPath = Field(
        default="",
        description='Where the pid and state files live; "" takes $RUNTIME_DIRECTORY, else a default place.',
        json_schema_extra=RESTART,
    )
    user: Text = Field(
        default="",
        description='The user whom workers run as when started as root; "" takes nobody.',
        json_schema_extra=RESTART,
    )
    group: Text = Field(
        default="",
        description='The group that goes with the user; "" takes the user\'s own.',
        json_schema_extra=RESTART,
    )
    drain_delay: Duration = Field(
        default=0.0, description="How long a stopping daemon still accepts; 0s stops at once."
    )
    drain_timeout: Duration = Field(
        default=25.0, description="How long a stopping daemon waits for connections to end."
    )

    @field_validator("group")
    @classmethod
    def _needs_user(cls, group: str, info: Any) -> str:
        if group and not info.data.get("user", "refused already"):
            raise _rule("needs daemon.user to be set too")
        return group

    @property
    def worker_count(self) -> int:
        """The number of workers, "auto" resolved."""
        return min(len(os.sched_getaffinity(0)), MOST_WORKERS) if self.workers == "auto" else self.workers


class Log(Table):
    """`[log]`: what is written, how, and where to."""

    level: events.Level = Field(
        default=events.Level.INFO,
        strict=False,  # the file holds the word, not the enum
        description='The least level that is written: "debug", "info", "warning" or "error".',
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description='"json", "console", or "auto" for console on a terminal and json elsewhere.'
    )
    file: OptionalPath = Field(default="", description='The log file, an absolute path; "" writes to standard output.')
    suppress: Annotated[tuple[EventName, ...], _at_most(MOST_SUPPRESSED)] = Field(
        default=(),
        strict=False,  # TOML has arrays, not tuples
        description='Events that are not written, such as ["connection.opened"].',
    )


class Limits(Table):
    """`[limits]`: how much of the machine peers may take."""

    max_connections: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Connections at once, over all workers; as a default it shrinks to what the machine allows.",
    )
    idle_timeout: Duration = Field(
        default=600.0, description="Ends a connection on which no byte moves; 0s never does."
    )
    half_close_timeout: Duration = Field(
        default=60.0, description="Ends a connection that has finished sending and takes nothing back; 0s never does."
    )
    max_lifetime: Duration = Field(
        default=0.0, description="Ends a connection of this age, busy or not; 0s never does."
    )
    buffer: Annotated[Size, within(4 * KIB, 64 * MIB)] = Field(
        default=256 * KIB, description="The most that is held for a peer which sends and does not read, 4KiB to 64MiB."
    )


class Listener(Table):
    """`[[listener]]`: an address on which echod answers."""

    name: Annotated[str, AfterValidator(_listener_name)] = Field(
        default="echo", description="What the log calls this listener; no two share one."
    )
    kind: Literal["tcp", "unix"] = Field(default="tcp", description='The transport: "tcp", or "unix" for a stream.')
    address: str = Field(
        default="localhost:10000",
        validate_default=True,
        description="HOST:PORT, a name for all of its addresses, port 0 for any free one; of a Unix socket its path.",
    )
    mode: Annotated[str, AfterValidator(_mode)] = Field(
        default="0660", description="Who may connect to a Unix socket, as chmod writes it."
    )
    owner: Annotated[str, AfterValidator(_owner)] = Field(
        default="", description='Whose a Unix socket is, "USER:GROUP"; "" for whoever runs echod.'
    )

    @field_validator("address")
    @classmethod
    def _canonical(cls, address: str, info: Any) -> str:
        match info.data.get("kind"):
            case "tcp":
                return str(parse_address(address))
            case "unix":
                return parse_path(address)
        return address  # the kind is refused already

    @field_validator("mode", "owner")
    @classmethod
    def _is_of_unix(cls, value: str, info: Any) -> str:
        # What is printed of a TCP listener has these keys too, at their defaults.
        if info.data.get("kind") == "tcp" and value != cls.model_fields[info.field_name].default:
            raise _rule('is for kind = "unix" only')
        return value

    @property
    def parsed(self) -> Address | None:
        """Host and port; None for a Unix socket."""
        return parse_address(self.address) if self.kind == "tcp" else None

    @property
    def literal(self) -> bool:
        """Whether the address stands for one socket: it is no name."""
        return not self.parsed or self.parsed.literal

    @property
    def ephemeral(self) -> bool:
        """Whether the kernel picks the port."""
        return bool(self.parsed and not self.parsed.port)


def _clashes(first: Listener, second: Listener) -> Iterator[tuple[str, str]]:
    """Say (key, sentence) for whatever the second of two listeners cannot share with the first."""
    if first.name == second.name:
        yield "name", f'"{second.name}" is the name of another listener already'
    if second.ephemeral:  # the kernel gives each port 0 a port of its own
        return
    if first.address == second.address:
        yield "address", f'{second.address} is the address of listener "{first.name}" already'
        return
    if not first.parsed or not second.parsed or first.parsed.port != second.parsed.port:
        return
    one, two = first.parsed.ip, second.parsed.ip
    if one and two and one.version == two.version and (one.is_unspecified or two.is_unspecified):
        yield "address", f'{second.address} overlaps with {first.address} of listener "{first.name}"'


class Config(Table):
    """A whole configuration file. Without a file, every table has its defaults."""

    daemon: Daemon = Field(default=Daemon(), description="Processes, and how they end.")
    log: Log = Field(default=Log(), description="What is logged, how, and where to.")
    limits: Limits = Field(default=Limits(), description="How much of the machine peers may take.")
    listener: Annotated[tuple[Listener, ...], _at_most(MOST_LISTENERS)] = Field(
        default=(Listener(),),
        strict=False,  # TOML has arrays, not tuples
        json_schema_extra={"minItems": 1, "maxItems": MOST_LISTENERS},
        description="An address on which echod answers; repeat the table for more.",
    )

    @field_validator("listener")
    @classmethod
    def _are_apart(cls, listeners: tuple[Listener, ...]) -> tuple[Listener, ...]:
        if not listeners:
            raise _rule("must hold at least one listener")
        clashes: dict[tuple[int, str], str] = {}
        for (_, first), (index, second) in combinations(enumerate(listeners), 2):
            for key, sentence in _clashes(first, second):
                clashes.setdefault((index, key), sentence)
        if clashes:
            faults = [InitErrorDetails(type=_rule(text), loc=loc, input=None) for loc, text in clashes.items()]
            raise ValidationError.from_exception_data("listener", faults)
        return listeners
