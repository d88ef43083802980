"""The test suite's own footing."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("footing")
def test_groups_are_honoured(request: pytest.FixtureRequest) -> None:
    """Tests that belong together stay so: pytest-xdist has seen the group of this one, or there is nothing to group."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@footing")
