"""Reads TOML as text, where tomllib keeps no lines and knows no bounds.

Rule: every scan is linear in the text, whatever it holds. Nothing here judges a value; tomllib has the last word on
what is TOML.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]

MOST_PARTS = 16  # the model needs 2; 20,000 of them cost tomllib ten seconds
MOST_NESTED = 32  # the model needs 2; 1,000 of them are a RecursionError
_DEEPEST = 5  # no fault lies deeper: listener, its index, a table of its own, a key, an item

# Possessive throughout, and an unterminated string ends with its line or with the text: nothing is scanned twice.
_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]++|\\.)*+"?|'[^'\n]*+'?)"""
_TOKEN = re.compile(
    r'(?P<text>"""(?:[^"\\]++|\\.|"{1,2}(?!"))*+(?:"{3,5}|\Z)|' + r"'''(?:[^']++|'{1,2}(?!'))*+(?:'{3,5}|\Z))"
    rf"|(?P<comment>\#[^\n]*+)|(?P<key>{_PART}(?:[ \t]*+\.[ \t]*+{_PART})*+)"
    r"|(?P<open>[\[{])|(?P<close>[\]}])|(?P<end>\n)|[ \t=,.]++|[^\n]",
    re.DOTALL,
)


def excess(text: str) -> tuple[int, str] | None:
    """Find the first thing that no model needs and that costs tomllib its time or its stack: (line, what it is)."""
    depth = 0
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        depth += (kind == "open") - (kind == "close")
        if depth > MOST_NESTED:
            return _line(text, token), f"brackets are nested more than {MOST_NESTED} deep"
        if kind == "key" and token[0].count(".") >= MOST_PARTS and len(re.findall(_PART, token[0])) > MOST_PARTS:
            return _line(text, token), f"a key has more than {MOST_PARTS} parts"
    return None


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Cut valid TOML into its statements, each with the line it starts on."""
    line, depth, start, code = 1, 0, 0, False
    for token in _TOKEN.finditer(text + "\n"):
        kind = token.lastgroup
        code = code or kind in {"key", "open"}
        depth += (kind == "open") - (kind == "close")
        if kind == "end" and depth == 0:
            source = text[start : token.start()]
            if code:
                yield line, source
            line += source.count("\n") + 1
            start, code = token.end(), False


def locate(text: str) -> dict[Path, int]:
    """Map the path of each key and table of valid TOML to the line where its statement starts."""
    lines: dict[Path, int] = {}
    table: Path = ()
    newest: dict[Path, int] = {}
    for line, source in statements(text):
        document = tomllib.loads(source)
        if source.lstrip().startswith("["):
            table = _enter(document, newest)
            for length in range(1, len(table) + 1):
                lines.setdefault(table[:length], line)
        else:
            _note(document, table, line, lines)
    return lines


def line_of(path: Path, lines: dict[Path, int]) -> int | None:
    """Look a path up; what is not in the file is found where its table is."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _line(text: str, token: re.Match[str]) -> int:
    return 1 + text.count("\n", 0, token.start())


def _enter(header: dict[str, Any], newest: dict[Path, int]) -> Path:
    """Resolve a table header to its path, in which arrays of tables have the index of their newest table."""
    path: Path = ()
    node: Any = header
    while node:
        ((name, node),) = node.items()
        path += (name,)
        if isinstance(node, list):
            newest[path] = newest.get(path, -1) + 1
            node = None
        if path in newest:
            path += (newest[path],)
    return path


def _note(node: Any, path: Path, line: int, lines: dict[Path, int]) -> None:
    if path:
        lines.setdefault(path, line)
    if len(path) < _DEEPEST and isinstance(node, dict | list):
        for part, inner in node.items() if isinstance(node, dict) else enumerate(node):
            _note(inner, (*path, part), line, lines)
