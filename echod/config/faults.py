"""Turns what pydantic found wrong into sentences for an operator.

Rule: one line per fault, in the words of TOML, never pydantic's.
"""

import difflib
import re
from typing import TYPE_CHECKING, Any, get_args

from echod.config.fields import Table
from echod.config.models import Config
from echod.config.wording import quoted, shown, type_of

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_TYPES = {
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "tuple_type": "an array",
    "model_type": "a table",
}


def describe(fault: "ErrorDetails") -> str:
    """Say which key is wrong and why."""
    kind, path, value, context = fault["type"], fault["loc"], fault["input"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        reason = _unknown(path, value)
    elif path == ("listener",) and isinstance(value, dict):
        reason = "must be an array of tables: write [[listener]] in place of [listener]"
    elif kind in _TYPES:
        reason = f"must be {_TYPES[kind]}, got {type_of(value)}"
    elif kind == "rule":
        reason = fault["msg"]
    else:
        reason = f"{_demand(kind, context)}, got {shown(value)}"
    return f"{spelled(path)}: {reason}"


def _demand(kind: str, context: dict[str, Any]) -> str:
    if kind == "value_error":
        return str(context["error"])
    if kind in {"literal_error", "enum"}:
        return f"must be {context['expected']}".replace("'", '"')
    return f"must be at least {context['ge']}" if "ge" in context else f"must be at most {context['le']}"


def _unknown(path: tuple[str | int, ...], value: object) -> str:
    *parents, key = path
    word = "table" if isinstance(value, dict) and not parents else "key"
    close = difflib.get_close_matches(str(key), _table(parents).model_fields, n=1)
    if close:
        return f"unknown {word}, did you mean {quoted(close[0])}?"
    for name in Config.model_fields:
        if key in _table([name]).model_fields:
            return f"unknown {word} here, it belongs to {_header(name)}"
    return f"unknown {word}"


def _header(name: str) -> str:
    return "[[listener]]" if name == "listener" else f"[{name}]"


def _table(path: list[str | int]) -> type[Table]:
    """Find the model of a path; that of an array is the model of its items."""
    model: type[Table] = Config
    for name in path:
        if isinstance(name, str):
            annotation = model.model_fields[name].annotation
            model = annotation if isinstance(annotation, type) else get_args(annotation)[0]
    return model


def spelled(path: tuple[str | int, ...]) -> str:
    """Spell a path as faults do: as in TOML, an index in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", part) else quoted(part))
    return text
