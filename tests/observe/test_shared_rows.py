"""Shared rows: all processes read all of them, and each writes its own."""

from __future__ import annotations

import faulthandler
import mmap
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod.errors import StartError
from echod.observe.shared_rows import SharedRows
from tests.observe.processes import child, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

ROWS = 4


@pytest.fixture
def shared() -> Iterator[SharedRows]:
    """Make rows that forked processes do not inherit."""
    made = SharedRows("echod-test", ROWS, 10)
    made.keep_from_children()
    yield made
    os.close(made.fd)


def test_rows_start_on_pages_of_their_own(shared: SharedRows) -> None:
    """However few numbers a row has, no page holds two rows."""
    assert 0 == shared.stride * 8 % mmap.PAGESIZE
    assert ROWS * shared.stride == len(shared.cells)


def test_own_row_is_shared_with_the_supervisor(shared: SharedRows, stack: ExitStack) -> None:
    """What the owner counts is seen here, and it sees what stands in the other rows."""
    shared.cells[2 * shared.stride + 3] = 41

    def count() -> None:
        own = shared.own(1)
        own[0] = shared.cells[2 * shared.stride + 3] + 1

    assert 0 == status(child(stack, count))
    assert 42 == shared.cells[shared.stride]


def test_other_rows_are_read_only(shared: SharedRows, stack: ExitStack) -> None:
    """Python refuses to write to them."""

    def write() -> None:
        shared.own(1)
        with pytest.raises(TypeError):
            shared.cells[0] = 1

    assert 0 == status(child(stack, write))
    assert 0 == shared.cells[0]


def test_kernel_lets_a_worker_write_to_its_own_row_only(shared: SharedRows, stack: ExitStack) -> None:
    """Of all its mappings of the memory one is writable, and it is one row long."""
    told, tell = os.pipe()

    def look() -> None:
        own = shared.own(1)
        maps = Path("/proc/self/maps").read_text(encoding="ascii").splitlines(keepends=True)
        os.write(tell, "".join(line for line in maps if "echod-test" in line).encode())
        own.release()

    assert 0 == status(child(stack, look))
    os.close(tell)
    with os.fdopen(told) as pipe:
        mappings = [line.split() for line in pipe]
    sizes = {mode: int(end, 16) - int(start, 16) for where, mode, *_ in mappings for start, end in [where.split("-")]}

    assert {"r--s": ROWS * shared.stride * 8, "rw-s": shared.stride * 8} == sizes


def test_memory_is_out_of_reach_before_a_row_is_owned(shared: SharedRows, stack: ExitStack) -> None:
    """A forked process does not inherit the supervisor's mapping, through which it could write to every row."""

    def write() -> None:
        faulthandler.disable()  # what follows is meant
        shared.cells[0] = 1

    assert -signal.SIGSEGV == status(child(stack, write))


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_size_cannot_be_changed(shared: SharedRows, size: int) -> None:
    """A memfd cut short would raise SIGBUS in whoever reads a number."""
    with pytest.raises(PermissionError):
        os.ftruncate(shared.fd, size)


def test_clear(shared: SharedRows) -> None:
    """All numbers of the row are 0 again, and its neighbours stay."""
    for number in range(len(shared.cells)):
        shared.cells[number] = 7
    shared.clear(1)

    assert {0} == set(shared.cells[shared.stride : 2 * shared.stride].tolist())
    assert {7} == set(shared.cells[: shared.stride].tolist() + shared.cells[2 * shared.stride :].tolist())


def test_limit_of_file_sizes_is_not_in_the_way(request: pytest.FixtureRequest) -> None:
    """A soft limit of files on disks (ulimit -S -f) does not keep echod from starting, and is as it was afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    os.close(SharedRows("echod-test", ROWS, 10).fd)

    assert (0, hard) == resource.getrlimit(resource.RLIMIT_FSIZE)


def test_memory_that_is_denied_is_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what is missing."""

    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    denied: Callable[..., None] = fail
    monkeypatch.setattr(os, "memfd_create", denied)
    with pytest.raises(StartError, match=r"^no shared memory for the workers: Cannot allocate memory$"):
        SharedRows("echod-test", ROWS, 10)
