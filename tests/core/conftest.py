"""The core decides and does nothing else: its tests have no socket and no clock to call."""

from __future__ import annotations

import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _pure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every call that the core has no business with raise; Hypothesis and the fuzzer's keeper look at clocks."""

    def forbid(original: Callable[..., Any]) -> Callable[..., Any]:
        def forbidden(*args: Any, **options: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith(("hypothesis.", "subprocess")):
                return original(*args, **options)
            raise AssertionError("the core opens no socket and reads no clock")

        return forbidden

    monkeypatch.setattr(socket, "socket", forbid(socket.socket))
    for name in ("time", "monotonic", "sleep"):
        monkeypatch.setattr(time, name, forbid(getattr(time, name)))
