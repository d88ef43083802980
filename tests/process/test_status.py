"""The status: what is said of a reload, and the schema that programs rely on."""

from __future__ import annotations

import json

import pytest

from echod.process import reload, status
from echod.process.status import ReloadStatus, Status


def test_reload_that_never_was() -> None:
    """Without a reload there is no age, duration or exit code."""
    expected = {"count": 0, "outcome": "none", "age": None, "duration": None, "errors": [], "exit_code": None}

    assert expected == status.of_reload(None, 0).model_dump()


def test_reload_in_progress() -> None:
    """A reload counts from its beginning."""
    assert ReloadStatus(count=2, outcome="in_progress") == status.of_reload(reload.Report(), 2)


@pytest.mark.parametrize(("code", "outcome", "errors"), [(0, "ok", []), (78, "rejected", ["a.toml:3: wrong"])])
def test_reload_that_has_ended(code: int, outcome: str, errors: list[str]) -> None:
    """It says how it ended, how long it took and how long ago that was."""
    report = reload.Report()
    report.end(code, errors or None)
    found = status.of_reload(report, 1)

    assert (1, outcome, errors, code) == (found.count, found.outcome, found.errors, found.exit_code)
    assert found.age is not None
    assert found.duration is not None
    assert 0 <= found.duration <= 1
    assert 0 <= found.age <= 1


def test_schema_describes_every_key() -> None:
    """Each key of each table has a sentence, so that no reader has to guess its unit."""
    schema = json.loads(status.schema())
    tables = {"Status": schema, **schema["$defs"]}
    missing = [
        f"{name}.{key}"
        for name, table in tables.items()
        for key, field in table["properties"].items()
        if not field.get("description")
    ]

    assert [] == missing
    assert set(Status.model_fields) == set(schema["properties"])
