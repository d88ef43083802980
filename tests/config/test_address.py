"""How addresses are read; what is refused stands in `tests/bad_configs.py`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.config.address import Address, parse_address, parse_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:10000", Address("localhost", 10000, literal=False)),
        ("Echo.Example.:7", Address("echo.example.", 7, literal=False)),
        ("7.example:7", Address("7.example", 7, literal=False)),
        ("a_b-c:0", Address("a_b-c", 0, literal=False)),
        ("127.0.0.1:65535", Address("127.0.0.1", 65535, literal=True)),
        ("0.0.0.0:007", Address("0.0.0.0", 7, literal=True)),
        ("[0:0::1]:7", Address("::1", 7, literal=True)),
        ("[FE80::1%eth0]:7", Address("fe80::1%eth0", 7, literal=True)),
    ],
)
def test_reads_names_and_literals(text: str, expected: Address) -> None:
    """A host is a name or an IP address, in one spelling, without brackets."""
    assert expected == parse_address(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("localhost:7", None), ("0.0.0.0:7", 4), ("[::1]:7", 6), ("[fe80::1%eth0]:7", 6)],
)
def test_tells_the_family_of_a_literal(text: str, expected: int | None) -> None:
    """A literal has an IP version; that of a name is not known before it is resolved."""
    ip = parse_address(text).ip

    assert expected == (ip.version if ip else None)


@given(st.text() | st.text("0123456789abx.:[]%-*", max_size=20))
def test_any_text_is_an_address_or_a_sentence(text: str) -> None:
    """Nothing but ValueError escapes, and the canonical spelling reads back as the same address."""
    try:
        address = parse_address(text)
    except ValueError:
        return

    assert address == parse_address(str(address))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("/run/a", "/run/a"), ("//run/./a", "/run/a"), ("/run/../a", "/run/../a"), ("@a//b", "@a//b")],
)
def test_a_path_has_one_spelling(text: str, expected: str) -> None:
    """What cannot change where it leads is left out; `..` may lead elsewhere over a link."""
    assert expected == parse_path(text)
