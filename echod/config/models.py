"""What an operator can ask for: the tables and keys of the configuration file.

Rule: a key stands here only together with the code that makes it work, so what is accepted is done. Types are strict,
unknown keys are refused, and everything that is said about a key (bounds, description, restart) is said on its field.
"""

import difflib
import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, WrapValidator, field_validator

from echod import events
from echod.config.admin import Admin
from echod.config.fields import RESTART, Networks, OptionalPath, Table, Text, at_most, rule
from echod.config.listeners import Listener, apart, check_shares, clashes_between
from echod.config.quantities import KIB, MIB, Duration, Size, within
from echod.config.wording import LONGEST, quoted

MOST_WORKERS = 128  # retiring ones are recalled before anybody is started, so there are never more; the rows are 256
MOST_LISTENERS = 100  # an assignment carries 250 descriptors at most, and a name binds several addresses
MOST_SUPPRESSED = 100  # more than there are events


def _workers(value: object, check: Any) -> Any:
    try:
        return check(value)
    except ValidationError:  # one sentence instead of one for each member of the union
        raise ValueError(f'must be an integer from 1 to {MOST_WORKERS}, or "auto"') from None


def _event_name(name: str) -> str:
    known = [event.name for event in events.catalogue()]
    if name not in known:
        close = difflib.get_close_matches(name[:LONGEST], known, n=1)
        hint = f", did you mean {quoted(close[0])}?" if close else ""
        raise rule(f"unknown event {quoted(name)}{hint}")
    return name


EventName = Annotated[str, AfterValidator(_event_name)]
Workers = Annotated[
    Annotated[int, Field(ge=1, le=MOST_WORKERS)] | Literal["auto"],
    WrapValidator(_workers),
]


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
        description='Directory of lock, control socket and pid file. "" = $RUNTIME_DIRECTORY, else a default place.',
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
    busy_poll: Duration = Field(
        default=0.0,
        description="How long a worker looks for work before it sleeps: answers come sooner, and a core is busy.",
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
            raise rule("needs daemon.user to be set too")
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
    format: Literal["auto", "json", "ecs", "console"] = Field(
        default="auto",
        description='"json", "ecs" (Elastic\'s names), "console", or "auto": console on a terminal, else json.',
    )
    file: OptionalPath = Field(default="", description='The log file, an absolute path; "" writes to standard output.')
    suppress: Annotated[tuple[EventName, ...], at_most(MOST_SUPPRESSED)] = Field(
        default=(),
        strict=False,  # TOML has arrays, not tuples
        description='Events that are not written, such as ["connection.opened"].',
    )
    cap: int = Field(
        default=10_000,
        ge=0,
        le=1_000_000_000,
        description="Lines of one event that a process writes in 10 seconds; the others are counted. 0 for any.",
    )
    quiet: Networks = Field(
        default=(),
        strict=False,
        description="Networks whose connections are not written unless they carry a byte: those of health checks.",
    )


class Limits(Table):
    """`[limits]`: how much of the machine peers may take."""

    max_connections: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Connections at once, over all workers; as a default it shrinks to what the machine allows.",
    )
    max_connections_per_address: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Connections at once of one address, an IPv6 one counting with its /64; 0 for any number.",
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


class Config(Table):
    """A whole configuration file. Without a file, every table has its defaults."""

    daemon: Daemon = Field(default=Daemon(), description="Processes, and how they end.")
    log: Log = Field(default=Log(), description="What is logged, how, and where to.")
    limits: Limits = Field(default=Limits(), description="How much of the machine peers may take.")
    listener: Annotated[tuple[Listener, ...], at_most(MOST_LISTENERS), AfterValidator(apart)] = Field(
        default=(Listener(),),
        strict=False,  # TOML has arrays, not tuples
        json_schema_extra={"minItems": 1, "maxItems": MOST_LISTENERS},
        description="An address on which echod answers; repeat the table for more.",
    )
    admin: Admin = Field(default=Admin(), description="Metrics and health, over HTTP.")

    @field_validator("listener")
    @classmethod
    def _can_be_shared(cls, listeners: tuple[Listener, ...], info: Any) -> tuple[Listener, ...]:
        daemon = info.data.get("daemon")  # which may be refused already
        return check_shares(listeners, daemon.worker_count) if daemon else listeners

    @field_validator("admin")
    @classmethod
    def _stands_apart(cls, admin: Admin, info: Any) -> Admin:
        for own in admin.listeners:
            for other in info.data.get("listener", ()):
                for _, sentence in clashes_between(other, own):
                    raise rule(sentence)
        return admin

    @property
    def doors(self) -> tuple[Listener, ...]:
        """All listeners, that of `[admin]` too."""
        return self.listener + self.admin.listeners
