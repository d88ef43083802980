"""The manual page of the configuration says what the models say."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from echod.config import dumping, manual
from echod.config.fields import RESTART, Table
from echod.config.models import Config


def plain(text: str) -> str:
    """Undo the escapes, as roff does when it prints."""
    for written, printed in (("\\-", "-"), ("\\(ti", "~"), ("\\(ha", "^"), ("\\&", ""), ("\\e", "\\")):
        text = text.replace(written, printed)
    return text


def keys(sample: Table, values: dict[str, Any]) -> list[str]:
    """Return what the page says of a table's own keys."""
    lines: list[str] = []
    for key, described in type(sample).model_fields.items():
        if not isinstance(described.default, Table):
            restart = " Needs a restart." if described.json_schema_extra == RESTART else ""
            lines += [".TP", f"\\fB{key}\\fP = {json.dumps(values[key])}", f"{described.description}{restart}"]
    return lines


def test_each_key_stands_with_its_default_and_description() -> None:
    """Table by table, in the models' order; keys that need a restart say so."""
    data = dumping.dump(Config())
    expected = []
    for name, field in Config.model_fields.items():
        repeated = name == "listener"
        sample, values = (field.default[0], data[name][0]) if repeated else (field.default, data[name])
        expected += [f".SS [[{name}]]" if repeated else f".SS [{name}]", str(field.description)]
        inner = [key for key, value in sample if isinstance(value, Table)]
        expected += keys(sample, values)
        for key in inner:
            described = type(sample).model_fields[key]
            expected += [f".SS [{name}.{key}]", str(described.description), *keys(described.default, values[key])]
    page = manual.page()
    body = page[page.index(".SS ") : page.index(".SH EXAMPLE")]

    assert expected == plain(body).splitlines()


def test_the_example_is_accepted() -> None:
    """Who copies the example gets what it says, and it stands on the page as it is."""
    document: dict[str, Any] = tomllib.loads(manual.EXAMPLE)

    assert ["*:10008"] == [listener.address for listener in Config.model_validate(document).listener]
    assert manual.EXAMPLE in plain(manual.page())


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a-b", "a\\-b"),
        ("back\\slash", "back\\eslash"),
        (".request\n'other\ntext", "\\&.request\n\\&'other\ntext"),
        ("~ ^", "\\(ti \\(ha"),
    ],
)
def test_what_roff_would_act_on_isescaped(text: str, written: str) -> None:
    """No text can be taken for a request, and hyphens can be copied into a shell."""
    assert written == manual.escaped(text)
    assert text == plain(written)
