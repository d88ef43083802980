"""The checksum, against what the RFCs print and against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.core.crc32c import crc32c
from tests.core.headers import checksum


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value in every catalogue of CRCs
        (bytes(32), 0x8A9136AA),  # this one and the following: RFC 3720 §B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_known_sums(data: bytes, expected: int) -> None:
    """The sums are those that the RFC prints."""
    assert expected == crc32c(data)


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    """The table gives what division bit by bit gives."""
    assert checksum(data) == crc32c(data)
