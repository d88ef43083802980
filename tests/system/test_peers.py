"""A peer that others have written: socat, over each kind of socket."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import MIB, Payload

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.daemon import Starter

CONTENT = bytes(Payload(11).view(0, MIB))


def socat(address: str, data: bytes, wait: float = 10.0) -> bytes:
    """Send `data` by socat, let it end its side, and return what it prints until the end or for so many seconds."""
    if not shutil.which("socat"):
        pytest.skip("socat is not installed")
    command = ["socat", f"-t{wait}", "-b65507", "-", address]
    done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
    assert (0, b"") == (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.parametrize("form", ["UNIX-CONNECT:{path}", "ABSTRACT-CONNECT:{name}", "TCP4:127.0.0.1:{port}"])
def test_socat_gets_back_all_that_it_sends(start: Starter, tmp_path: Path, form: str) -> None:
    """A mebibyte comes back whole after socat has ended its side, and the record calls that a good end."""
    path, name = tmp_path / "s", f"echod-peer-{os.getpid()}"
    daemon = start(
        workers=2,
        listeners=[
            {"name": "path", "kind": "unix", "address": str(path)},
            {"name": "abstract", "kind": "unix", "address": f"@{name}"},
            {"name": "echo", "address": "127.0.0.1:0"},
        ],
    )
    assert CONTENT == socat(form.format(path=path, name=name, port=daemon.address()[1]), CONTENT)
    closed = daemon.wait_for("connection.closed")

    assert ("peer_closed", len(CONTENT), len(CONTENT)) == (
        closed["echod.close.reason"],
        closed["echod.io.receive"],
        closed["echod.io.transmit"],
    )


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]"])
def test_socat_hears_the_address_that_it_asked(start: Starter, host: str) -> None:
    """Its UDP socket is connected, so that the kernel hides from it what comes from anywhere else."""
    daemon = start(
        listeners=[
            {"name": "v4", "kind": "udp", "address": "0.0.0.0:0"},
            {"name": "v6", "kind": "udp", "address": "[::]:0"},
        ]
    )
    port = daemon.address("v6" if ":" in host else "v4")[1]
    family = 6 if ":" in host else 4

    for size in (1, 1472, 20_000, 65_507):
        assert CONTENT[:size] == socat(f"UDP{family}:{host}:{port}", CONTENT[:size], wait=0.5)
