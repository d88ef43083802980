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

FRESH = 1.0
"""Seconds that the numbers in the file may be old, while they change; `status` of an idle daemon costs no writing."""

_DRAFT = f"{STATE_FILE}.new"


def write(directory: Path, state: dict[str, Any]) -> None:
    """Replace the state file of `directory`."""
    draft = directory / _DRAFT
    draft.unlink(missing_ok=True)
    try:
        with draft.open("xb") as file:  # made anew, so nobody else's link is followed; writes all of it, or raises
            os.fchmod(file.fileno(), 0o644)  # whatever the umask says
            file.write(orjson.dumps(state, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        draft.replace(directory / STATE_FILE)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def read(directory: Path) -> dict[str, Any]:
    """Return what the daemon of `directory` last wrote."""
    path = directory / STATE_FILE
    try:
        state = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StartError(f"{path}: {error}") from None
    if not isinstance(state, dict):
        raise StartError(f"{path}: holds no state")
    return state


def remove(directory: Path) -> None:
    """Remove the state file, if that can be: the daemon is gone."""
    with suppress(OSError):
        (directory / STATE_FILE).unlink()


def reload_outcome(report: dict[str, Any] | None) -> str:
    """Say in a word what the state file says of the last reload."""
    if report is None:
        return "none"
    if not report["finished"]:
        return "under way"
    return "ok" if report["ok"] else "refused"
