"""How the tests bind a listener: resolve and bind in one step, as a start does in two processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from echod.net import binding

if TYPE_CHECKING:
    import socket

    from echod.config.listeners import Listener


def bind_resolved(listener: Listener) -> tuple[list[socket.socket], list[binding.Skipped]]:
    """Return what `binding.bind` makes of the addresses that the listener's names have here."""
    return binding.bind(listener, binding.resolve(listener))
