"""Fuzzing that follows what code an input reaches, in a process of its own, since atheris ends the one it runs in.

A target takes bytes and raises where something is wrong. `fuzz` tries it for a while, from given inputs on.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).parents[1]
LONGEST = 66_000  # bytes of an input: beyond what the loader reads
START_UP = 60


def fuzz(target: Callable[[bytes], None], inputs: Iterable[bytes], seconds: int, directory: Path) -> None:
    """Try a function of a test module with inputs grown from those given; fail with the one that made it raise."""
    if not importlib.util.find_spec("atheris"):
        pytest.skip("atheris is not installed: there is none for this platform")
    corpus = directory / "corpus"
    corpus.mkdir()
    for number, data in enumerate(inputs):
        (corpus / str(number)).write_bytes(data)
    name = f"{target.__module__}:{target.__name__}"
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-rss_limit_mb=1024", "-timeout=10", "-seed=1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, *options, f"-artifact_prefix={directory}/", corpus],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + START_UP,
        check=False,
    )
    said = done.stderr + done.stdout
    print(*[line for line in said.splitlines() if line.startswith(("Done", "stat::", "INFO: seed"))], sep="\n")  # noqa: T201
    assert done.returncode == 0, said[-4000:]
    assert "Done" in said  # else nothing was tried


def main() -> None:
    """Fuzz the target that is named first; the rest is for libFuzzer."""
    import atheris  # noqa: PLC0415  # not there on every platform

    module, _, name = sys.argv[1].partition(":")
    with atheris.instrument_imports(include=["echod"]):
        target = getattr(importlib.import_module(module), name)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
