"""Prints a Config: as plain data, as TOML, as the commented file of all defaults, as a JSON Schema.

Rule: what is printed, the loader reads back to the same Config. All of it is derived from the models, so that no
document can tell something else than the program does.
"""

import json
from typing import Any

import tomli_w

from echod.config.fields import RESTART, Table
from echod.config.listeners import Listener
from echod.config.models import Config

_HEAD = """\
# The configuration of echod, with every key at its default. To change one, remove the "#" before it.
# Durations have units ("500ms", "30s", "1m30s"; "0s" switches off), so have sizes ("64KiB", "1MiB").
# `echod check` proves this file, `echod reload` puts it into force.
"""


def dump(config: Config) -> dict[str, Any]:
    """Reduce a Config to JSON's types, which `Config.model_validate` takes back."""
    return config.model_dump(mode="json")


def to_toml(config: Config) -> str:
    """Write a Config as a file."""
    tables = dump(config)
    listeners = tables.pop("listener")
    # Each by itself, since tomli_w writes short tables of an array inline.
    written = (tomli_w.dumps({"listener": each}).replace("[listener]", "[[listener]]", 1) for each in listeners)
    return "\n".join([tomli_w.dumps(tables), *written])


def defaults_toml() -> str:
    """Write the reference file: every key commented out, at its default and with its description."""
    parts = [_HEAD]
    for name, field in Config.model_fields.items():
        if name == "listener":
            parts.append(f"# {field.description}\n#[[{name}]]\n{_keys(Listener(), name)}")
        else:
            parts.append(f"# {field.description}\n[{name}]\n{_keys(field.default, name)}")
    return "\n".join(parts)


def schema() -> str:
    """Write the JSON Schema of the file, for editors."""
    # The serialized form is the file's form: there a default duration is "10m", not 600.0.
    return json.dumps(Config.model_json_schema(mode="serialization"), indent=2) + "\n"


def _keys(table: Table, path: str) -> str:
    text = ""
    values = table.model_dump(mode="json")
    for name, field in type(table).model_fields.items():
        if isinstance(field.default, Table):
            text += f"# {field.description}\n#[{path}.{name}]\n{_keys(field.default, f'{path}.{name}')}"
        else:
            restart = " (needs a restart)" if field.json_schema_extra == RESTART else ""
            text += f"# {field.description}{restart}\n#{name} = {_value(values[name])}\n"
    return text


def _value(value: Any) -> str:
    """Write a value on one line, an array too."""
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return tomli_w.dumps({"_": value}).removeprefix("_ = ").rstrip("\n")
