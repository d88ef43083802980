"""The unit that is printed is the one that ships, for the command that prints it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from echod.config import unit

SHIPPED = (Path(__file__).parents[2] / "systemd/echod.service").read_text()


def test_the_unit_names_the_command_and_its_code() -> None:
    """Nothing else differs from the file that ships."""
    printed = unit.text(["/opt/e/bin/python", "-m", "echod"], ["/opt/e", "/opt/py/bin/python3.12", "/opt/py/lib"])
    differing = [(was, now) for was, now in zip(SHIPPED.splitlines(), printed.splitlines(), strict=True) if was != now]

    assert [
        ("ExecStart=/usr/local/bin/echod run", "ExecStart=/opt/e/bin/python -m echod run"),
        ("ExecReload=/usr/local/bin/echod reload --wait", "ExecReload=/opt/e/bin/python -m echod reload --wait"),
        (
            "ExecPaths=/usr/local/bin/echod /usr/local/lib/echod /usr/bin/python3 /usr/lib -/usr/lib64 -/lib -/lib64",
            "ExecPaths=/opt/e/bin/python /opt/e /opt/py/bin/python3.12 /opt/py/lib /usr/lib -/usr/lib64 -/lib -/lib64",
        ),
    ] == differing


def test_the_default_place_gives_the_shipped_file() -> None:
    """What ships is right for `make install` without variables."""
    assert SHIPPED == unit.text(["/usr/local/bin/echod"], ["/usr/local/lib/echod", "/usr/bin/python3", "/usr/lib"])


def test_the_code_of_a_virtual_environment_lies_in_three_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment, the interpreter that it links to, and that one's own library."""
    link = tmp_path / "python"
    link.symlink_to("/opt/py/bin/python3.12")
    monkeypatch.setattr(sys, "executable", str(link))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", "/opt/py")

    assert [str(tmp_path), "/opt/py/bin/python3.12", "/opt/py/lib"] == unit.code_homes()


@pytest.mark.parametrize(
    ("started", "command"),
    [
        ("/usr/local/bin/echod", ["/usr/local/bin/echod"]),
        ("bin/echod", ["{cwd}/bin/echod"]),
        ("/opt/lib/echod/__main__.py", [sys.executable, "-m", "echod"]),
    ],
)
def test_the_running_command_has_an_absolute_path(
    started: str, command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it was started as, systemd finds it again; as a module it is the interpreter that is found."""
    monkeypatch.setattr(sys, "argv", [started, "show", "unit"])
    monkeypatch.chdir(tmp_path)

    assert [word.format(cwd=tmp_path) for word in command] == unit.running_command()


def test_a_link_to_the_command_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The link in the path outlives the version that it leads to."""
    link = tmp_path / "echod"
    link.symlink_to("/opt/echod-1.0/bin/echod")
    monkeypatch.setattr(sys, "argv", [str(link)])

    assert [str(link)] == unit.running_command()


def test_what_the_service_cannot_read_is_found_through_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A link in /usr/local/bin to a home directory is found out, and so is an interpreter in one."""
    link = tmp_path / "echod"
    link.symlink_to("/home/ann/.local/bin/echod")
    monkeypatch.setattr(sys, "executable", "/usr/bin/env")
    assert ["/home/ann/.local/bin/echod"] == unit.out_of_reach([str(link)])
    assert [] == unit.out_of_reach(["/homestead/echod", "run"])
    monkeypatch.setattr(sys, "executable", "/root/python/bin/python")
    assert ["/root/python/bin/python"] == unit.out_of_reach(["/usr/bin/env"])


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/opt/echod-1.0/bin/echod", "/opt/echod-1.0/bin/echod"),
        ("/opt/50%/echod", "/opt/50%%/echod"),
        ("/opt/a b/echod", '"/opt/a b/echod"'),
    ],
)
def test_a_path_is_written_as_systemd_reads_it(word: str, written: str) -> None:
    """A percent sign is doubled, and what holds a space stands in quotes."""
    assert written == unit.quoted(word)


def verify(directory: Path) -> subprocess.CompletedProcess[str]:
    """Have systemd judge echod.service in a directory, without the other units of this machine."""
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("systemd-analyze is not installed")
    (directory / "sysinit.target").write_text("[Unit]\nDefaultDependencies=no\n")  # what every service requires
    command = [analyze, "verify", "--man=no", f"{directory}/echod.service"]
    env = os.environ | {"SYSTEMD_UNIT_PATH": str(directory)}  # systemd.unit(5), "Unit File Load Path"
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("place", ["plain", "50% off", "$HOME ~ ü"])
def test_systemd_finds_the_command_again(place: str, tmp_path: Path) -> None:
    """Whatever the path holds, systemd has nothing to say about the unit."""
    command = tmp_path / place / "echod"
    command.parent.mkdir()
    command.touch(0o755)
    written = tmp_path / "echod.service"
    written.write_text(unit.text([str(command)], [str(command.parent), sys.executable]))
    found = verify(tmp_path)
    command.unlink()
    missing = verify(tmp_path)

    assert (found.returncode, found.stderr) == (0, "")
    assert "is not executable: No such file or directory" in missing.stderr
