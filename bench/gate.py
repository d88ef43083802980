"""Hold the instructions of a message against the best figure that was recorded for this interpreter: `make bench-gate`.

A figure that is more than 5 % above the best fails. One that is better is to be recorded, by `RECORD=1`, with the
change that has made it so. Where nothing can count, or no figure was ever recorded, the gate is skipped and says why.
"""

from __future__ import annotations

import json

from bench import count
from bench.goals import GOALS
from bench.load import HERE, Load

BEST = HERE / "best.json"
SLACK = 1.05


def hold(load: Load, *, record: bool) -> int:
    """Measure, say how far the goal is, and return the exit code."""
    how = count.means()
    if not how:
        print("bench-gate: skipped: neither perf nor valgrind can count instructions here")
        return 0
    figure = count.per_message(how, load)
    key = count.interpreter(how)
    print(GOALS[0].line(figure), f"[{key}]")
    best: dict[str, float] = json.loads(BEST.read_text(encoding="utf-8"))
    if record:
        best[key] = round(figure)
        BEST.write_text(json.dumps(best, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        print("bench-gate: recorded")
        return 0
    if key not in best:
        print("bench-gate: skipped: no figure was ever recorded for this interpreter; RECORD=1 does that")
        return 0
    return verdict(figure, best[key])


def verdict(figure: float, best: float) -> int:
    """Say whether `figure` is good enough beside the `best`; return the exit code."""
    ratio = figure / best
    word = "ok" if ratio <= SLACK else "FAILED"
    print(f"bench-gate: {word}: {figure:,.0f} instructions, {ratio - 1:+.1%} of the best, {best:,.0f}; 5 % are allowed")
    return 0 if ratio <= SLACK else 1
