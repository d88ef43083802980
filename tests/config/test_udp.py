"""The table that keeps a UDP echo from being abused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from echod.config.udp import Udp


@pytest.mark.parametrize("ports", ["0", "53", "0-65535", "1024-1024"])
def test_ports_and_ranges(ports: str) -> None:
    """One port, or from one to another."""
    assert (ports,) == Udp.model_validate({"deny_source_ports": [ports]}).deny_source_ports


@pytest.mark.parametrize("ports", ["", "-", "1-", "-1", "65536", "2-1", "0-65536", "a", "1,2", " 1", "٣", "1-2-3"])
def test_what_is_no_range(ports: str) -> None:
    """Is refused in one sentence."""
    with pytest.raises(ValidationError, match="must be a port or a range of ports"):
        Udp.model_validate({"deny_source_ports": [ports]})
