"""The table of TLS: what goes together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from echod.config.tls import MOST_PROTOCOLS, Tls

ON = {"enabled": True, "certificate": "/c.pem"}


def test_off_is_the_default() -> None:
    """Nobody speaks TLS who was not asked to."""
    assert not Tls().enabled


def test_it_needs_no_more_than_a_certificate() -> None:
    """The key may be in the same file; clients need none."""
    tls = Tls.model_validate(ON)

    assert ("", "", (), "1.2", 10.0) == (tls.key, tls.client_ca, tls.alpn, tls.minimum_version, tls.timeout)


@pytest.mark.parametrize(
    "keys",
    [
        {"enabled": True},
        {"certificate": "/c.pem"},
        {"client_ca": "/c.pem"},
        ON | {"timeout": "0s"},
        ON | {"key": "relative"},
        ON | {"minimum_version": "1.1"},
        ON | {"alpn": [""]},
        ON | {"alpn": ["a b"]},
        ON | {"alpn": ["a"] * (MOST_PROTOCOLS + 1)},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(keys: dict[str, object]) -> None:
    """TLS without a certificate, files that nobody reads, a handshake that may take for ever."""
    with pytest.raises(ValidationError):
        Tls.model_validate(keys)
