"""The table, the JSON file and the plot."""

from __future__ import annotations

import json
from functools import partial
from statistics import median, quantiles
from typing import TYPE_CHECKING

from bench.load import SCENARIOS
from bench.servers import YARDSTICK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.load import Run

Rounds = dict[str, dict[str, list["Run"]]]
"""Runs of all turns of all rounds, by server and scenario."""

FORKING = {"socat"}
"""Their work is done by processes that come and go, whose CPU time nobody adds up."""

UNITS = {"messages": 1.0, "round trip": 1.0, "bulk": 64 / 1024, "connections": 1.0}
"""What a message counts for: of the bulk, its MiB."""


def figure(scenario: str, run: Run) -> float:
    """Return what counts in a scenario: the round trip in microseconds, else so many a second."""
    return run.p50 if scenario == "round trip" else run.rate * UNITS[scenario]


def ratios(rounds: Rounds, server: str, base: str, scenario: str, of: Callable[[Run], float]) -> list[float]:
    """Return what `server` makes of it against `base`, turn by turn."""
    pairs = zip(rounds[server][scenario], rounds[base][scenario], strict=True)
    return [of(own) / of(other) for own, other in pairs if of(other)]


def table(rounds: Rounds) -> str:
    """Return all servers against the yardstick, a block for each scenario."""
    lines = []
    for scenario in SCENARIOS:
        what = {"round trip": "p50, µs", "bulk": "MiB/s"}.get(scenario, "a second")
        heads = f"against {YARDSTICK} (quartiles)   for each CPU second   load at work"
        lines += ["", f"{scenario:12}{what:>12}   {heads}"]
        for server, runs in rounds.items():
            found = ratios(rounds, server, YARDSTICK, scenario, partial(figure, scenario))
            ways = ratios(rounds, server, YARDSTICK, scenario, lambda run: run.thrift)
            thrift = f"{median(ways):.2f}" if server not in FORKING else "-"
            absolute = median(figure(scenario, run) for run in runs[scenario])
            low, middle, high = quantiles(found, n=4)
            share = median(run.share for run in runs[scenario])
            lines.append(
                f"{server:12}{absolute:12,.1f}   {middle:12.2f} ({low:.2f}, {high:.2f}){thrift:>21}{share:22.0%}"
            )
    return "\n".join(lines[1:])


def write(folder: Path, rounds: Rounds, figures: dict[str, float], about: dict[str, str]) -> Path:
    """Write everything that was measured as JSON."""
    runs = {
        server: {name: [vars(run) for run in found] for name, found in scenarios.items()}
        for server, scenarios in rounds.items()
    }
    path = folder / "bench.json"
    path.write_text(json.dumps({"about": about, "figures": figures, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    return path


def plot(folder: Path, rounds: Rounds) -> Path | None:
    """Draw the ratios; None without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # only who draws needs it
    except ImportError:
        return None
    drawing = Figure(figsize=(11, 7), layout="tight")
    for axes, scenario in zip(drawing.subplots(2, 2).flat, SCENARIOS, strict=True):
        quarters = [
            quantiles(ratios(rounds, server, YARDSTICK, scenario, partial(figure, scenario)), n=4) for server in rounds
        ]
        middles = [middle for _, middle, _ in quarters]
        below = [middle - low for low, middle, _ in quarters]
        above = [high - middle for _, middle, high in quarters]
        colours = ["tab:orange" if server == "echod" else "tab:gray" for server in rounds]
        axes.barh(list(rounds), middles, xerr=[below, above], color=colours, capsize=3)
        axes.axvline(1, color="black", linewidth=0.5)
        axes.invert_yaxis()
        better = "less is better" if scenario == "round trip" else "more is better"
        axes.set_title(f"{scenario}, against {YARDSTICK}: {better}")
    path = folder / "bench.png"
    drawing.savefig(path, dpi=120)
    return path
