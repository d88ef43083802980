"""Failures: their exit codes are an interface."""

from __future__ import annotations

import pytest

from echod.errors import ConfigError, EchodError, NotRunningError, StartError, UsageError


@pytest.mark.parametrize(
    ("kind", "code"), [(EchodError, 1), (StartError, 1), (UsageError, 2), (NotRunningError, 3), (ConfigError, 78)]
)
def test_each_kind_has_its_exit_code(kind: type[EchodError], code: int) -> None:
    """Scripts tell failures apart by these numbers; the sentences are kept one by one."""
    error = kind("one", "two")

    assert code == error.exit_code
    assert ("one", "two") == error.lines
    assert "one; two" == str(error)
