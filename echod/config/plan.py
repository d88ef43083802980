"""Decides what a new configuration changes, and whether the machine can carry it.

Rule: pure. Nothing is bound, closed or asked here; the supervisor acts on what comes out.
"""

from collections.abc import Collection
from dataclasses import dataclass

from echod.config.fields import RESTART, Table
from echod.config.listeners import ADMIN, Listener
from echod.config.models import Config
from echod.config.wording import quoted
from echod.errors import ConfigError
from echod.events import ConfigAdjusted

Identity = tuple[str, str, str]

RESERVED = 56  # descriptors of a process that are no connection: standard streams, log, channel, poller, slack


@dataclass(frozen=True)
class Plan:
    """What a reload does to the listeners. `keep` holds them as the new configuration describes them."""

    bind: tuple[Listener, ...]
    keep: tuple[Listener, ...]
    release: tuple[Listener, ...]


def identity(listener: Listener, inherited: Collection[str]) -> Identity:
    """Return what makes it the same listener over a reload.

    That is its address, and its name where the kernel picks the port; or its name alone when the sockets of this name
    are inherited, whatever the file says of their address. A socket for echo never becomes one of `[admin]`.
    """
    if listener.name in inherited:
        return (listener.kind, "", listener.name)
    return (listener.kind, listener.address, listener.name if listener.ephemeral or listener.name == ADMIN else "")


def plan(old: Config, new: Config, inherited: Collection[str]) -> Plan:
    """Compare two configurations; raise ConfigError naming each changed key that needs a restart."""
    before = {identity(listener, inherited): listener for listener in old.doors}
    after = {identity(listener, inherited): listener for listener in new.doors}
    changes = _restarts(old, new)
    for index, (same, listener) in enumerate(after.items()):
        if same in before:
            changes += _changed(f"listener[{index}]", before[same], listener)
    if changes:
        raise ConfigError(*changes)
    return Plan(
        bind=tuple(listener for same, listener in after.items() if same not in before),
        keep=tuple(listener for same, listener in after.items() if same in before),
        release=tuple(listener for same, listener in before.items() if same not in after),
    )


def can_share(old: Listener, new: Listener) -> bool:
    """Tell whether `new` may use sockets of `old` that are bound to its addresses.

    Clients that wait for echo must not get to `[admin]`; and what a socket is bound with cannot change.
    """
    return old.kind == new.kind and (old.name == ADMIN) == (new.name == ADMIN) and not _changed("", old, new)


def claim(config: Config, inherited: Collection[str]) -> None:
    """Raise ConfigError for each name of inherited sockets that no listener has: nobody would answer there."""
    names = [listener.name for listener in config.doors]
    there = ", ".join(map(quoted, names))
    unclaimed = [name for name in inherited if name not in names]
    if unclaimed:
        raise ConfigError(
            *(
                f"listener: a socket named {quoted(name)} was passed, which no listener is called (there is {there}); "
                "see FileDescriptorName= of the socket unit"
                for name in unclaimed
            )
        )


def fit(config: Config, descriptors: int, capacity: int | None) -> tuple[Config, tuple[ConfigAdjusted, ...]]:
    """Hold `limits.max_connections` against the process's descriptor limit and the poller's capacity.

    A number from the file that does not fit is a ConfigError; the built-in one shrinks, which an event tells. Sockets
    count twice: a worker that is sent an assignment holds, for a moment, those that it has and those that it is sent.
    """
    reserved = RESERVED + 2 * sum(listener.most_sockets for listener in config.doors)
    wanted = config.limits.max_connections
    bound, cause, remedy = (
        descriptors,
        f"a descriptor limit of {descriptors}",
        "raise the limit (ulimit -n, LimitNOFILE=)",
    )
    if capacity is not None and capacity < descriptors:
        bound, remedy = capacity, "choose another poller"
        cause = f'poller = "{config.daemon.poller}", which can watch {capacity} descriptors'
    most = bound - reserved
    if most < 1:
        raise ConfigError(f"limits.max_connections: not even one fits {cause}; {remedy}")
    if reserved + config.daemon.worker_count > descriptors:
        raise ConfigError(
            f"daemon.workers: {config.daemon.worker_count} and their listeners do not fit a descriptor limit of "
            f"{descriptors}; raise the limit (ulimit -n, LimitNOFILE=)"
        )
    if wanted <= most:
        return config, ()
    if "limits" in config.model_fields_set and "max_connections" in config.limits.model_fields_set:
        raise ConfigError(
            f"limits.max_connections: {wanted} does not fit {cause}; set it to {most} or less, or {remedy}"
        )
    limits = config.limits.model_copy(update={"max_connections": most})
    adjusted = ConfigAdjusted(config_key="limits.max_connections", configured=wanted, value=most, cause=cause)
    return config.model_copy(update={"limits": limits}), (adjusted,)


def _restarts(old: Config, new: Config) -> list[str]:
    changes: list[str] = []
    for table in ("daemon", "log", "limits"):
        changes += _changed(table, getattr(old, table), getattr(new, table))
    return changes


def _changed(name: str, old: Table, new: Table) -> list[str]:
    changes = []
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    for key, field in type(old).model_fields.items():
        if field.json_schema_extra == RESTART and before[key] != after[key]:
            shown = f"{_shown(before[key])} -> {_shown(after[key])}"
            changes.append(f"{name}.{key}: cannot change without a restart ({shown})")
    return changes


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value if value.isidentifier() else quoted(value)
    return str(value).lower()
