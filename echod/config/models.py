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
from echod.config.address import parse_address
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


def _canonical(address: str) -> str:
    return str(parse_address(address))


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
    kind: Literal["tcp"] = Field(default="tcp", description='The transport: "tcp".')
    address: Annotated[str, AfterValidator(_canonical)] = Field(
        default="localhost:10000",
        description="HOST:PORT; a name stands for all of its addresses, port 0 for any free port.",
    )

    @property
    def host(self) -> str:
        """The name or the IP address, without brackets."""
        return parse_address(self.address).host

    @property
    def port(self) -> int:
        """The port; 0 asks the kernel for one."""
        return parse_address(self.address).port

    @property
    def literal(self) -> bool:
        """Whether the host is an IP address rather than a name."""
        return parse_address(self.address).literal


def _clashes(first: Listener, second: Listener) -> Iterator[tuple[str, str]]:
    """Say (key, sentence) for whatever the second of two listeners cannot share with the first."""
    if first.name == second.name:
        yield "name", f'"{second.name}" is the name of another listener already'
    if first.port != second.port or second.port == 0:  # the kernel gives each port 0 a port of its own
        return
    one, two = parse_address(first.address).ip, parse_address(second.address).ip
    if first.address == second.address:
        yield "address", f'{second.address} is the address of listener "{first.name}" already'
    elif one and two and one.version == two.version and (one.is_unspecified or two.is_unspecified):
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
