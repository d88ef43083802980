"""What a reload changes, and what a machine can carry."""

from __future__ import annotations

from typing import Any

import pytest

from echod.config.admin import Admin
from echod.config.listeners import Listener
from echod.config.models import Config
from echod.config.plan import Plan, can_share, claim, fit, plan
from echod.errors import ConfigError
from echod.events import ConfigAdjusted


def config(*listeners: tuple[str, str], **tables: dict[str, Any]) -> Config:
    """Make a configuration from (name, address) of its listeners and from tables."""
    named = [{"name": name, "address": address} for name, address in listeners]
    return Config.model_validate(tables | ({"listener": named} if named else {}))


def test_binds_keeps_and_releases_by_address() -> None:
    """What has the same address is kept, as the new configuration describes it."""
    old = config(("a", "localhost:1"), ("b", "localhost:2"), ("c", "[::1]:3"))
    new = config(("c", "[0::1]:3"), ("d", "localhost:4"), ("renamed", "LOCALHOST:1"))
    c, d, renamed = new.listener

    assert Plan(bind=(d,), keep=(c, renamed), release=(old.listener[1],)) == plan(old, new, ())


def test_an_inherited_listener_is_known_by_its_name() -> None:
    """Its sockets stay, whatever the file says of its address; others are still known by theirs."""
    old = config(("passed", "localhost:1"), ("b", "localhost:2"))
    new = config(("passed", "[::1]:9"), ("renamed", "localhost:2"), ("c", "localhost:1"))
    passed, renamed, c = new.listener

    assert Plan(bind=(c,), keep=(passed, renamed), release=()) == plan(old, new, {"passed"})


def test_every_inherited_name_must_be_claimed() -> None:
    """A socket that nobody answers on is refused by name, with the names that there are."""
    claim(config(("a", "localhost:1"), ("b", "localhost:2")), {"b"})
    with pytest.raises(ConfigError) as refused:
        claim(config(("a", "localhost:1"), ("b", "localhost:2")), ["c\x1b", "a", "d"])

    assert (
        'listener: a socket named "c\\x1b" was passed, which no listener is called (there is "a", "b"); '
        "see FileDescriptorName= of the socket unit"
    ) == refused.value.lines[0]
    assert 2 == len(refused.value.lines)


def test_nothing_changes_between_equal_configurations() -> None:
    """A reload of the same file keeps every listener."""
    assert Plan(bind=(), keep=Config().listener, release=()) == plan(Config(), Config(), ())


def test_listeners_on_port_0_are_told_apart_by_name() -> None:
    """The one that stays keeps its port."""
    old = config(("a", "localhost:0"), ("b", "localhost:0"))
    new = config(("b", "localhost:0"), ("c", "localhost:0"))

    assert Plan(bind=new.listener[1:], keep=new.listener[:1], release=old.listener[:1]) == plan(old, new, ())


def test_names_every_changed_key_that_needs_a_restart() -> None:
    """The whole reload is refused, with the old and the new value of each such key."""
    old = config(daemon={"poller": "epoll", "user": "echo", "workers": 1})
    new = config(
        daemon={"poller": "select", "runtime_directory": "/run/e d", "user": "echo", "group": "g", "workers": 2}
    )
    with pytest.raises(ConfigError) as caught:
        plan(old, new, ())

    assert (
        "daemon.poller: cannot change without a restart (epoll -> select)",
        'daemon.runtime_directory: cannot change without a restart ("" -> "/run/e d")',
        'daemon.group: cannot change without a restart ("" -> g)',
    ) == caught.value.lines


GIVEN = config(limits={"max_connections": 10_000})


@pytest.mark.parametrize("asked", [Config(), GIVEN])
@pytest.mark.parametrize("capacity", [None, 10_000 + 64])
def test_leaves_alone_what_fits(asked: Config, capacity: int | None) -> None:
    """Up to the last descriptor, nothing is changed or said."""
    assert (asked, ()) == fit(asked, 10_000 + 64, capacity)


@pytest.mark.parametrize(
    ("descriptors", "capacity", "value", "cause"),
    [
        (1024, None, 960, "a descriptor limit of 1024"),
        (1024, 1024, 960, "a descriptor limit of 1024"),
        (65_536, 1024, 960, 'poller = "auto", which can watch 1024 descriptors'),
        (65, None, 1, "a descriptor limit of 65"),
    ],
)
@pytest.mark.parametrize("asked", [Config(), config(limits={"idle_timeout": "1s"})])
def test_the_default_shrinks_to_fit(
    asked: Config, descriptors: int, capacity: int | None, value: int, cause: str
) -> None:
    """Nobody asked for 10,000, so a smaller machine is no error; an event says what was done."""
    fitted, happened = fit(asked, descriptors, capacity)

    assert value == fitted.limits.max_connections
    assert asked.limits.idle_timeout == fitted.limits.idle_timeout
    assert (
        ConfigAdjusted(config_key="limits.max_connections", configured=10_000, value=value, cause=cause),
    ) == happened


@pytest.mark.parametrize(
    ("asked", "descriptors", "capacity", "expected"),
    [
        (
            GIVEN,
            1024,
            None,
            (
                "10000 does not fit a descriptor limit of 1024; "
                "set it to 960 or less, or raise the limit (ulimit -n, LimitNOFILE=)"
            ),
        ),
        (
            config(daemon={"poller": "select"}, limits={"max_connections": 1000}),
            65_536,
            1024,
            (
                '1000 does not fit poller = "select", which can watch 1024 descriptors; '
                "set it to 960 or less, or choose another poller"
            ),
        ),
        (
            Config(),
            64,
            None,
            "not even one fits a descriptor limit of 64; raise the limit (ulimit -n, LimitNOFILE=)",
        ),
    ],
)
def test_refuses_what_was_asked_for_and_does_not_fit(
    asked: Config, descriptors: int, capacity: int | None, expected: str
) -> None:
    """A number from the file is not quietly made smaller: the error says which number would do."""
    with pytest.raises(ConfigError) as caught:
        fit(asked, descriptors, capacity)

    assert (f"limits.max_connections: {expected}",) == caught.value.lines


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {"address": "*:7"}, True),
        ({}, {"address": "*:7", "name": "other", "nodelay": False}, True),
        ({}, {"address": "*:7", "interface": "lo"}, False),
        ({}, {"address": "*:7", "kind": "udp"}, False),
        ({"address": "[::]:7", "ipv6_only": False}, {"address": "*:7"}, False),
    ],
)
def test_can_share_compares_what_a_socket_is_bound_with(
    old: dict[str, Any], new: dict[str, Any], expected: bool
) -> None:
    """The name, and what can be set at any time, may differ."""
    base = {"name": "one", "address": "0.0.0.0:7"}

    assert expected == can_share(Listener.model_validate(base | old), Listener.model_validate(base | new))


def test_can_share_keeps_echo_and_admin_apart() -> None:
    """A client of one never gets to the other."""
    (admin,) = Admin(address="0.0.0.0:7").listeners
    echo = Listener(name="one", address="*:7")

    assert not can_share(admin, echo)
    assert not can_share(echo, admin)
