"""The commands, against a server that answers as the test says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from echod.config import reading
from echod.errors import ConfigError, NotRunningError, StartError
from echod.process import control_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OK = b'{"format":1,"ok":true}\n'


class Server:
    """Answers each connection with what `answer` makes of its request; None says nothing and keeps it open."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir()
        self.requests: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], bytes | None] = lambda _: OK
        self.kept: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen(8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for sock in (self._socket, *self.kept):
            sock.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection.makefile("rb") as lines:
                self.requests.append(json.loads(lines.readline()))
            answer = self.answer(self.requests[-1])
            if answer is None:
                self.kept.append(connection)
                continue
            with connection, suppress(ConnectionError):  # the client has enough
                connection.sendall(answer)


@pytest.fixture
def server(config_file: Path) -> Iterator[Server]:
    """Serve in the runtime directory of the configuration."""
    made = Server(config_file.parent / "run" / "control.sock")
    yield made
    made.close()


def status(text: str) -> bytes:
    """Return an answer with this status."""
    return f'{{"ok": true, "status": {text}}}\n'.encode()


def test_each_command_sends_its_request(server: Server, config_file: Path) -> None:
    """Every request names the format, the command and what the options ask for."""
    server.answer = lambda request: status('{"pid": 1}') if request["command"] == "status" else OK
    control_client.reload(config_file, wait=False)
    control_client.reload(config_file, wait=True)
    control_client.stop(config_file, wait=False)
    control_client.stop_now(config_file, wait=True)
    control_client.reopen(config_file)

    assert {"pid": 1} == control_client.status(config_file)
    assert [
        {"format": 1, "command": "reload", "wait": False},
        {"format": 1, "command": "reload", "wait": True},
        {"format": 1, "command": "stop", "wait": False},
        {"format": 1, "command": "stop", "wait": True, "now": True},
        {"format": 1, "command": "reopen"},
        {"format": 1, "command": "status"},
    ] == server.requests


@pytest.mark.parametrize(
    ("answer", "kind", "lines"),
    [
        (b'{"ok":false,"errors":["one","two"],"exit_code":78}\n', ConfigError, ("one", "two")),
        (b'{"ok":false,"errors":["one"],"exit_code":1}\n', StartError, ("one",)),
        (b'{"ok":false}\n', StartError, ("the daemon has refused the request and does not say why",)),
        (b'{"ok":false,"errors":[7],"exit_code":[]}\n', StartError, ("the daemon has refused the request and do",)),
        (b"", StartError, ("the daemon has ended before it answered the reload; its log says why",)),
        (b'{"ok":true}', StartError, ("the daemon has ended before it answered the reload; its log says why",)),
        (b"[]\n", StartError, ("the daemon's answer is not one that this echod understands",)),
        (b'{"ok":1}\n', StartError, ("the daemon's answer is not one that this echod understands",)),
        (b"\xff\n", StartError, ("the daemon's answer is not one that this echod understands",)),
        (b"x" * 2_000_000, StartError, ("the daemon's answer is longer than 1048576 bytes",)),
    ],
    ids=["config", "runtime", "silent", "types", "eof", "cut", "array", "number", "binary", "long"],
)
def test_answer_is_validated(
    server: Server, config_file: Path, answer: bytes, kind: type[ConfigError | StartError], lines: tuple[str, ...]
) -> None:
    """What the daemon says is wrong is handed on; what is no answer is one sentence."""
    server.answer = lambda _: answer
    with pytest.raises(kind) as refused:
        control_client.reload(config_file, wait=True)

    assert isinstance(refused.value, kind)
    assert refused.value.exit_code == kind.exit_code
    assert all(found.startswith(line) for found, line in zip(refused.value.lines, lines, strict=True))


@pytest.mark.parametrize("document", ["[]", "null", "7"])
def test_status_must_be_an_object(server: Server, config_file: Path, document: str) -> None:
    """A status that is no object is not passed on."""
    server.answer = lambda _: status(document)
    with pytest.raises(StartError, match="the daemon's answer holds no status"):
        control_client.status(config_file)


def test_broken_file_does_not_prevent_stop(server: Server, config_file: Path) -> None:
    """Of the file only the runtime directory matters, whatever else is wrong with it."""
    config_file.write_text(config_file.read_text() + '[limits]\nmax_conections = "many"\n')
    control_client.stop(config_file, wait=False)

    assert "stop" == server.requests[0]["command"]


def test_default_places_are_tried_without_usable_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that says nothing about the directory, or is not TOML, leads to the default places."""
    monkeypatch.setattr(reading, "DEFAULT_PATH", tmp_path / "none")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    broken = tmp_path / "broken"
    broken.write_text("[[[")
    for path in (None, broken):
        control_client.stop(path, wait=False)
    monkeypatch.setattr(reading, "DEFAULT_PATH", tmp_path)
    control_client.stop(None, wait=False)

    assert ["stop"] * 3 == [request["command"] for request in server.requests]


@pytest.mark.usefixtures("server")
def test_named_file_that_is_missing_finds_no_daemon(tmp_path: Path) -> None:
    """A file that was named stands for its daemon, and not for the one in a default place."""
    with pytest.raises(ConfigError, match="does not exist"):
        control_client.stop(tmp_path / "none", wait=False)


def test_not_running_names_every_place(config_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a daemon every command says where it looked."""
    with pytest.raises(NotRunningError, match=rf"^not running \(no daemon at {tmp_path}/run/control.sock\)$"):
        control_client.stop(config_file, wait=True)
    monkeypatch.setattr(reading, "DEFAULT_PATH", tmp_path / "none")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "given"))
    with pytest.raises(NotRunningError, match=rf"no daemon at {tmp_path}/given/control.sock or "):
        control_client.status(None)


