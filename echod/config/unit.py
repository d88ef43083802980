"""The systemd unit, for those who did not install with `make install`: the same text, with the real command in it.

Rule: there is one unit, systemd/echod.service; beside this module lies a link to it, which a wheel holds as a file.
"""

import os
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

_HOMES = ("/home/", "/root/", "/run/user/")  # what ProtectHome= hides


def text(command: Sequence[str], homes: Sequence[str]) -> str:
    """Return the unit for `command`, which finds its code below `homes`, in place of what `make install` installs."""
    unit = resources.files("echod.config").joinpath("echod.service").read_text(encoding="utf-8")
    real = " ".join(map(quoted, command))
    places = " ".join(quoted(home) for home in dict.fromkeys([command[0], *homes]) if home != "/usr/lib")
    unit = unit.replace("=/usr/local/bin/echod /usr/local/lib/echod /usr/bin/python3 ", f"={places} ")
    return unit.replace("=/usr/local/bin/echod ", f"={real} ")


def code_homes() -> list[str]:
    """Return where this program's code and its interpreter lie, links to the latter followed."""
    return [sys.prefix, os.path.realpath(sys.executable), str(Path(sys.base_prefix) / "lib")]


def running_command() -> list[str]:
    """Return the command that this process was started as, with an absolute path."""
    started = Path(os.path.abspath(sys.argv[0]))  # noqa: PTH100  # a link is kept: it outlives the version it leads to
    return [sys.executable, "-m", "echod"] if started.name == "__main__.py" else [str(started)]


def out_of_reach(command: Sequence[str]) -> list[str]:
    """Return what of `command` and its interpreter lies where the service may not read, links followed."""
    found = {os.path.realpath(path) for path in (command[0], sys.executable)}
    return sorted(path for path in found if path.startswith(_HOMES))


def quoted(word: str) -> str:
    """Write a path as systemd reads it back; one with a quote, backslash or control character it takes in no form."""
    word = word.replace("%", "%%")
    return f'"{word}"' if " " in word else word
