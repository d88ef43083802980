"""The commands to a running daemon: `status`, `reload`, `stop` and `reopen`, over its control socket.

Rules
    Only the runtime directory of the configuration matters here, so that a broken file never prevents a stop.
    What the daemon answers is validated and bounded, and escaped where it is printed.
    A daemon that does not answer within ANSWER_TIMEOUT hangs. One that works on a long request still answers others.

Fails: NotRunningError; StartError when the daemon may not be commanded, hangs or cannot do it; ConfigError when a file
that was named cannot be read, or a reload was rejected because of the configuration.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from echod.config import reading
from echod.errors import ConfigError, NotRunningError, StartError
from echod.process import control_endpoint
from echod.process.control_endpoint import SOCKET_FILE, peer_credentials

FORMAT = 1

ANSWER_TIMEOUT = 5.0
"""Seconds without an answer after which a daemon counts as hung."""

MAX_ANSWER = 1024 * 1024
"""Bytes: a hundred listeners and 128 workers take a tenth of that."""

MAX_ERRORS = 1000

SEND_TRIES = 5
"""How often a request is sent to a daemon that closes the connection meanwhile."""


class NoAnswerError(StartError):
    """The daemon accepts connections and does not answer."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"running (pid {pid}) but not answering" if pid else "running but not answering")


class ClosedError(StartError):
    """The daemon has closed the connection without an answer."""


def reload(path: Path | None, *, wait: bool) -> None:
    """Make the daemon reload; with `wait` return only once the new configuration serves."""
    with _request(path, command="reload", wait=wait) as daemon:
        if wait:
            _await(daemon, "reload", path)
        else:
            _check(_receive(daemon, "reload"))


def stop(path: Path | None, *, wait: bool) -> None:
    """Make the daemon drain its connections and exit; with `wait` return only once it has."""
    with _request(path, command="stop", wait=wait) as daemon:
        try:
            _check(_receive(daemon, "stop"))
        except ClosedError:
            if _is_running(path):
                raise
        if wait:
            _wait_for_end(daemon)


def stop_now(path: Path | None, *, wait: bool) -> None:
    """Make the daemon exit at once, and kill it where it does not answer; with `wait` return only once it has ended."""
    with _request(path, command="stop", wait=wait, now=True) as daemon:
        try:
            _check(_receive(daemon, "stop"))
        except NoAnswerError:
            _kill(daemon)
        except ClosedError:
            if _is_running(path):
                raise
        if wait:
            _wait_for_end(daemon)


def reopen(path: Path | None) -> None:
    """Make the daemon open its log file anew; return once every process writes to the new file."""
    with _request(path, command="reopen") as daemon:
        _await(daemon, "reopen", path)


def status(path: Path | None) -> dict[str, Any]:
    """Return the document of `echod.process.status`, as far as the daemon's version has it."""
    with _request(path, command="status") as daemon:
        document = _check(_receive(daemon, "status")).get("status")
    if not isinstance(document, dict):
        raise StartError("the daemon's answer holds no status")
    return document


def _connect(path: Path | None) -> socket.socket:
    places = _places(path)
    for directory in places:
        connection = control_endpoint.connect(directory)
        if connection:
            return connection
    for directory in places:
        if lock := control_endpoint.lock_of_starting(directory):
            raise StartError(f"a daemon is starting or ending and takes no commands ({lock} is locked); try again")
    raise NotRunningError(f"not running (no daemon at {' or '.join(str(place / SOCKET_FILE) for place in places)})")


def _places(path: Path | None) -> list[Path]:
    if path:
        configured = reading.runtime_directory(path)
    else:
        configured = None
        default = reading.default_file()
        with suppress(ConfigError):  # it was not named, so that it cannot be read prevents nothing
            configured = reading.runtime_directory(default) if default else None
    return [Path(configured)] if configured else control_endpoint.default_places()


def _request(path: Path | None, **request: object) -> socket.socket:
    """Return a connection over which the request was sent.

    A daemon that is flooded may close a connection before its request has arrived, so that is tried again. The last one
    may hold a line that says why.
    """
    line = orjson.dumps({"format": FORMAT} | request, option=orjson.OPT_APPEND_NEWLINE)
    for _ in range(SEND_TRIES - 1):
        daemon = _connect(path)
        if _send(daemon, line):
            return daemon
        daemon.close()
    daemon = _connect(path)
    _send(daemon, line)
    return daemon


def _send(daemon: socket.socket, line: bytes) -> bool:
    daemon.settimeout(ANSWER_TIMEOUT)
    try:
        daemon.sendall(line)
    except OSError:
        return False
    return True


def _receive(daemon: socket.socket, command: str) -> bytes:
    """Return the daemon's line; raise NoAnswerError when none comes in time."""
    line = bytearray()
    deadline = time.monotonic() + ANSWER_TIMEOUT
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        try:
            daemon.settimeout(max(left, 0.001))
            data = daemon.recv(65536)
        except TimeoutError:
            raise NoAnswerError(peer_credentials(daemon)[0]) from None
        except OSError:
            data = b""
        if not data:
            raise ClosedError(f"the daemon has ended before it answered the {command}; its log says why")
        line += data
        if len(line) > MAX_ANSWER:
            raise StartError(f"the daemon's answer is longer than {MAX_ANSWER} bytes")
    return bytes(line)


def _check(line: bytes) -> dict[str, Any]:
    """Return the answer that `line` holds; raise what it says is wrong."""
    try:
        answer = orjson.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise StartError("the daemon's answer is not one that this echod understands")
    if not answer["ok"]:
        errors = answer.get("errors")
        lines = [line for line in errors if isinstance(line, str)][:MAX_ERRORS] if isinstance(errors, list) else []
        kind = ConfigError if answer.get("exit_code") == ConfigError.exit_code else StartError
        raise kind(*(lines or ["the daemon has refused the request and does not say why"]))
    return answer


def _await(daemon: socket.socket, command: str, path: Path | None) -> None:
    """Wait for an answer that may come late, for as long as the daemon answers others meanwhile."""
    while True:
        try:
            _check(_receive(daemon, command))
        except NoAnswerError:
            status(path)  # raises the same where the daemon hangs
        else:
            return


def _is_running(path: Path | None) -> bool:
    try:
        _connect(path).close()
    except NotRunningError:
        return False
    return True


def _wait_for_end(daemon: socket.socket) -> None:
    daemon.settimeout(None)
    with suppress(OSError):
        while daemon.recv(4096):
            pass


def _kill(daemon: socket.socket) -> None:
    """Send SIGKILL to the supervisor at the other end of the connection.

    The process that called listen(2) holds the other end, so while the connection is open the pid is still its own.
    """
    pid, _ = peer_credentials(daemon)
    if not pid:
        raise StartError("running but not answering, and its process cannot be seen from this pid namespace")
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return  # it has just ended
    try:
        if _is_open(daemon):
            signal.pidfd_send_signal(process, signal.SIGKILL)
    except PermissionError:
        raise StartError(f"running (pid {pid}) but not answering, and you may not kill it") from None
    except ProcessLookupError:
        return
    finally:
        os.close(process)


def _is_open(daemon: socket.socket) -> bool:
    daemon.setblocking(False)
    try:
        return bool(daemon.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
