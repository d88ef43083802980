"""Reads a configuration file into a Config.

Rule: a file is either taken as a whole or refused with every fault at once, each on a line that names the file, the
line and the key. Whatever the file is or holds, this takes bounded time and memory and raises nothing but ConfigError.
"""

import re
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from echod.config import faults, reading, syntax
from echod.config.models import Config
from echod.errors import ConfigError

MOST_FAULTS = 20

_ENDS = re.compile(r"[.\[]|$")
"""Where the key of a table, of an item or of a value ends, in a sentence about it."""


def load(path: Path) -> Config:
    """Read, parse and check a file; raise ConfigError with a line for each fault."""
    text = reading.text(path)
    document = reading.document(path, text)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(*_explain(path, text, error)) from None


def placed(path: Path, sentence: str) -> str:
    """Put the file and the line before a sentence about it that begins with a key, such as "limits.buffer: ..."."""
    key = sentence.partition(": ")[0]
    with suppress(ConfigError):  # it could be read a moment ago
        lines = {faults.spelled(found): line for found, line in syntax.locate(reading.text(path)).items()}
        keys = [key[: end.start()] for end in _ENDS.finditer(key)]
        return reading.prefix(path, next((lines[key] for key in reversed(keys) if key in lines), None)) + sentence
    return reading.prefix(path, None) + sentence


def _explain(path: Path, text: str, error: ValidationError) -> list[str]:
    lines = syntax.locate(text)
    found = [(syntax.line_of(fault["loc"], lines), fault) for fault in error.errors(include_url=False)]
    found.sort(key=lambda entry: entry[0] or 0)
    told = [reading.prefix(path, line) + faults.describe(fault) for line, fault in found[:MOST_FAULTS]]
    left = len(found) - len(told)
    return [*told, f"{reading.prefix(path, None)}and {left} more"] if left else told
