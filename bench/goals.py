"""What is to be reached, with everything on: info log, limits, counters, a supervisor and one worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LARGE = 100
"""Above it a figure is written without decimals."""


@dataclass(frozen=True)
class Goal:
    """One figure and its bound."""

    key: str
    text: str
    bound: float
    side: Literal["at most", "at least"] = "at most"

    def met(self, figure: float) -> bool:
        """Tell whether `figure` is on the right side."""
        return figure <= self.bound if self.side == "at most" else figure >= self.bound

    def line(self, figure: float | None) -> str:
        """Return the goal, what is measured and how far that is away, in a line."""
        if figure is None:
            return f"   ?  {self.text}: not measured, goal {self.side} {self.bound:g}"
        word = "met" if self.met(figure) else "OFF"
        said = f"{figure:,.0f}" if self.bound > LARGE else f"{figure:.3g}"
        return f" {word}  {self.text}: {said}, goal {self.side} {self.bound:g} ({figure / self.bound - 1:+.0%})"


GOALS = (
    Goal("instructions", "user instructions for a message of 64 bytes, 100 connections", 6500),
    Goal("messages", "messages a second, against uvloop", 1.0, "at least"),
    Goal("messages cpu", "messages for each CPU second, against uvloop", 1.0, "at least"),
    Goal("round trip", "round trip of one connection, p50, against C epoll", 1.05),
    Goal("busy round trip", "the same with busy_poll", 1.0),
    Goal("bulk", "bulk, 64 KiB messages, against C epoll", 0.95, "at least"),
    Goal("connections", "connections opened, used and closed, against uvloop", 0.75, "at least"),
    Goal("growth", "messages for each CPU second beside 9,000 idle connections, against none", 0.95, "at least"),
    Goal("connection bytes", "bytes of an idle connection", 2048),
    Goal("rest", "MiB of supervisor and worker at rest, shared pages once", 60),
    Goal("start", "seconds from `echod run` to the first connect", 0.5),
    Goal("version", "seconds of `echod --version`", 0.1),
    Goal("reload", "seconds from HUP to reload.completed", 0.1),
    Goal("two workers", "instructions for a message with two workers, against one", 1.05),
)
