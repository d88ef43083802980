"""One body for a short and a long form of a test.

A test that takes the fixture `size` is run in its short form by `pytest`, and in its long form by `pytest --storm`,
which runs these tests and no others.

Python's own variables are removed from the environment: PYTHONUNBUFFERED alone changes how output fails. A test that
needs one sets it for its own process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

for _name in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[_name]

Size: TypeAlias = "Callable[[int, int], int]"  # the type of the fixture `size`


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that make tests longer."""
    parser.addoption(
        "--storm", action="store_true", help="run the long form of the tests that have one, and only those"
    )
    parser.addoption(
        "--fuzz", type=int, default=60, help="seconds that --storm gives each kind of fuzzing (default 60)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has no long form, where long forms are asked for."""
    if config.getoption("--storm"):
        short = [item for item in items if "size" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=short)
        items[:] = [item for item in items if item not in set(short)]


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    """Choose between the number of the short form and that of the long one."""
    return lambda short, long: long if pytestconfig.getoption("--storm") else short


@pytest.fixture(scope="session")
def fuzz_seconds(size: Size, pytestconfig: pytest.Config) -> int:
    """How long a fuzzer looks for what breaks its target."""
    return size(1, int(pytestconfig.getoption("--fuzz")))
