"""How the package is built: who may import whom, how long a function may be, and that nothing hides in a module."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest

import echod

ROOT = Path(echod.__file__).parent
ORDER = [{"errors", "events"}, {"config"}, {"core"}, {"net", "observe"}, {"process"}, {"cli"}, {"__main__"}]
"""Who comes later may import who came before; neighbours at one place may not import each other."""

IMPURE = {"socket", "select", "signal", "time", "os", "threading", "logging", "structlog", "subprocess"}
LONGEST_FUNCTION = 50

MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def parse(path: Path) -> ast.Module:
    """Return a module as the compiler sees it."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> set[str]:
    """Return the full name of everything that a module imports, wherever in it and for whatever purpose."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    """Return the room that a module stands in, or its name when it stands in none."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def place(name: str) -> int:
    """Return where in the order a room stands."""
    return next(index for index, names in enumerate(ORDER) if name in names)


def assigned(node: ast.stmt) -> list[tuple[str, ast.expr]]:
    """Return the names that a statement assigns, each with its value."""
    if isinstance(node, ast.Assign):
        return [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        return [(node.target.id, node.value)]
    return []


def is_mutable(value: ast.expr) -> bool:
    """Tell whether a value can be changed after the assignment, as far as its looks tell."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id in {"list", "dict", "set", "bytearray", "deque", "defaultdict", "Counter"}
    return isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def test_every_room_has_a_place() -> None:
    """Each room and module of the package stands somewhere in the order, and each name in the order exists."""
    assert set().union(*ORDER) == {room(path) for path in MODULES}
    assert all(not first & second for first, second in pairwise(ORDER))


@each_module
def test_imports_follow_the_order(path: Path) -> None:
    """A module imports from its own room and from those before it: never from a later one, nor from a neighbour."""
    own = room(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("echod.")} - {own}
    forbidden = {other for other in others if other in set().union(*ORDER) and place(other) >= place(own)}

    assert set() == forbidden


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=lambda path: path.name)
def test_the_core_is_pure(path: Path) -> None:
    """The core has neither sockets nor clocks, processes, threads or a log."""
    assert set() == {name.partition(".")[0] for name in imported(path)} & IMPURE


@each_module
def test_no_state_in_modules(path: Path) -> None:
    """A module holds no list, dict or set but constants, written in capitals; no function assigns a global."""
    tree = parse(path)
    mutable = [
        name for node in tree.body for name, value in assigned(node) if is_mutable(value) and name != name.upper()
    ]

    assert [] == mutable
    assert [] == [node.names for node in ast.walk(tree) if isinstance(node, ast.Global)]


@pytest.mark.parametrize("path", [ROOT / "__init__.py", *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_does(path: Path) -> None:
    """Each module opens with a docstring."""
    assert ast.get_docstring(parse(path))


@each_module
def test_functions_fit_on_a_screen(path: Path) -> None:
    """No function is longer than LONGEST_FUNCTION lines."""
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}

    assert {} == {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}
