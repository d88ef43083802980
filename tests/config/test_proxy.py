"""The table of the PROXY protocol: what goes together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from echod.config.proxy import ProxyProtocol


def test_off_is_the_default() -> None:
    """A header is never guessed."""
    assert (False, (), 5.0) == tuple(dict(ProxyProtocol()).values())


@pytest.mark.parametrize(
    "keys", [{"enabled": True, "timeout": "0s"}, {"trusted": ["::/0"]}, {"enabled": False, "trusted": ["::/0"]}]
)
def test_what_makes_no_sense_is_refused(keys: dict[str, object]) -> None:
    """A header that may take for ever, and trust in somebody who is not asked."""
    with pytest.raises(ValidationError):
        ProxyProtocol.model_validate(keys)
