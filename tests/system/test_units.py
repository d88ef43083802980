"""What ships beside the daemon for systemd: as tight as it says, and whole."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import ping
from tests.system.daemon import ROOT, wait_until
from tests.system.probe import KEY
from tests.system.service import ADDRESS, CONFIG, DROP_INS, EXAMPLES, ON_MACHINE, Service, make
from tests.system.test_tls import Identity, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.machine import Machine

pytestmark = ON_MACHINE

INTERPRETER = "/usr/local/lib/echod/bin/python"
PROBE = "/usr/local/lib/echod/probe.py"
LOG = "/var/log/echod/echod.log"
DENIED = {
    "run_a_shell": "EACCES",
    "run_what_was_written": "EACCES",
    "open_packet_socket": "EAFNOSUPPORT",
    "open_raw_socket": "EPERM",
    "read_shadow": "EACCES",
    "read_key": "EACCES",
    "write_usr": "EROFS",
    "write_etc": "EACCES",
    "list_root": "EACCES",
    "see_init": "ENOENT",
    "trace": "EPERM",
    "mount": "EPERM",
    "unshare": "EPERM",
    "become_root": "EPERM",
    "make_code": "EPERM",
}


@pytest.fixture
def key(machine: Machine) -> Iterator[None]:
    """Lay a private key where Debian has them, readable to the group ssl-cert."""
    machine.run("groupadd", "--system", "--force", "ssl-cert")
    machine.run("install", "-d", "-o", "root", "-g", "ssl-cert", "-m", "0710", "/etc/ssl/private")
    machine.run("install", "-o", "root", "-g", "ssl-cert", "-m", "0640", "/dev/null", KEY)
    yield
    machine.run("rm", KEY)


def probed(service: Service) -> dict[str, str]:
    """Return what came of each probe in the service's sandbox, while the daemon serves there."""
    service.machine.run("install", "-m", "0644", ROOT / "tests/system/probe.py", PROBE)
    service.drop_in(f"[Service]\nExecStartPost={INTERPRETER} -I {PROBE}\n")
    service.start()
    assert service.workers()
    (said,) = [entry["MESSAGE"] for entry in service.journal() if entry["SYSLOG_IDENTIFIER"] == "python"]
    service.machine.run("rm", PROBE)
    results: dict[str, str] = json.loads(said)
    print(results)  # noqa: T201
    return results


@pytest.mark.usefixtures("key")
def test_root_may_do_it_all(machine: Machine) -> None:
    """Without the sandbox each probe does what it is there to do, so that a refusal means something."""
    done = json.loads(machine.run(INTERPRETER, "-I", ROOT / "tests/system/probe.py").stdout)
    machine.run("rm", "/usr/local/lib/echod-probe")

    assert dict.fromkeys(DENIED, "done") | {"open_inet_socket": "done"} == done


@pytest.mark.usefixtures("key")
def test_the_sandbox_holds(service: Service) -> None:
    """Whoever takes over a worker has the network of a server, and that is all."""
    assert DENIED | {"open_inet_socket": "done"} == probed(service)


@pytest.mark.usefixtures("key")
def test_behind_its_socket_it_has_no_network(service: Service) -> None:
    """The drop-in that is installed with the socket takes the network away too."""
    make(service.machine, "install-socket")

    assert DENIED | {"open_inet_socket": "EAFNOSUPPORT", "open_raw_socket": "EAFNOSUPPORT"} == probed(service)


@pytest.mark.usefixtures("key")
def test_the_group_of_keys_is_a_drop_in(service: Service) -> None:
    """With the drop-in that ships for it the service reads a key of the group ssl-cert, and nothing else of root's."""
    service.drop_in(service.machine.path(f"{EXAMPLES}/tls.conf").read_text())

    assert DENIED | {"open_inet_socket": "done", "read_key": "done"} == probed(service)


def test_a_renewed_certificate_reaches_a_reload(service: Service, tmp_path: Path) -> None:
    """As the user of the service, by the group of keys alone, without a restart."""
    identity = Identity(tmp_path)
    machine = service.machine
    machine.run("groupadd", "--system", "--force", "ssl-cert")

    def install() -> None:
        for name in ("chain.pem", "key.pem"):
            machine.path(f"/etc/ssl/{name}").write_bytes((tmp_path / name).read_bytes())
            machine.run("chown", "root:ssl-cert", f"/etc/ssl/{name}")
            machine.run("chmod", "0640", f"/etc/ssl/{name}")

    install()
    service.drop_in(machine.path(f"{EXAMPLES}/tls.conf").read_text())
    service.configure(
        '[[listener]]\naddress = "127.0.0.1:10000"\n[listener.tls]\nenabled = true\n'
        'certificate = "/etc/ssl/chain.pem"\nkey = "/etc/ssl/key.pem"\n'
    )
    service.start()
    pid = service.main_pid()
    renewed = identity.renew()
    with machine.network():
        before = shown(ADDRESS, identity.client())
    install()
    machine.systemctl("reload", "echod")
    with machine.network():
        after = shown(ADDRESS, identity.client())

    assert (renewed, pid) == (after, service.main_pid())
    assert before != after


