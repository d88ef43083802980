"""Once a second: what other programs may have changed, and is put right.

Rule: nothing here ends the daemon. What cannot be put right is logged once, and looked at again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from echod.errors import StartError
from echod.events import RuntimeLost, RuntimeRestored
from echod.net.reactor import Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.events import Event
    from echod.net.reactor import Reactor
    from echod.process.control import ControlSocket
    from echod.process.reports import Estate

INTERVAL = 1.0
"""Seconds between two looks."""


class Housekeeping(Timer):
    """Looks after the runtime directory and the listening sockets."""

    __slots__ = ("_control", "_directory_error", "_emit", "_estate", "_reactor")

    def __init__(self, reactor: Reactor, estate: Estate, control: ControlSocket, emit: Callable[[Event], None]) -> None:
        """Look after what `estate` holds; `control` serves the socket of its runtime directory, and ends with this."""
        super().__init__(self._on_interval)
        self._reactor = reactor
        self._estate = estate
        self._control = control
        self._emit = emit
        self._directory_error = ""

    def start(self, now: float) -> None:
        """Look for the first time in a second."""
        self._reactor.schedule(self, now + INTERVAL)

    def end(self) -> None:
        """Close the control socket; its clients are left to the end of the process."""
        self._control.end()

    def _on_interval(self, now: float) -> None:
        self._restore_runtime_directory()
        doors, listeners = self._estate.doors, self._estate.settings.config.doors
        doors.check_listening(listeners, self._emit)
        doors.check_reachable(listeners, self._emit)
        doors.count_drops(listeners, self._estate.board.row(0), self._emit)
        self.start(now)

    def _restore_runtime_directory(self) -> None:
        directory, error = self._estate.directory, ""
        try:
            if made := directory.restore():
                self._emit(RuntimeRestored(directory=str(directory.path), files=made))
        except StartError as failure:
            error = str(failure)
            if error != self._directory_error:
                self._emit(RuntimeLost(directory=str(directory.path), error=error))
        self._directory_error = error
        if directory.socket is not self._control.socket:
            self._control = self._control.move_to(directory.socket)
