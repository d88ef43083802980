"""What systemd and echod say to each other: sd_notify(3) and sd_listen_fds(3), both by hand, since nothing kept fits.

Rules
    Without systemd everything here does nothing. Nothing blocks, and telling never fails: who runs without a service
    manager, or with one that does not listen, still runs.
    What the socket does not take now is said later, in order: a lost READY=1 would be a failed start.
    The variables are taken out of the environment as they are read, so that they are nobody else's.

Fails: StartError when what was passed is not what the variables promise.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from contextlib import ExitStack, suppress
from math import inf
from typing import TYPE_CHECKING

from echod.config.wording import printable, quoted
from echod.errors import StartError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from echod.errors import EchodError

FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

LONGEST_STATUS = 500
"""Characters; `systemctl status` shows them on one line."""

MOST_UNSENT = 16
"""Messages kept for a socket that is full; the newest counts, and a reload makes two."""


class Manager:
    """The service manager, as somebody who is told how it goes (sd_notify(3))."""

    def __init__(self, address: str = "", watchdog: float = inf) -> None:
        """Talk to the socket `address`, a path or "@" and an abstract name; "" for nobody."""
        self.watchdog = watchdog
        """Seconds without `alive` after which systemd restarts the service; infinite where it does not watch."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._unsent: deque[bytes] = deque(maxlen=MOST_UNSENT)
        self._socket: socket.socket | None = None
        if address:
            with suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def ready(self, status: str) -> None:
        """Say that the next connect works."""
        self._say("READY=1", f"MAINPID={os.getpid()}", _status(status))

    def reloading(self) -> None:
        """Say that a reload has begun; ends with `ready`, also when it was refused."""
        # In one datagram, from the clock that systemd reads: Type=notify-reload waits for a READY=1 later than this.
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Say that a stop has begun."""
        self._say("STOPPING=1", _status(status))

    def extend(self, seconds: float) -> None:
        """Ask not to be killed for so long, although TimeoutStopSec= may be over."""
        self._say(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def failed(self, error: EchodError) -> None:
        """Say why the service ends."""
        self._say(_status("; ".join(error.lines)), *([f"ERRNO={error.errno}"] if error.errno else []))

    def alive(self) -> None:
        """Feed the watchdog, if there is one."""
        if self.watchdog < inf and not self._unsent:
            self._say("WATCHDOG=1")

    def flush(self) -> None:
        """Send what could not be sent before."""
        while self._unsent and self._socket:
            try:
                self._socket.sendto(self._unsent[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
            except BlockingIOError:
                return
            except OSError:  # nobody is there, or the address is none
                self._unsent.clear()
                return
            self._unsent.popleft()

    def close(self) -> None:
        """Say no more."""
        if self._socket:
            self._socket.close()

    def _say(self, *lines: str) -> None:
        if self._socket:
            self._unsent.append("\n".join(lines).encode("utf-8", "backslashreplace"))
            self.flush()


def manager(environment: MutableMapping[str, str]) -> Manager:
    """Return the manager that `environment` names."""
    address = environment.pop("NOTIFY_SOCKET", "")
    interval = environment.pop("WATCHDOG_USEC", "")
    watched = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    watchdog = int(interval) / 1e6 if watched and _is_number(interval) else 0.0
    return Manager(address, watchdog or inf)


def passed_sockets(environment: MutableMapping[str, str]) -> dict[str, list[socket.socket]]:
    """Return the sockets that systemd has passed to this very process, by name (FileDescriptorName=)."""
    pid, count, names = (environment.pop(f"LISTEN_{what}", "") for what in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()):  # they were somebody else's, further up
        return {}
    if not _is_number(count):
        raise StartError(f"LISTEN_FDS: must be a number, got {quoted(count)}")
    each = names.split(":") if names else ["unknown"] * int(count)
    if len(each) != int(count):
        raise StartError(f"LISTEN_FDNAMES: {len(each)} names for {count} descriptors")
    found: dict[str, list[socket.socket]] = {}
    with ExitStack() as undo:
        for fd, name in enumerate(each, FIRST_FD):
            found.setdefault(name, []).append(undo.enter_context(_take(fd, name)))
        undo.pop_all()
    return found


def _take(fd: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    except OSError as error:
        raise StartError(f"LISTEN_FDS: descriptor {fd}, named {quoted(name)}: {error.strerror}") from None


def _status(text: str) -> str:
    return f"STATUS={printable(text, LONGEST_STATUS)}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < len(str(2**64))