def exposure(service: Service) -> float:
    """Return how `systemd-analyze security` scores the service, out of 10."""
    shown = service.machine.run("systemd-analyze", "security", "--no-pager", "--offline=true", "echod.service").stdout
    (score,) = re.findall(r"Overall exposure level for echod\.service: ([0-9.]+)", shown)
    print(f"exposure {score}")  # noqa: T201
    return float(score)


def test_exposure(service: Service) -> None:
    """The service has what a network server needs, and no more."""
    assert exposure(service) <= 1.1


def test_exposure_behind_its_socket(service: Service) -> None:
    """What is handed its sockets needs less."""
    make(service.machine, "install-socket")

    assert exposure(service) <= 0.4


def test_systemd_has_nothing_to_say(old: Service) -> None:
    """`systemd-analyze verify` is silent about each unit, where all that it names is installed."""
    make(old.machine, "install-socket")
    said = {
        unit: old.machine.run("systemd-analyze", "verify", unit).stderr
        for unit in ("echod.service", "echod.socket", "echod-classic.service")
    }

    assert dict.fromkeys(said, "") == said


# -- without DynamicUser ----------------------------------------------------------------------------------------------


@pytest.fixture
def old(machine: Machine) -> Service:
    """Return the daemon of old, set up: a fixed user, its directories, a log file that is rotated."""
    service = Service(machine, "echod-classic.service")
    machine.run("systemd-sysusers", f"{EXAMPLES}/echod.sysusers")
    machine.run("systemd-tmpfiles", "--create", f"{EXAMPLES}/echod.tmpfiles")
    machine.run("cp", f"{EXAMPLES}/echod-classic.service", DROP_INS)
    machine.run("cp", f"{EXAMPLES}/echod.logrotate", "/etc/logrotate.d/echod")
    service.configure(f'[log]\nfile = "{LOG}"\n')
    machine.systemctl("daemon-reload")
    return service


def logged(service: Service, name: str = LOG) -> list[str]:
    """Return the events in a log file."""
    return [json.loads(line)["event"] for line in service.machine.path(name).read_text().splitlines()]


def test_the_user_and_its_directories(old: Service) -> None:
    """systemd-sysusers and systemd-tmpfiles make what a set-up without DynamicUser= needs."""
    shown = old.machine.run("stat", "--format=%n %U %G %a", "/run/echod", "/var/log/echod").stdout.splitlines()
    account = old.machine.run("getent", "passwd", "echod").stdout.strip().split(":")

    assert ["/run/echod echod echod 755", "/var/log/echod echod echod 750"] == shown
    assert account[6].endswith("nologin")


def test_the_classic_service(old: Service) -> None:
    """Detached and known by its pid file, it reloads and stops as the other does, and is not root."""
    old.start()
    pid = old.main_pid()
    written = old.machine.path("/run/echod/echod.pid").read_text()
    owners = old.machine.run("ps", "-o", "user=", "-p", ",".join(map(str, [pid, *old.workers()]))).stdout.split()
    with old.connect() as client:
        ping(client)
        old.machine.systemctl("reload", old.unit)
        ping(client)
    old.machine.systemctl("stop", old.unit)

    assert f"{pid}\n" == written
    assert ["echod", "echod"] == owners
    assert {"Result": "success", "ExecMainStatus": "0"} == old.show("Result", "ExecMainStatus")
    assert {"service.started", "reload.completed", "connection.closed", "service.stopped"} <= set(logged(old))


def test_a_classic_supervisor_that_is_killed_is_back(old: Service) -> None:
    """The pid file that it left behind hinders nobody: systemd starts another one, and it serves."""
    old.start()
    before = [old.main_pid(), *old.workers()]
    old.kill("KILL", before[0])
    wait_until(lambda: old.main_pid() not in (0, before[0]), 10, "the new supervisor")
    old.machine.wait_for(old.unit, ActiveState="active", NRestarts="1")
    old.echo()

    assert [] == [pid for pid in before if old.process(pid, "").exists()]
    assert f"{old.main_pid()}\n" == old.machine.path("/run/echod/echod.pid").read_text()


def test_a_bad_configuration_fails_the_classic_start(old: Service) -> None:
    """The starter tells systemd why, and there is one try."""
    old.configure(f'[log]\nfile = "{LOG}"\nlevel = "loud"\n')
    failed = old.machine.systemctl("start", old.unit, check=False)

    assert 1 == failed.returncode
    assert {"ActiveState": "failed", "NRestarts": "0"} == old.show("ActiveState", "NRestarts")
    assert any(f"{CONFIG}:3" in entry["MESSAGE"] for entry in old.journal())


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not installed")
def test_a_rotated_log_loses_no_line(old: Service) -> None:
    """logrotate renames the file and signals: what was said is in the old file, and goes on in the new one."""
    old.start()
    old.echo()
    wait_until(lambda: "connection.closed" in logged(old), 5, "the first connection")
    old.machine.run("logrotate", "--force", "/etc/logrotate.d/echod")
    wait_until(lambda: "log.reopened" in logged(old), 5, "the new file")
    old.echo()
    wait_until(lambda: "connection.closed" in logged(old), 5, "the second connection")
    events = logged(old, f"{LOG}.1") + logged(old)
    shown = old.machine.run("stat", "--format=%U %a", LOG).stdout

    assert (2, 2) == (events.count("connection.opened"), events.count("connection.closed"))
    assert "echod 640\n" == shown
