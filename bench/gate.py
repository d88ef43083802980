"""Hold the instructions of a message against the best figure that was recorded for this interpreter: `make bench-gate`.

A figure that is more than 5 % above the best fails. One that is better is to be recorded, by `RECORD=1`, with the
change that has made it so. Where nothing can count, or no figure was ever recorded, the gate is skipped and says why.
"""

from __future__ import annotations

import json

from bench import count
from bench.goals import GOALS
from bench.load import HERE, BenchError, Load

BEST = HERE / "best.json"
SLACK = 1.05


def hold(load: Load) -> int:
    """Measure, say how far the goal is, and return the exit code."""
    measured = _measure(load)
    if not measured:
        print("bench-gate: skipped: neither perf nor valgrind can count instructions here")
        return 0
    key, figure = measured
    best = _best()
    if key not in best:
        print("bench-gate: skipped: no figure was ever recorded for this interpreter; RECORD=1 does that")
        return 0
    return verdict(figure, best[key])


def record(load: Load) -> int:
    """Measure, keep the figure as the best one, and return the exit code."""
    measured = _measure(load)
    if not measured:
        raise BenchError("neither perf nor valgrind can count instructions here")
    key, figure = measured
    best = _best() | {key: round(figure)}
    BEST.write_text(json.dumps(best, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print("bench-gate: recorded")
    return 0


def verdict(figure: float, best: float) -> int:
    """Say whether `figure` is good enough beside the `best`; return the exit code."""
    ratio = figure / best
    word = "ok" if ratio <= SLACK else "FAILED"
    print(f"bench-gate: {word}: {figure:,.0f} instructions, {ratio - 1:+.1%} of the best, {best:,.0f}; 5 % are allowed")
    return 0 if ratio <= SLACK else 1


def _measure(load: Load) -> tuple[str, float] | None:
    """Return what the figure depends on, and the figure; None where nothing can count."""
    how = count.means()
    if not how:
        return None
    key, figure = count.interpreter(how), count.per_message(how, load)
    print(GOALS[0].line(figure), f"[{key}]")
    return key, figure


def _best() -> dict[str, float]:
    best: dict[str, float] = json.loads(BEST.read_text(encoding="utf-8"))
    return best
