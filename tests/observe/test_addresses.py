"""Connections of each address: exact over all rows, bounded, and forgotten with a dead worker."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from echod.observe import addresses
from echod.observe.addresses import WAYS, AddressTable

ROWS = 4
SEED = 64


@pytest.fixture
def table() -> AddressTable:
    """Make an empty table."""
    return AddressTable(ROWS)


def same_set(count: int) -> list[int]:
    """Return so many keys that share a set."""
    wanted = addresses._place(0, 1)
    found = [key for key in range(1, 400_000) if addresses._place(0, key) == wanted]
    assert len(found) >= count
    return found[:count]


def test_counts_are_those_of_a_counter(table: AddressTable) -> None:
    """A hundred thousand random comings and goings over all rows leave exactly what was not taken back."""
    print(f"seed {SEED}")  # noqa: T201
    dice = random.Random(SEED)
    keys = [dice.getrandbits(64) or 1 for _ in range(3000)]
    inside: list[tuple[int, int]] = []
    for _ in range(100_000):
        if inside and dice.random() < 0.45:
            row, key = inside.pop(dice.randrange(len(inside)))
            table.leave(row, key)
        else:
            row, key = dice.randrange(ROWS), dice.choice(keys)
            assert table.enter(row, key)
            inside.append((row, key))
    expected = Counter(key for _, key in inside)

    assert {key: expected[key] for key in keys} == {key: table.total(key, ROWS) for key in keys}


def test_a_set_holds_so_many_and_no_more(table: AddressTable) -> None:
    """One address more finds no place, the others stay exact; a place is free once its last connection has ended."""
    *keys, last = same_set(WAYS + 1)
    assert [True] * WAYS == [table.enter(1, key) for key in keys]
    assert table.enter(1, keys[0])
    assert not table.enter(1, last)
    assert table.enter(2, last)
    table.leave(1, keys[3])

    assert table.enter(1, last)
    assert [2, 1, 1, 0, 1] == [table.total(key, ROWS) for key in keys[:5]]
    assert 2 == table.total(last, ROWS)


def test_a_dead_row_is_forgotten(table: AddressTable) -> None:
    """Its connections count no more, those of the other rows still do."""
    for row in range(ROWS):
        table.enter(row, 7)
        table.enter(row, 2**64 - 1)
    table.clear(2)

    assert (3, 3) == (table.total(7, ROWS), table.total(2**64 - 1, ROWS))
    assert table.enter(2, 7)
    assert 4 == table.total(7, ROWS)


def test_an_empty_table_takes_no_memory() -> None:
    """Nor does one that was cleared: only sets that are in use have pages."""

    def shared() -> int:
        rows = Path("/proc/self/status").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith("RssShmem"))

    before = shared()
    table = AddressTable(256)
    assert shared() - before <= 64
    for key in range(1, 5000):
        table.enter(200, key)
    used = shared() - before
    table.clear(200)

    assert 64 < used <= 600
    assert shared() - before <= 64
