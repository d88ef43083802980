"""The state file: what the daemon tells its commands, without another door into it.

Rule: written whole and renamed into place, so that a reader never sees half of it. Times are CLOCK_MONOTONIC in
nanoseconds, which all processes of a boot share.

Fails: OSError from `write`; StartError from `read`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from echod.errors import StartError

if TYPE_CHECKING:
    from pathlib import Path

STATE_FILE = "state.json"


def write(directory: Path, state: dict[str, Any]) -> None:
    """Replace the state file of `directory`."""
    path = directory / STATE_FILE
    draft = directory / f"{STATE_FILE}.new"
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(fd, 0o644)  # whatever the umask says
        os.write(fd, orjson.dumps(state, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    finally:
        os.close(fd)
    draft.replace(path)


def read(directory: Path) -> dict[str, Any]:
    """Return what the daemon of `directory` last wrote."""
    path = directory / STATE_FILE
    try:
        state: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StartError(f"{path}: {error}") from None
    return state


def remove(directory: Path) -> None:
    """Remove the state file, if that can be: the daemon is gone."""
    with suppress(OSError):
        (directory / STATE_FILE).unlink()
