"""What is printed is read back."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from echod import events
from echod.config.dumping import defaults_toml, dump, schema, to_toml
from echod.config.loading import load
from echod.config.models import MOST_LISTENERS, Config
from echod.config.quantities import duration_text, size_text

ROOT = Path(__file__).parents[2]

DURATIONS = st.just("0s") | st.integers(1000, 10**14).map(lambda micro: duration_text(micro / 1_000_000))
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
PATHS = st.just("") | TEXTS.map("/{}".format)
ADDRESSES = st.builds(
    "{}:{}".format,
    st.sampled_from(["localhost", "Echo.Example", "127.0.0.1", "[::1]", "[fe80::1%eth0]", "192.0.2.1"]),
    st.integers(0, 65535),
)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "daemon": st.fixed_dictionaries(
            {"user": TEXTS.filter(bool), "group": TEXTS},
            optional={
                "workers": st.integers(1, 128) | st.just("auto"),
                "poller": st.sampled_from(["auto", "epoll", "poll", "select"]),
                "runtime_directory": PATHS,
                "drain_delay": DURATIONS,
                "drain_timeout": DURATIONS,
            },
        ),
        "log": st.fixed_dictionaries(
            {},
            optional={
                "level": st.sampled_from([level.value for level in events.Level]),
                "format": st.sampled_from(["auto", "json", "console"]),
                "file": PATHS,
                "suppress": st.lists(st.sampled_from([event.name for event in events.catalogue()]), max_size=5),
            },
        ),
        "limits": st.fixed_dictionaries(
            {},
            optional={
                "max_connections": st.integers(1, 1_000_000),
                "idle_timeout": DURATIONS,
                "half_close_timeout": DURATIONS,
                "max_lifetime": DURATIONS,
                "buffer": st.integers(4096, 64 * 1024 * 1024).map(size_text),
            },
        ),
        "listener": st.lists(
            st.fixed_dictionaries({"name": st.from_regex(r"\A[A-Za-z0-9_.-]{1,63}\Z"), "address": ADDRESSES}),
            min_size=1,
            max_size=4,
            unique_by=(lambda listener: listener["name"], lambda listener: listener["address"].lower()),
        ),
    },
).map(Config.model_validate)


def test_what_is_printed_of_many_listeners_can_be_read(tmp_path: Path) -> None:
    """As many listeners as there may be, printed with all their keys, are not more than the loader reads.

    Catches bounds of the loader that a new key has outgrown.
    """
    listeners = [{"name": f"listener-{n}", "address": f"echo.example.com:{n}"} for n in range(MOST_LISTENERS)]
    config = Config.model_validate({"listener": listeners})
    file = tmp_path / "echod.toml"
    file.write_text(to_toml(config))

    assert config == load(file)


@given(CONFIGS)
def test_dumping_and_reading_is_a_fixed_point(config: Config) -> None:
    """As JSON or as TOML, a configuration survives being printed, and prints the same again."""
    data = json.loads(json.dumps(dump(config)))
    text = to_toml(config)

    assert config == Config.model_validate(data)
    assert config == Config.model_validate(tomllib.loads(text))
    assert data == dump(Config.model_validate(data))
    assert text == to_toml(Config.model_validate(tomllib.loads(text)))


def test_dumps_quantities_as_text() -> None:
    """The file's words come out again, not the program's numbers."""
    data = dump(Config.model_validate({"limits": {"idle_timeout": "90s", "buffer": "1024KiB"}}))

    assert ("1m30s", "1MiB") == (data["limits"]["idle_timeout"], data["limits"]["buffer"])


def test_writes_a_table_for_each_listener() -> None:
    """Listeners are written as an operator writes them, not inline."""
    config = Config.model_validate({"listener": [{"name": "a", "address": "[::]:7"}, {"name": "b"}]})

    _, first, second = to_toml(config).split("[[listener]]\n")
    assert first.startswith('name = "a"\nkind = "tcp"\naddress = "[::]:7"\n')
    assert second.startswith('name = "b"\nkind = "tcp"\naddress = "localhost:10000"\n')


def test_the_reference_file_is_shipped() -> None:
    """`etc/echod.toml` is what the program says, to the letter, and loads to the defaults."""
    shipped = ROOT / "etc" / "echod.toml"

    assert defaults_toml() == shipped.read_text()
    assert Config() == load(shipped)


def test_the_reference_file_with_every_key_live_means_the_same() -> None:
    """Removing the "#" of a line changes nothing: every key stands there at its default."""
    live = tomllib.loads(re.sub(r"(?m)^#(?! )", "", defaults_toml()))

    assert dump(Config()) == live
    assert {"daemon": {}, "log": {}, "limits": {}, "admin": {}} == tomllib.loads(defaults_toml())


def test_the_reference_file_describes_each_key_and_marks_restarts() -> None:
    """Above each key stands what it does, and whether a reload can change it."""
    text = defaults_toml()

    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= 120
    daemon = ["poller", "runtime_directory", "user", "group"]
    sockets = ["mptcp", "receive_buffer", "send_buffer", "ipv6_only", "interface", "free_bind", "mode", "owner"]
    assert daemon + sockets == re.findall(r"\(needs a restart\)\n#(\w+) =", text)
    assert re.findall(r"(?m)^#(\w+) =", text) == re.findall(r"(?m)^# .*\.(?: \(.*\))?\n#(\w+) =", text)


def test_the_schema_tells_defaults_as_the_file_does() -> None:
    """An editor completes "10m", not 600.0, and refuses what has no name."""
    document: dict[str, Any] = json.loads(schema())
    limits = document["$defs"]["Limits"]

    assert ("string", "10m") == (
        limits["properties"]["idle_timeout"]["type"],
        limits["properties"]["idle_timeout"]["default"],
    )
    assert "256KiB" == limits["properties"]["buffer"]["default"]
    assert limits["additionalProperties"] is False
    assert dump(Config()) == {name: field["default"] for name, field in document["properties"].items()}
    assert schema().endswith("}\n")
