"""The test suite's own footing."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("timing")
def test_groups_are_honoured(request: pytest.FixtureRequest) -> None:
    """Tests that measure run one by one: pytest-xdist has seen the group of this one, or there is nothing to group."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@timing")
