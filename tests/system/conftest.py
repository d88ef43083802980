"""What the black-box suites share: a directory for each daemon, and enough descriptors for the clients."""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.daemon import Daemon
from tests.system.machine import Machine
from tests.system.service import STAGE, Service, make

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from tests.system.daemon import Starter

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test failed, so that its daemons are killed and their logs shown instead of judged."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session", autouse=True)
def _many_descriptors() -> None:
    """Let the clients of this process have as many descriptors as the machine allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Starter]:
    """Start daemons with the arguments of `Daemon`, and hold the common rule for each when the test is over."""
    started: list[Daemon] = []
    with contextlib.ExitStack() as stack:

        def begin(**options: Any) -> Daemon:
            directory = tmp_path / f"echod-{len(started)}"
            directory.mkdir()
            daemon = Daemon(directory, **options)
            daemon.__enter__()
            started.append(daemon)
            stack.push(lambda *_: daemon.finish(failed=request.node.stash.get(FAILED, False)))
            return daemon

        yield begin


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """Boot a machine and lay echod out in it, as a package would that a root made whose files nobody else may read."""
    with Machine() as booted:
        make(booted, "install", "install-socket", f"DESTDIR={STAGE}", umask="077")
        booted.run("cp", "-a", f"{STAGE}/.", "/")
        yield booted


@pytest.fixture
def service(machine: Machine) -> Service:
    """Return the installed service: stopped, unchanged, with the configuration that ships."""
    return Service(machine)
