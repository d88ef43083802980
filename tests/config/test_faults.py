"""The sentences about single keys; `tests/bad_configs.py` holds them against whole files."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from echod.config.faults import describe
from echod.config.models import Config


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"limits": {"max_conections": 1}}, 'limits.max_conections: unknown key, did you mean "max_connections"?'),
        ({"limit": {}}, 'limit: unknown table, did you mean "limits"?'),
        ({"listener": [{}, {"name": "b", "prt": 1}]}, "listener[1].prt: unknown key"),
        ({"log": {"user": ""}}, "log.user: unknown key here, it belongs to [daemon]"),
        ({"name": "echo"}, "name: unknown key here, it belongs to [[listener]]"),
        ({"a b": 1}, '"a b": unknown key'),
        ({"x" * 41: 1}, f'"{"x" * 40}…": unknown key'),
        ({"listener": {}}, "listener: must be an array of tables: write [[listener]] in place of [listener]"),
        ({"log": {"suppress": {}}}, "log.suppress: must be an array, got a table"),
        ({"limits": {"max_connections": True}}, "limits.max_connections: must be an integer, got a boolean"),
        ({"limits": {"max_connections": -1}}, "limits.max_connections: must be at least 1, got -1"),
        ({"limits": {"max_connections": 2_000_000}}, "limits.max_connections: must be at most 1000000, got 2000000"),
        ({"log": {"format": "xml"}}, 'log.format: must be "auto", "json", "ecs" or "console", got "xml"'),
        ({"log": {"level": 3}}, 'log.level: must be "debug", "info", "warning" or "error", got 3'),
        ({"daemon": {"group": "x"}}, "daemon.group: needs daemon.user to be set too"),
        (
            {"daemon": {"drain_delay": "soon"}},
            'daemon.drain_delay: must be a duration such as "30s" or "1m30s", got "soon"',
        ),
    ],
)
def test_says_which_key_is_wrong_and_why(data: dict[str, Any], expected: str) -> None:
    """One sentence in the words of TOML, with a hint where there is one."""
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(data)

    assert [expected] == [describe(fault) for fault in caught.value.errors(include_url=False)]
