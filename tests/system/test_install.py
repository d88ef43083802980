"""`make install`, as an administrator sees it: what is there, whose it is, and what is left when it is taken away."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import ping
from tests.system.daemon import ROOT
from tests.system.service import CONFIG, DROP_INS, ON_MACHINE, STAGE, UNITS, Service, make

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.machine import Machine

pytestmark = ON_MACHINE

ELSEWHERE = "/opt/elsewhere"


def tree(root: Path) -> dict[str, os.stat_result]:
    """Return every path below `root` that is no directory."""
    return {
        f"{directory}/{name}".removeprefix(str(root)): os.lstat(f"{directory}/{name}")
        for directory, _, names in os.walk(root)
        for name in names
    }


@pytest.fixture
def staged(machine: Machine) -> Path:
    """Return the directory below which whoever makes a package would install."""
    return machine.path(STAGE)


def test_a_staged_installation_knows_nothing_of_the_stage(staged: Path) -> None:
    """No file below DESTDIR holds its name, and nothing lands beside the places that were asked for."""
    files = tree(staged)
    holding = [name for name in files if STAGE.encode() in read(staged, name)]

    assert [] == holding
    assert {"/usr/local", "/etc"} == {"/usr/local" if name.startswith("/usr/local/") else "/etc" for name in files}
    assert {"/etc/echod.toml"} == {name for name in files if name.startswith("/etc/")}
    assert {
        "/usr/local/bin/echod",
        f"{UNITS}/echod.service",
        f"{UNITS}/echod.socket",
        f"{UNITS}/echod.service.d/socket.conf",
        "/usr/local/share/man/man8/echod.8",
        "/usr/local/share/man/man5/echod.toml.5",
        "/usr/local/share/man/man7/echod-events.7",
    } <= files.keys()


def read(root: Path, name: str) -> bytes:
    """Return the contents of a file or the target of a link."""
    path = root / name.lstrip("/")
    return os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()


def test_whoever_runs_the_service_can_read_it(staged: Path) -> None:
    """Installed under umask 077, everything can be read, and directories entered; nothing is for others to change."""
    files = tree(staged)
    links = {name for name, found in files.items() if stat.S_ISLNK(found.st_mode)}
    closed = [name for name in files.keys() - links if not files[name].st_mode & stat.S_IROTH]
    directories = [path for path, _, _ in os.walk(staged / "usr")]

    assert [] == closed
    assert [] == [path for path in directories if os.lstat(path).st_mode & 0o005 != 0o005]
    assert [] == [name for name in files.keys() - links if files[name].st_mode & 0o022]


def test_only_what_runs_is_there(staged: Path) -> None:
    """No installer, no tests, and everything is byte-compiled, since the service's user could not do it."""
    files = set(tree(staged))

    assert not any("/pip/" in name or "/pytest" in name or "/hypothesis" in name for name in files)
    sources = {name for name in files if "/site-packages/echod/" in name and name.endswith(".py")}
    compiled = {name for name in files if "/site-packages/echod/" in name and name.endswith(".pyc")}
    assert len(sources) == len(compiled) > 40


def test_anybody_can_run_the_command(machine: Machine) -> None:
    """The installed command answers to whoever has no rights."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/local/bin/echod")

    assert machine.run(*nobody, "--version").stdout.startswith("echod ")
    assert f"{CONFIG}: ok\n" == machine.run(*nobody, "check").stdout


def test_the_configuration_is_never_touched(service: Service) -> None:
    """Installing over an older one leaves an edited file as it is, to byte and time; a running daemon goes on."""
    machine = service.machine
    service.configure("[limits]\nidle_timeout = '7m'\n")
    before = machine.path(CONFIG).stat()
    service.start()
    pid = service.main_pid()
    with service.connect() as client:
        ping(client)
        make(machine, "install")
        ping(client)
    after = machine.path(CONFIG).stat()

    assert (before.st_ino, before.st_mtime_ns, before.st_size) == (after.st_ino, after.st_mtime_ns, after.st_size)
    assert pid == service.main_pid()
    machine.systemctl("restart", "echod")
    service.echo()


def test_elsewhere_from_install_to_uninstall(service: Service) -> None:
    """Below another prefix, under umask 077: enabled, started, reloaded, stopped, gone but for its configuration."""
    machine = service.machine
    variables = (f"prefix={ELSEWHERE}", f"sysconfdir={ELSEWHERE}/conf", f"mandir={ELSEWHERE}/pages")
    config = machine.path(f"{ELSEWHERE}/conf/echod.toml")
    make(machine, "install", *variables, umask="077")
    machine.systemctl("daemon-reload")
    said = machine.run("systemd-analyze", "verify", "echod.service").stderr
    machine.systemctl("enable", "--now", "echod")
    used = service.show("FragmentPath", "ActiveState")
    command = service.process(service.main_pid(), "cmdline").read_text().rstrip("\0").split("\0")
    service.echo()
    config.write_text('[[listener]]\naddress = "127.0.0.1:10001"\n')
    machine.systemctl("reload", "echod")
    service.echo(("127.0.0.1", 10001))
    pages = [name for name in tree(config.parents[1]) if name.startswith("/pages/")]
    machine.systemctl("disable", "--now", "echod")
    ended = service.show("Result", "ExecMainStatus")
    make(machine, "uninstall", *variables)
    units = [name for name in tree(machine.path(DROP_INS)) if "echod" in name]

    assert "" == said
    assert {"FragmentPath": f"{DROP_INS}/echod.service", "ActiveState": "active"} == used
    assert [f"{ELSEWHERE}/bin/echod", "run", "-c", f"{ELSEWHERE}/conf/echod.toml"] == command[2:]
    assert {"/pages/man5/echod.toml.5", "/pages/man7/echod-events.7", "/pages/man8/echod.8"} == set(pages)
    assert {"Result": "success", "ExecMainStatus": "0"} == ended
    assert [] == units
    assert {"/conf/echod.toml"} == tree(config.parents[1]).keys()


def test_enabled_it_is_wanted(service: Service) -> None:
    """`systemctl enable` has something to link, and `disable` takes it away."""
    machine = service.machine
    machine.systemctl("enable", "echod")
    link = machine.path("/etc/systemd/system/multi-user.target.wants/echod.service")
    assert link.is_symlink()
    machine.systemctl("disable", "echod")

    assert not link.is_symlink()


def test_uninstalled_only_the_configuration_is_left(machine: Machine, staged: Path) -> None:
    """Of all that an installation has put there."""
    assert staged.exists()
    machine.run("cp", "-a", STAGE, "/tmp/gone")
    make(machine, "uninstall", "DESTDIR=/tmp/gone")
    left = tree(machine.path("/tmp/gone"))
    machine.run("rm", "-rf", "/tmp/gone")

    assert {"/etc/echod.toml"} == left.keys()


def test_the_shipped_configuration_is_the_default(staged: Path) -> None:
    """What is installed where there is none is the reference file."""
    assert (ROOT / "etc/echod.toml").read_bytes() == read(staged, "/etc/echod.toml")
