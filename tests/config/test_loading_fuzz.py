"""Any bytes are a configuration or faults that are told in whole lines, and quickly."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod.config import dumping
from echod.config.loading import MOST_FAULTS, load
from echod.config.reading import MOST_BYTES, runtime_directory
from echod.config.syntax import MOST_MADE
from echod.errors import ConfigError
from tests.bad_configs import BAD_CONFIGS
from tests.fuzz import fuzz

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Size

FILE = Path(tempfile.gettempdir()) / f"echod-fuzz-{os.getpid()}.toml"
YARD = 700_000  # turns of an empty loop
MOST_YARDS = 8.0  # twice what the costliest file takes, on a machine that others slow down by turns
MOST_SECONDS = 0.1


def try_load(data: bytes) -> None:
    """Hold that a file of these bytes is taken, printed and taken again as the same, or refused line by line."""
    FILE.write_bytes(data)
    try:
        runtime_directory(FILE)
        config = load(FILE)
    except ConfigError as error:
        lines = str(error).split("\n")
        assert len(lines) <= MOST_FAULTS + 1
        assert all(line.startswith(f"{FILE}:") and line.isprintable() for line in lines)
    else:
        FILE.write_text(dumping.to_toml(config))
        assert config == load(FILE)
    finally:
        FILE.unlink()


def test_any_bytes_are_taken_or_refused(fuzz_seconds: int, tmp_path: Path) -> None:
    """Whatever a file holds, nothing but ConfigError comes of it.

    Catches a loader without a bound on nesting: a thousand brackets are a RecursionError.
    """
    bad = [content if isinstance(content, bytes) else content.encode() for content, _ in BAD_CONFIGS.values()]
    shipped = dumping.defaults_toml()
    inputs = [shipped.encode(), shipped.replace("# ", "").encode(), *bad, b"a = " + b"[" * 500]
    fuzz(try_load, inputs, fuzz_seconds, tmp_path)


def filled(unit: Callable[[int], str], head: str = "", tail: str = "", made: int = 0) -> str:
    """Return a file as large as one may be, of counted units of which each makes so many keys, tables and arrays."""
    room = (MOST_BYTES - len(head) - len(tail)) // len(unit(10_000))
    return head + "".join(map(unit, range(min(room, (MOST_MADE - 2) // made) if made else room))) + tail


COSTLY = {
    "unknown keys": filled("k{:05}=1\n".format, "[limits]\n", made=1),
    "quoted keys": filled('"\\u0061{:05}"=1\n'.format, made=1),
    "unknown tables": filled("[t{:05}]\n".format, made=1),
    "tables in tables": filled("[t{:05}.b]\n".format, made=2),
    "dotted keys": filled("a.b.c{:05}=1\n".format, made=3),
    "empty arrays": filled("a{:05}=[]\n".format, made=2),
    "empty tables": filled(lambda _: "{},", "listener=[", "]", made=1),
    "the longest key": ".".join("a" * (MOST_BYTES // 2 - 4)) + "=1",
    "nested": filled(lambda _: "[", "a="),
    "numbers": filled(lambda _: "1,", "[log]\nsuppress=[", "]"),
    "strings": filled(lambda _: '"a",', "[log]\nsuppress=[", "]"),
    "networks": filled(lambda n: f'"::{n + 4096:x}",', "[log]\nquiet=[", "]"),
    "listeners": filled(lambda _: "[[listener]]\n", made=2),
    "a hundred listeners": "".join(f'[[listener]]\nname="n{n}"\naddress="127.0.0.1:{n}"\n' for n in range(1, 101)),
    "a hundred listeners at one address": "".join(f'[[listener]]\nname="n{n}"\n' for n in range(100)),
    "comments": filled(lambda _: "#\n"),
    "lines": "\n" * MOST_BYTES,
    "a long string": '[daemon]\nuser="' + "u" * (MOST_BYTES - 20) + '"',
    "quotes": '"' * MOST_BYTES,
    "a text that ends in a backslash": filled(lambda _: '\n\\"""', '"""', "\\"),
}


@pytest.mark.alone
@pytest.mark.parametrize("text", COSTLY.values(), ids=COSTLY.keys())
def test_no_file_takes_long(text: str, tmp_path: Path, size: Size) -> None:
    """The costliest files there can be take less than 100 ms, as the least of five tries.

    That is for the long form. In the short one a loop is timed in between, and how often it would have gone meanwhile
    counts: a machine may be slow, or become so for a while.
    Catches key paths of any length: tomllib alone takes ten seconds for a key of 20,000 parts.
    """
    path = tmp_path / "echod.toml"
    path.write_text(text)
    assert len(text) <= MOST_BYTES
    took, yards = [], []
    for _ in range(5):
        yards.append(yard())
        began = time.process_time()
        with contextlib.suppress(ConfigError):
            load(path)
        took.append(time.process_time() - began)

    print(f"{min(took) * 1000:.1f} ms, {min(took) / min(yards):.2f} yards")  # noqa: T201
    assert min(took) <= (MOST_SECONDS if size(0, 1) else MOST_YARDS * min(yards))


def yard() -> float:
    """Return how many CPU seconds an empty loop takes just now."""
    began = time.process_time()
    for _ in range(YARD):
        pass
    return time.process_time() - began
