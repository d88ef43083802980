"""`python -m bench`: the bench. `python -m bench gate`, or `cost`: the gate, or the cost of log and metrics, alone."""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import alone, count, gate, report, servers
from bench.goals import GOALS
from bench.load import HERE, SCENARIOS, BenchError, Load, compiled
from bench.servers import BUSY, ECHOD, YARDSTICK

OWN = {ECHOD: "", BUSY: 'busy_poll = "1ms"'}
"""echod, and what its table [daemon] has beside the usual."""

TURNS = 20
"""Turns of a round: in each, every server has every scenario once."""


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure echod beside its peers.", allow_abbrev=False)
    parser.add_argument("what", nargs="?", choices=["all", "gate", "cost"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each server in each round and scenario")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="where the JSON file and the plot go")
    parser.add_argument("--record", action="store_true", help="keep the gate's figure as the best one")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="echod-bench-") as name:
            folder = Path(name)
            load = Load(compiled(HERE / "load.c", folder), max(os.sched_getaffinity(0)))
            if options.what == "gate":
                return gate.record(load) if options.record else gate.hold(load)
            if options.what == "cost":
                return cost(load)
            return everything(load, folder, options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def everything(load: Load, folder: Path, options: argparse.Namespace) -> int:
    """Measure, print and write all that there is to measure."""
    rounds = compare(load, folder, options.rounds, options.seconds)
    figures = against(rounds) | by_itself(load, options.seconds)
    about = {"interpreter": sys.version, "machine": platform.platform(), "cpu": cpu(), "cpus": str(os.cpu_count())}
    print(*(f"{key}: {' '.join(text.split())}" for key, text in about.items()), sep="\n")
    print("", report.table(rounds), "", *(goal.line(figures.get(goal.key)) for goal in GOALS), sep="\n")
    options.out.mkdir(parents=True, exist_ok=True)
    print("", f"written: {report.write(options.out, rounds, figures, about)}", sep="\n")
    drawn = report.plot(options.out, rounds)
    print(f"drawn: {drawn}" if drawn else "not drawn: there is no matplotlib")
    return 0


def cost(load: Load) -> int:
    """Print what a message on an open connection costs with log and metrics, and without."""
    how = count.means()
    if not how:
        raise BenchError("neither perf nor valgrind can count instructions here")
    plain = count.per_message(how, load, log='level = "error"')
    full = count.per_message(how, load, more='[admin]\naddress = "127.0.0.1:0"')
    print(f"{full:,.0f} instructions with the log at info and metrics, {plain:,.0f} without: {full / plain - 1:+.2%}")
    return 0


def compare(load: Load, folder: Path, times: int, seconds: float) -> report.Rounds:
    """Run all scenarios with all servers: all of them start anew each round, and take turns while they are up."""
    peers = servers.peers(folder)
    rounds: report.Rounds = {name: {scenario: [] for scenario in SCENARIOS} for name in [*OWN, *peers]}
    for number in range(times):
        print(f"round {number + 1} of {times}", file=sys.stderr)
        with ExitStack() as stack:
            up = {name: stack.enter_context(servers.echod("0", daemon=line)) for name, line in OWN.items()}
            for server in up.values():
                server.settle()
            up |= {name: stack.enter_context(servers.running(words, "0")) for name, words in peers.items()}
            for _ in range(TURNS):
                for title, scenario in SCENARIOS.items():
                    for name in random.sample(list(up), len(up)):
                        run = load.run(scenario, up[name].port, seconds=seconds / TURNS, pids=up[name].pids)
                        rounds[name][title].append(run)
    return rounds


def against(rounds: report.Rounds) -> dict[str, float]:
    """Return the figures that are ratios to a peer."""

    def ratio(base: str, scenario: str, of: str = "rate", name: str = ECHOD) -> float:
        return median(report.ratios(rounds, name, base, scenario, lambda run: float(getattr(run, of))))

    figures = {"round trip": ratio(YARDSTICK, "round trip", "p50"), "bulk": ratio(YARDSTICK, "bulk")}
    figures["busy round trip"] = ratio(YARDSTICK, "round trip", "p50", BUSY)
    if "uvloop" in rounds:
        figures["messages"] = ratio("uvloop", "messages")
        figures["messages cpu"] = ratio("uvloop", "messages", "thrift")
        figures["connections"] = ratio("uvloop", "connections")
    return figures


def by_itself(load: Load, seconds: float) -> dict[str, float]:
    """Return the figures that echod has without peers."""
    print("echod by itself", file=sys.stderr)
    figures = {"version": alone.version(), "start": alone.start(), "reload": alone.reload()}
    figures["connection bytes"], figures["rest"] = alone.memory()
    figures["growth"] = alone.growth(load, seconds)
    if how := count.means():
        print(f"instructions, by {how}", file=sys.stderr)
        figures["instructions"] = count.per_message(how, load)
        figures["two workers"] = count.per_message(how, load, workers=2) / figures["instructions"]
    return figures


def cpu() -> str:
    """Return what the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())
