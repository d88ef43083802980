"""Reads TOML as text, where tomllib keeps no lines and knows no bounds.

Rule: every scan is linear in the text, whatever it holds. Nothing here judges a value; tomllib has the last word on
what is TOML.
"""

import re
from collections.abc import Iterator

Path = tuple[str | int, ...]

MOST_PARTS = 16  # the model needs 2; 20,000 of them cost tomllib ten seconds
MOST_MADE = 6000  # a hundred listeners with all their keys are 4,900; each of them costs tomllib and pydantic 14 us
MOST_NESTED = 32  # the model needs 2; 1,000 of them are a RecursionError
# Nothing is given back, and an unterminated string ends with its line or with the text: nothing is scanned twice.
# A group is atomic, not possessive: a possessive one goes wrong before 3.11.5 (python/cpython issue 100061).
_PART = r"""(?:[A-Za-z0-9_-]++|"(?>(?:[^"\\\n]++|\\.)*)"?|'[^'\n]*+'?)"""
_DOTTED = rf"{_PART}(?>(?:[ \t]*+\.[ \t]*+{_PART})*)"
_TOKEN = re.compile(
    r'(?P<text>"""(?>(?:[^"\\]++|\\.|"{1,2}(?!"))*)(?:"{3,5}|\\?\Z)|' + r"'''(?>(?:[^']++|'{1,2}(?!'))*)(?:'{3,5}|\Z))"
    rf"|(?P<comment>\#[^\n]*+)|(?>(?:[0-9]++,)+)|(?P<key>{_DOTTED})"  # many numbers are one token, for speed
    r"|(?P<open>[\[{])|(?P<close>[\]}])|(?P<equals>=)|(?P<end>\n)|[ \t,.]++|[^\n]",
    re.DOTALL,
)

_KEY = re.compile(_DOTTED)


def excess(text: str) -> tuple[int, str] | None:
    """Find the first thing that no model needs and that costs tomllib its time or its stack: (line, what it is)."""
    depth = made = 0
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        depth += (kind == "open") - (kind == "close")
        if depth > MOST_NESTED:
            return _line(text, token), f"brackets are nested more than {MOST_NESTED} deep"
        parts = len(re.findall(_PART, token[0])) if kind == "key" and "." in token[0] else 1
        if parts > MOST_PARTS:
            return _line(text, token), f"a key has more than {MOST_PARTS} parts"
        made += (kind == "open" or kind == "equals") + parts - 1  # noqa: PLR1714  # a set is slower here
        if made > MOST_MADE:
            return _line(text, token), f"there are more than {MOST_MADE} keys, tables and arrays"
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
    """Map the path of each statement of valid TOML, and of its tables, to the line where that starts.

    What lies within a value is not there: `line_of` finds it where its statement is. Values are not read again.
    """
    lines: dict[Path, int] = {}
    table: Path = ()
    newest: dict[Path, int] = {}
    for line, source in statements(text):
        if source.lstrip().startswith("["):
            path = table = _enter(source.lstrip(), newest)
        else:
            path = table + _key(source)
        for length in range(1, len(path) + 1):
            lines.setdefault(path[:length], line)
    return lines


def line_of(path: Path, lines: dict[Path, int]) -> int | None:
    """Look a path up; what is not in the file is found where its table is."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _line(text: str, token: re.Match[str]) -> int:
    return 1 + text.count("\n", 0, token.start())


def _enter(header: str, newest: dict[Path, int]) -> Path:
    """Resolve a table header to its path, in which arrays of tables have the index of their newest table."""
    path: Path = ()
    for part in _key(header):
        path = (*_inside(path, newest), part)
    if header.startswith("[["):
        newest[path] = newest.get(path, -1) + 1
    return _inside(path, newest)


def _inside(path: Path, newest: dict[Path, int]) -> Path:
    return (*path, newest[path]) if path in newest else path


def _key(statement: str) -> Path:
    """Take the key of a statement apart."""
    found = _KEY.search(statement)
    assert found is not None  # noqa: S101  # tomllib has found one
    return tuple(_unquoted(part[0]) for part in re.finditer(_PART, found[0]))


def _unquoted(part: str) -> str:
    if part.startswith('"'):
        # TOML has no other escapes than Python; what is not Latin-1 is escaped too, and comes back with them.
        return part[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")
    return part.strip("'")
