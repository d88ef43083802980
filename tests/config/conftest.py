"""A file for each module of tests, and how what is read of one is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from echod.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a path to write files to."""
    return tmp_path_factory.mktemp("config") / "echod.toml"


def refused(read: Callable[[Path], object], path: Path) -> list[str]:
    """Read a file that must be refused; the lines without its name, each proven to be one."""
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert all(line.startswith(f"{path}:") and line.isprintable() for line in caught.value.lines)
    return [line.removeprefix(str(path)) for line in caught.value.lines]
