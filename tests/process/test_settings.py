"""Settings: which file, what it says, and what of it fits this machine."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from echod.config import reading
from echod.config.models import Config
from echod.errors import ConfigError, StartError
from echod.process import settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the default file one of this test, which does not exist yet."""
    path = tmp_path / "default.toml"
    monkeypatch.setattr(reading, "DEFAULT_PATH", path)
    return path


@pytest.fixture
def _limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 1024))


def test_a_named_file_is_taken(config_file: Path) -> None:
    """The file of the command line counts, and is read again by the same path."""
    found = settings.gather(config_file, foreground=True)
    config_file.write_text("[daemon]\nworkers = 3\n")

    assert (config_file, config_file) == (found.path, found.given)
    assert 3 == found.again().config.daemon.workers


def test_the_default_file_is_taken_where_it_exists(default: Path) -> None:
    """Without a named file it is the default one, or the built-in defaults while there is none."""
    assert (None, Config().listener) == (
        settings.gather(None, foreground=True).path,
        settings.gather(None, foreground=True).config.listener,
    )
    default.write_text("[daemon]\nworkers = 5\n")
    found = settings.gather(None, foreground=True)
    assert (default, None, 5) == (found.path, found.given, found.config.daemon.workers)


@pytest.mark.usefixtures("_limit")
def test_what_does_not_fit_names_the_file(config_file: Path) -> None:
    """A number of connections beyond the machine is the file's fault; as a default it shrinks, and that is told."""
    (adjusted,) = settings.gather(config_file, foreground=True).adjustments
    assert "limits.max_connections" == adjusted.config_key
    config_file.write_text("[limits]\nmax_connections = 5000\n")

    with pytest.raises(ConfigError, match=f"^{config_file}:[0-9]+: limits.max_connections: 5000 does not fit"):
        settings.gather(config_file, foreground=True)


def test_a_daemon_must_log_to_a_file(config_file: Path, default: Path) -> None:
    """Detached there is no standard output; file and built-in defaults alike are told so."""
    assert settings.gather(config_file, foreground=False).config.log.file
    assert not default.exists()
    with pytest.raises(ConfigError, match=r"^defaults: log\.file: must name a file under --daemon"):
        settings.gather(None, foreground=False)


def test_the_log_is_opened_or_named(config_file: Path, tmp_path: Path) -> None:
    """The log file is made; one that cannot be is a StartError with its path."""
    found = settings.gather(config_file, foreground=True)
    os.close(settings.open_log(found))
    assert (tmp_path / "log").is_file()
    config_file.write_text('[log]\nfile = "/nowhere/log"\n')

    with pytest.raises(StartError, match=r"^log\.file: /nowhere/log: No such file or directory$"):
        settings.open_log(found.again())


def test_without_a_file_the_log_is_standard_output(default: Path) -> None:
    """The descriptor is one of the log's own, so that closing it leaves standard output alone."""
    fd = settings.open_log(settings.gather(None, foreground=True))

    assert fd > 2
    assert os.path.samestat(os.fstat(1), os.fstat(fd))
    os.close(fd)
    os.fstat(1)


def test_the_descriptor_limit_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit becomes the hard one."""
    asked: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append((which, limits)))
    settings.raise_descriptor_limit()

    assert [(resource.RLIMIT_NOFILE, (1024, 1024))] == asked