def test_reload_waits_while_daemon_answers_others(
    server: Server, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload may take longer than ANSWER_TIMEOUT, as long as the daemon answers a status."""
    monkeypatch.setattr(control_client, "ANSWER_TIMEOUT", 0.1)

    def slowly(request: dict[str, Any]) -> bytes | None:
        if request["command"] == "reload":
            return None
        if len(server.requests) > 3:
            server.kept[0].sendall(b'{"ok":false,"errors":["late"],"exit_code":78}\n')
        return status("{}")

    server.answer = slowly
    with pytest.raises(ConfigError, match="late"):
        control_client.reload(config_file, wait=True)


def test_hung_daemon_is_reported_with_pid(server: Server, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that accepts and never answers is named, by every command."""
    monkeypatch.setattr(control_client, "ANSWER_TIMEOUT", 0.1)
    server.answer = lambda _: None
    for command in (
        lambda: control_client.status(config_file),
        lambda: control_client.reload(config_file, wait=False),
        lambda: control_client.reload(config_file, wait=True),
        lambda: control_client.stop(config_file, wait=False),
        lambda: control_client.reopen(config_file),
    ):
        with pytest.raises(StartError, match=rf"^running \(pid {os.getpid()}\) but not answering$"):
            command()


def test_stop_waits_for_end_of_connection(server: Server, config_file: Path) -> None:
    """With `wait` the command returns when the kernel closes the connection, and not with the answer."""

    def end_later(_: dict[str, Any]) -> None:
        def end() -> None:
            server.kept[0].sendall(OK)
            server.kept[0].shutdown(socket.SHUT_RDWR)

        threading.Timer(0.2, end).start()

    server.answer = end_later
    control_client.stop(config_file, wait=True)
    server.kept[0].settimeout(1)

    assert b"" == server.kept[0].recv(1)


LISTENER = """
import socket, sys, time
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print(flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("wait", [False, True])
def test_stop_now_kills_process_that_does_not_answer(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """The process that called listen(2) gets SIGKILL when no answer comes."""
    monkeypatch.setattr(control_client, "ANSWER_TIMEOUT", 0.1)
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", LISTENER, str(tmp_path / "run" / "control.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        control_client.stop_now(config_file, wait=wait)

        assert -signal.SIGKILL == process.wait(5)


def test_stop_now_spares_process_behind_closed_connection(
    server: Server, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that has ended says nothing of the pid any more: no signal is sent, and none fails."""
    monkeypatch.setattr(control_client, "ANSWER_TIMEOUT", 0.05)
    sent: list[int] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: sent.append(1))
    monkeypatch.setattr(control_client, "_is_open", lambda _: False)
    server.answer = lambda _: None
    control_client.stop_now(config_file, wait=False)
    assert [] == sent

    monkeypatch.setattr(control_client, "peer_credentials", lambda _: (0, 0))
    with pytest.raises(StartError, match="cannot be seen from this pid namespace"):
        control_client.stop_now(config_file, wait=False)
    monkeypatch.setattr(control_client, "peer_credentials", lambda _: (2**22 + 1, 0))
    control_client.stop_now(config_file, wait=False)


def test_end_of_connection_is_told_from_silence() -> None:
    """Open and silent, open with bytes, and closed."""
    here, there = socket.socketpair()
    assert control_client._is_open(here)
    there.send(b"x")
    assert control_client._is_open(here)
    here.recv(1)
    there.close()
    assert not control_client._is_open(here)
    here.close()
