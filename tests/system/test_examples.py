"""The configurations that the documentation shows: each is accepted, works, and can run beside all the others."""

from __future__ import annotations

import contextlib
import re
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from echod.config.address import parse_address
from echod.config.models import Config
from tests.system.clients import echo_once
from tests.system.daemon import ROOT, Daemon
from tests.system.test_admin import get

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = ["README.md", *sorted(f"man/{path.name}" for path in (ROOT / "man").glob("echod*"))]
HOST, HOST_V6 = "127.86.2.4", "127.86.2.6"
"""Addresses of this test alone, so that an example meets other examples at its port and nothing else."""


def examples(document: str) -> list[str]:
    """Return the configurations in a document: blocks that begin with a table of the configuration."""
    text = (ROOT / document).read_text()
    if document.endswith(".md"):
        blocks = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    else:
        plain = re.sub(r"\\([-e])", lambda found: {"-": "-", "e": "\\"}[found[1]], text)
        blocks = re.findall(r"^\.in \+4n\n(.*?)^\.in$", plain, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if re.match(rf"\[\[?({'|'.join(Config.model_fields)})\b", block)]


def moved(address: str) -> str:
    """Return an address with its port and a host of this test's own."""
    given = parse_address(address)
    return f"{HOST_V6 if ':' in given.host else HOST}:{given.port}"


def daemon_of(example: str, directory: Path) -> Daemon:
    """Return a daemon with the configuration of an example: only its hosts and its log file are other ones."""
    directory.mkdir()
    document: dict[str, Any] = tomllib.loads(example)
    listeners = document.get("listener", [{"name": "echo", "address": "localhost:10000"}])
    for table in (*listeners, *([document["admin"]] if "admin" in document else [])):
        table["address"] = moved(table["address"])
    if "file" in document.get("log", {}):
        document["log"]["file"] = str(directory / "echod.log")
    tables = {name: table for name, table in document.items() if name != "listener"}
    return Daemon(directory, listeners=listeners, expect=["faults.enabled", "config.adjusted"], **tables)


@pytest.mark.parametrize("document", ["README.md", "man/echod.8", "man/echod.toml.5"])
def test_document_has_examples(document: str) -> None:
    """The examples are found, else the test of all together would hold for none."""
    assert examples(document)


@pytest.mark.xdist_group("examples")
def test_all_examples_serve_side_by_side(tmp_path: Path) -> None:
    """Who copies several examples gets daemons that all start: no port is used twice in README and manual pages."""
    found = [(document, example) for document in DOCUMENTS for example in examples(document)]
    with contextlib.ExitStack() as stack:
        for number, (document, example) in enumerate(found):
            print(f"{document}:\n{example}")  # noqa: T201
            daemon = stack.enter_context(daemon_of(example, tmp_path / str(number)))
            for listener in daemon.config["listener"]:
                host, _, port = listener["address"].rpartition(":")
                echo_once((host, int(port)))
            if daemon.config["admin"]:
                host, _, port = daemon.config["admin"]["address"].rpartition(":")
                assert get((host, int(port)), "/livez")[0] == 200
