"""Where things stand in TOML text."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from echod.config.syntax import MOST_MADE, MOST_NESTED, MOST_PARTS, Path, excess, line_of, locate, statements

SAMPLE = '''\
# a comment with [brackets] and "quotes
top = 1
a.b = { c = 1, d.e = [2] }

  [log]   # a table
  "level" = """
[not.a.table]
x = 1
"""
suppress = [
    "a]", # a comment ]
    '["b',
]
after = \'\'\'one line\'\'\'
[[listener]]
[[listener]]
name = 'x'
tls.key = 1
[listener.more]
deep = true
[[listener]]
name = "y"
'''


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("top",), 2),
        (("a",), 3),
        (("a", "b", "c"), 3),
        (("a", "b", "d", "e"), 3),
        (("log",), 5),
        (("log", "level"), 6),
        (("log", "suppress"), 10),
        (("log", "suppress", 1), 10),
        (("log", "after"), 14),
        (("listener",), 15),
        (("listener", 0), 15),
        (("listener", 1), 16),
        (("listener", 1, "name"), 17),
        (("listener", 1, "tls", "key"), 18),
        (("listener", 1, "more"), 19),
        (("listener", 1, "more", "deep"), 20),
        (("listener", 2, "name"), 22),
        (("log", "missing"), 5),
        (("listener", 2, "missing", "deeper"), 21),
        (("missing",), None),
        ((), None),
    ],
)
def test_finds_the_line_of_a_path(path: Path, expected: int | None) -> None:
    """A key is found where its statement starts, a missing one where its table does."""
    assert expected == line_of(path, locate(SAMPLE))


def test_cuts_text_into_statements() -> None:
    """Comments and empty lines are none; strings and arrays may go on for lines."""
    assert [(2, "a = 1 # one"), (4, "b = [\n  ']',\n]"), (7, "[c]")] == list(
        statements("\na = 1 # one\n# two\nb = [\n  ']',\n]\n[c]")
    )


MANY = f"there are more than {MOST_MADE} keys, tables and arrays"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SAMPLE, None),
        (".".join("a" * MOST_PARTS) + " = 1", None),
        ("\na = {" + " . ".join(["'x'", '"y"'] * MOST_PARTS) + " = 1}", (2, f"a key has more than {MOST_PARTS} parts")),
        ("#" + ".".join("a" * 99), None),
        ('a = "' + ".".join("a" * 99) + '"', None),
        ('a = """\n' + ".".join("a" * 99) + '"""', None),
        ("a = " + "[" * MOST_NESTED + "]" * MOST_NESTED, None),
        ("a = '''" + "[" * 99 + "'''", None),
        pytest.param("a = 1\n" * MOST_MADE, None, id="as many keys as may be"),
        pytest.param("a = [" + "'1.2.3.4', " * MOST_MADE + "]", None, id="many strings"),
        pytest.param("# =\n" + "a = 1\n" * (MOST_MADE + 1), (MOST_MADE + 2, MANY), id="too many keys"),
        pytest.param("[a.b.c]\n" * (MOST_MADE // 3 + 1), (MOST_MADE // 3 + 1, MANY), id="too many tables"),
        pytest.param("a.b = {}\n" * (MOST_MADE // 3 + 1), (MOST_MADE // 3 + 1, MANY), id="too many inline tables"),
        ("\na = [\n" + "[" * 99, (3, f"brackets are nested more than {MOST_NESTED} deep")),
    ],
)
def test_finds_what_would_cost_tomllib_too_much(text: str, expected: tuple[int, str] | None) -> None:
    """Only keys and brackets count, not what merely looks like them in a string or a comment."""
    assert expected == excess(text)


KEYS = st.sampled_from(
    ["a", "b", "'c'", '"a.b"', '"\\u0061"', '"\\U00000062"', '"\u00e9 \u20ac\\t\\\\"', "a.b", "a . 'd'"]
)
VALUES = st.sampled_from(
    [
        *("1", "1.5", "2024-01-01 07:00:00", '"#"', "'[['", '"\\""', "{}", "{ a.b = 1, b = [{ c = 2 }] }", '""""""'),
        *(
            '"""\n[a]\n"""',
            '"""a\\"""\n""""',
            "'''\n'a\n'''''",
            "[ # ]\n 1,\n\n]",
            '[[], [\'"""\'],\n]',
            '"""\\\n  a"""',
        ),
    ]
)
STATEMENTS = st.one_of(
    st.sampled_from(["", "# a = [", "  "]),
    st.builds("[{}] # [".format, KEYS),
    st.builds("[[{}]]".format, KEYS),
    st.builds("  {} = {} # ]".format, KEYS, VALUES),
    st.builds("{}={}".format, KEYS, VALUES),
)


DEEPEST = 5  # no fault lies deeper: listener, its index, a table of its own, a key, an item


def paths(node: Any, path: Path = ()) -> set[Path]:
    """Collect every path of a document, as deep as a fault can lie."""
    found = {path} if path else set()
    if len(path) < DEEPEST and isinstance(node, dict | list):
        for part, inner in node.items() if isinstance(node, dict) else enumerate(node):
            found |= paths(inner, (*path, part))
    return found


def parsed(text: str) -> set[Path] | None:
    """Collect the paths of a text, None where it is not TOML."""
    try:
        return paths(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return None


@given(st.lists(STATEMENTS, max_size=12).map("\n".join))
def test_finds_every_path_where_it_first_appears(text: str) -> None:
    """A path's statement starts after the longest valid beginning of the text that lacks it."""
    every = parsed(text)
    assume(every is not None)
    lines = text.split("\n")
    expected: dict[Path, int] = {}
    valid = 0
    for count in range(1, len(lines) + 1):
        known = parsed("\n".join(lines[:count]))
        if known is not None:
            for path in known - expected.keys():
                expected[path] = valid + 1
            valid = count

    found = locate(text)

    assert {path for path in found if len(path) <= DEEPEST} <= expected.keys()
    assert expected == {path: line_of(path, found) for path in expected}
