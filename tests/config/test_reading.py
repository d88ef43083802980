"""Which files can be read, and what a broken one still says of where its daemon is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from echod.config.loading import load
from echod.config.models import Daemon
from echod.config.reading import runtime_directory, text
from echod.errors import ConfigError
from tests.config.conftest import refused

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """Make a directory with everything that is not a regular file."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        yield tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing", ": does not exist"),
        ("file/below", ": does not exist: part of its path is not a directory"),
        ("loop", ": is a symbolic link that leads back to itself"),
        ("directory", ": is a directory, not a regular file"),
        ("fifo", ": is a named pipe, not a regular file"),
        ("socket", ": is a socket or device, not a regular file"),
        ("/dev/zero", ": is a device, not a regular file"),
        ("/proc/self/mem", ": cannot be read: Input/output error"),
        ("n" * 300, ": cannot be read: File name too long"),
    ],
)
def test_refuses_what_is_no_regular_file(odd: Path, name: str, expected: str) -> None:
    """Each gets its sentence, and none is waited for."""
    assert [expected] == refused(runtime_directory, odd / name) == refused(load, odd / name)


def test_refuses_a_file_without_permission(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read is refused in so many words."""

    def deny(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)

    assert [": may not be read: permission denied"] == refused(runtime_directory, file)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_refuses_a_path_that_no_file_can_have(name: str) -> None:
    """Python refuses such names itself; the path is shown escaped."""
    with pytest.raises(ConfigError, match="cannot be read: no file has such a name") as caught:
        text(Path(name))

    assert caught.value.lines[0].isprintable()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_leaves_no_descriptor_open(file: Path, tmp_path: Path) -> None:
    """Reading costs no descriptor, whether it succeeds or not."""
    file.write_text("[log]\n")
    before = _descriptors()
    text(file)
    refused(runtime_directory, tmp_path)

    assert before == _descriptors()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[daemon]\nruntime_directory = "/run/x"\nworkers = "many"\n[[listener]]\naddress = 7\n[nonsense]\n', "/run/x"),
        ('[daemon]\nruntime_directory = ""\n', None),
        ('[daemon]\nruntime_directory = "run"\n', None),
        ('[daemon]\nruntime_directory = "/run/\\u0000"\n', None),
        ("[daemon]\nruntime_directory = 7\n", None),
        ("daemon = 7\n", None),
        ("[log]\n", None),
        ('[daemon]\nruntime_directory = "/run/x"\n[log', "/run/x"),
        ("<<<<<<< HEAD\n[daemon]\n  runtime_directory='/run/x y' # here\n", "/run/x y"),
        ('[log\n# runtime_directory = "/run/x"\n', None),
        ('[log\nruntime_directory = "run"\n', None),
    ],
)
def test_runtime_directory_tolerates_every_other_fault(file: Path, content: str, expected: str | None) -> None:
    """A broken file must not prevent a stop: the one key is read, where it can be."""
    file.write_text(content)

    assert expected == runtime_directory(file)


@given(stated=st.text() | st.text().map("/{}".format) | st.integers())
def test_a_runtime_directory_is_what_the_models_take(file: Path, stated: str | int) -> None:
    """Reading without the models comes to the same as reading with them."""
    try:
        modelled = Daemon.model_validate({"runtime_directory": stated}).runtime_directory or None
    except ValidationError:
        modelled = None
    file.write_text(tomli_w.dumps({"daemon": {"runtime_directory": stated}}), encoding="utf-8", newline="")

    assert modelled == runtime_directory(file)


def test_commands_do_without_the_models() -> None:
    """`status`, `reload` and `stop` answer at once: nothing that they need imports pydantic."""
    code = """
import sys
from echod import cli
from echod.process import control_client
cli._table(
    {name: 0 for name in ("state", "uptime", "pid", "version", "generation")}
    | {name: {"x": 0} for name in ("connections",)}
    | {"workers": [], "listeners": [], "io": {"receive": 0, "transmit": 0}, "log": {"dropped": 0}}
    | {"datagrams": {"answered": 0, "bytes": 0}, "reload": {"outcome": "none", "age": None, "errors": []}}
)
print("pydantic" in sys.modules)
"""

    assert "False\n" == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
