"""Descriptors: what a process has inherited, put in order."""

from __future__ import annotations

import os
import subprocess
import sys

MISSING = """
import os, sys
from echod.process import descriptors
for fd in map(int, sys.argv[2:]):
    os.close(fd)
sys.stdin = sys.stdout = sys.stderr = None
descriptors.open_standard_streams()
found = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]
os.write(int(sys.argv[1]), repr([found, [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)]]).encode())
"""

CLOSING = """
import os
from echod.process import descriptors
kept, closed = os.pipe()
descriptors.close_all_but({0, 1, 2, kept})
print([fd == kept for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}")], flush=True)
"""


def run(program: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> str:
    """Run `program` in an interpreter of its own and return what it printed."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, pass_fds=pass_fds, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def test_missing_standard_streams_are_opened() -> None:
    """Whichever of 0 to 2 is closed becomes /dev/null, and the interpreter has a stream on each of them again."""
    reader, writer = os.pipe()
    run(MISSING, str(writer), "0", "1", "2", pass_fds=(writer,))
    os.close(writer)
    said = os.read(reader, 1000).decode()
    os.close(reader)

    assert repr([["/dev/null"] * 3, [0, 1, 2]]) == said


def test_present_standard_streams_are_left_alone() -> None:
    """What is open stays what it is."""
    reader, writer = os.pipe()
    run(MISSING, str(writer), "0", pass_fds=(writer,))
    os.close(writer)
    said = os.read(reader, 1000).decode()
    os.close(reader)

    assert said.startswith("[['/dev/null', 'pipe:")


def test_everything_else_is_closed() -> None:
    """Of all that a process has open, only what is named stays."""
    assert "[True]\n" == run(CLOSING)
