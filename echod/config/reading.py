"""Reads a configuration file as far as one can without the models, which take a tenth of a second to import.

Rule: whatever the file is or holds, this takes bounded time and memory and raises nothing but ConfigError.
"""

import codecs
import errno
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from echod.config import syntax
from echod.config.wording import printable
from echod.errors import ConfigError

DEFAULT_PATH = Path("/etc/echod.toml")

MOST_BYTES = 84 * 1024  # a hundred listeners with all their keys are 81 KiB; each KiB can cost 1 ms

_LONGEST_PATH = 4096  # PATH_MAX
_LONGEST_REASON = 120

_DIRECTORY = re.compile(r"/[^\x00-\x1f\x7f]*")
"""What the models take for `daemon.runtime_directory`."""

_STATED = re.compile(rb"""^[ \t]*runtime_directory[ \t]*=[ \t]*["'](/[^"'\\\x00-\x1f\x7f]*)["']""", re.MULTILINE)
"""The key in a file that is no TOML, as somebody would write it."""

_PLACE = re.compile(r" \(at (?:line ([0-9]+), column [0-9]+|end of document)\)$")

_REASONS = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist: part of its path is not a directory",
    errno.EACCES: "may not be read: permission denied",
    errno.ELOOP: "is a symbolic link that leads back to itself",
    errno.ENXIO: "is a socket or device, not a regular file",
}
_KINDS = {
    stat.S_IFDIR: "is a directory, not a regular file",
    stat.S_IFIFO: "is a named pipe, not a regular file",
    stat.S_IFCHR: "is a device, not a regular file",
    stat.S_IFBLK: "is a device, not a regular file",
}


def default_file() -> Path | None:
    """Return the configuration file that is used when none is named, where it exists."""
    # Not Path.exists(), which raises PermissionError: reading the file says what is wrong with it.
    return DEFAULT_PATH if os.path.lexists(DEFAULT_PATH) else None


def runtime_directory(path: Path) -> str | None:
    """Read `daemon.runtime_directory` alone, whatever else is wrong with the file; None where it does not say.

    Raise ConfigError where the file cannot be read: another daemon than the one that was meant would be found.
    """
    data = content(path)
    try:
        stated = document(path, _decoded(path, data))["daemon"]["runtime_directory"]
        return stated if _DIRECTORY.fullmatch(stated) else None
    except ConfigError:
        found = _STATED.search(data)
        return os.fsdecode(found[1]) if found else None
    except (KeyError, TypeError):
        return None


def content(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most so many bytes; raise ConfigError that says what is in the way."""
    try:
        return _read(path, most)
    except OSError as error:
        raise _refuse(path, _REASONS.get(error.errno or 0, f"cannot be read: {error.strerror}")) from None
    except ValueError:  # a NUL or a lone surrogate in the path, which Python keeps from the kernel
        raise _refuse(path, "cannot be read: no file has such a name") from None


def text(path: Path) -> str:
    """Read a file as text; raise ConfigError where it is none."""
    return _decoded(path, content(path))


def document(path: Path, text: str) -> dict[str, Any]:
    """Parse the text of a file; raise ConfigError where it is no TOML."""
    if excess := syntax.excess(text):
        line, reason = excess
        raise _refuse(path, reason, line)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, line = _place(str(error), text)
        raise _refuse(path, f"not valid TOML: {printable(reason, _LONGEST_REASON)}", line) from None
    except ValueError:  # int() refuses thousands of digits
        raise _refuse(path, "not valid TOML: a number has too many digits") from None


def prefix(path: Path, line: int | None) -> str:
    """Return what stands before a sentence about a line of the file, or about all of it."""
    name = printable(str(path), _LONGEST_PATH)
    return f"{name}: " if line is None else f"{name}:{line}: "


def _refuse(path: Path, reason: str, line: int | None = None) -> ConfigError:
    return ConfigError(prefix(path, line) + reason)


def _decoded(path: Path, content: bytes) -> str:
    if content.startswith(codecs.BOM_UTF8):
        raise _refuse(path, "starts with a byte-order mark; remove the byte-order mark", 1)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise _refuse(path, f"is not UTF-8 at byte {error.start}", line) from None
    if "\0" in text:
        raise _refuse(path, "holds a NUL byte", 1 + text.count("\n", 0, text.index("\0")))
    return text.replace("\r\n", "\n")


def _read(path: Path, most: int) -> bytes:
    # Without O_NONBLOCK, opening a pipe waits for a writer; without O_NOCTTY, a terminal becomes ours.
    fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind != stat.S_IFREG:
            raise _refuse(path, _KINDS[kind])
        data = b""
        while chunk := os.read(fd, most):
            data += chunk
            if len(data) > most:
                raise _refuse(path, f"is larger than {most // 1024} KiB")
        return data
    finally:
        os.close(fd)


def _place(message: str, text: str) -> tuple[str, int]:
    """Take the place out of tomllib's message, which is the only way in which it tells it."""
    place = _PLACE.search(message)
    last = 1 + text.rstrip("\n").count("\n")
    return _PLACE.sub("", message), int(place[1]) if place and place[1] else last
