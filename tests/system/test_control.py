"""The control socket as operators meet it: other namespaces, full disks, cleaners, strangers, and daemons that hang."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import TYPE_CHECKING, Any

import pytest

from echod.process import control_client
from tests.system import proc
from tests.system.clients import MIB, connect, echo_once, ping
from tests.system.daemon import ECHOD, ROOT, SCALE, Daemon, StartFailedError, echod, environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Size
    from tests.system.daemon import Starter

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, namespaces and other users")
STRANGER = 54_321


def command(daemon: Daemon, *arguments: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command for this daemon."""
    return echod(*arguments, "-c", str(daemon.file), timeout=timeout)


def shell(script: str, *prefix: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which $ECHOD is the command."""
    return subprocess.run(
        [*prefix, "sh", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout * SCALE,
        env=environment(ECHOD=" ".join(ECHOD)),
    )


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a Python program that says a line once it has done its work, and then waits."""
    started = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, cwd="/")
    assert started.stdout
    assert started.stdout.readline()
    return started


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """Mount a small file system for as long as the context lasts."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> None:
    """Leave no byte in the file system of a directory."""
    with contextlib.suppress(OSError), (path / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


# -- what signals and files could not do ------------------------------------------------------------------------------


@as_root
def test_commands_reach_daemon_in_other_pid_namespace(tmp_path: Path) -> None:
    """A sidecar that shares only the directory commands the daemon, and its own PID 1 gets no signal.

    Catches a command that signals the number in a pid file, which is another process here.
    """
    daemon = Daemon(tmp_path, daemon={"user": "root"} if os.geteuid() else {})
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    with subprocess.Popen(
        [*unshare, *ECHOD, "run", "-c", str(daemon.file)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        wait_until(lambda: daemon.state().get("state") == "ready", what="readiness")
        assert daemon.state()["pid"] == 1
        script = (
            "trap 'echo signalled' HUP TERM; "
            f"$ECHOD reload --wait -c {daemon.file}; echo reload $?; "
            f"$ECHOD stop --wait -c {daemon.file}; echo stop $?; "
            f"$ECHOD stop -c {daemon.file}; echo again $?"
        )
        done = shell(script, *unshare)
        said = process.communicate(timeout=10 * SCALE)[1]

    assert done.stdout.splitlines() == ["reload 0", "stop 0", "again 3"]
    assert (process.returncode, said) == (0, b"")


@as_root
def test_full_runtime_directory_delays_no_command(tmp_path: Path) -> None:
    """With no byte free since the start, a reload is answered when it is done, and the status is live."""
    daemon = Daemon(tmp_path)
    with small_disk(daemon.runtime, "64k"), daemon:
        fill(daemon.runtime)
        started = time.monotonic()
        done = command(daemon, "reload", "--wait")
        took = time.monotonic() - started
        with connect(daemon.address()) as client:
            ping(client)
            shown = json.loads(command(daemon, "status", "--json").stdout)
        assert command(daemon, "stop", "--wait").returncode == 0
        daemon.wait_exit()
        (daemon.runtime / "filler").unlink()

    assert (done.returncode, done.stderr) == (0, "")
    assert took < 5.0
    assert (shown["reload"]["outcome"], shown["connections"]["active"]) == ("ok", 1)


@as_root
def test_start_on_full_disk_names_the_file(tmp_path: Path) -> None:
    """A start that finds no room is one line with the file."""
    daemon = Daemon(tmp_path)
    with small_disk(daemon.runtime, "8k"):
        fill(daemon.runtime)
        with pytest.raises(StartFailedError) as failed, daemon:
            pass

    assert failed.value.code == 1
    assert failed.value.stderr == f"echod: {daemon.runtime}/echod.pid: No space left on device\n"


@as_root
@pytest.mark.skipif(not shutil.which("systemd-tmpfiles"), reason="needs systemd-tmpfiles")
def test_tmpfiles_leaves_the_directory_alone(start: Starter, tmp_path: Path) -> None:
    """A cleaner that honours flock(2) removes nothing of a daemon that runs, however old its files are."""
    daemon = start()
    other = daemon.directory / "other"
    other.mkdir()
    for folder in (daemon.runtime, other):
        (folder / "witness").touch()
        for path in (*folder.iterdir(), folder):
            os.utime(path, (1, 1), follow_symlinks=False)
    rules = tmp_path / "clean.conf"
    rules.write_text(f"e {daemon.directory} - - - m:2s\n")  # as the rule for /tmp that systemd ships
    subprocess.run(["systemd-tmpfiles", "--clean", rules], check=True, stderr=subprocess.PIPE)
    (daemon.runtime / "witness").unlink()

    assert not (other / "witness").exists(), "the cleaner cleans"
    assert sorted(path.name for path in daemon.runtime.iterdir()) == ["control.sock", "echod.lock", "echod.pid"]


def test_second_daemon_is_refused_around_a_sweep(tmp_path: Path) -> None:
    """What a cleaner removes is back within two seconds with one warning, and a second start is refused then."""
    daemon = Daemon(tmp_path, expect=["runtime.restored"])
    with daemon:
        for path in (daemon.runtime / name for name in ("echod.pid", "echod.lock", "control.sock")):
            path.unlink()
        daemon.wait_for("runtime.restored", timeout=2.0)
        second = echod("run", "-c", str(daemon.file))
        shown = command(daemon, "status")
        shutil.rmtree(daemon.runtime)
        daemon.wait_for("runtime.restored", count=2, timeout=2.0)

        assert (second.returncode, second.stderr) == (1, f"echod: already running (pid {daemon.pid})\n")
        assert shown.returncode == 0
        assert daemon.pid_file.read_text() == f"{daemon.pid}\n"
        assert len(daemon.records("runtime.restored")) == 2
        assert command(daemon, "stop", "--wait").returncode == 0
        daemon.wait_exit()


def test_files_of_second_daemon_are_left_alone(tmp_path: Path) -> None:
    """Two daemons in one directory, by a sweep just before the second start: each keeps its files, and both echo.

    The first says once that another has the directory; when the second is gone it has its files again.
    """
    first = Daemon(tmp_path, expect=["runtime.restored", "runtime.lost"])
    (tmp_path / "second").mkdir()
    second = Daemon(tmp_path / "second", daemon={"runtime_directory": str(first.runtime)})
    second.runtime = first.runtime
    with first:
        os.kill(first.pid, SIGSTOP)  # or it would be back before the second has started
        for path in list(first.runtime.iterdir()):
            path.unlink()
        address = (
            first.records("listener.opened")[0]["server.address"],
            first.records("listener.opened")[0]["server.port"],
        )
        with second:
            os.kill(first.pid, SIGCONT)
            first.wait_for("runtime.lost")
            assert second.pid_file.read_text() == f"{second.pid}\n"
            assert second.state()["pid"] == second.pid
            echo_once(address)
            echo_once(second.address())
            second.signal(SIGKILL)
            second.wait_exit()
            second.kill()
            for path in list(first.runtime.iterdir()):
                path.unlink()
        first.wait_for("runtime.restored", timeout=3.0)
        assert first.state()["pid"] == first.pid
        assert len(first.records("runtime.lost")) == 1


# -- what other users can put there -----------------------------------------------------------------------------------


HOLD_LOCKS = """
import fcntl, os, sys, time
os.setgroups([]); os.setgid(54321); os.setuid(54321)
found = []
for path in sys.argv[1:]:
    try:
        found.append(os.open(path, os.O_RDONLY))
    except OSError:
        pass
print(len(found), flush=True)
for fd in found:
    fcntl.flock(fd, fcntl.LOCK_EX)
print("all locked", flush=True)
time.sleep(60)
"""


def open_to_others(path: Path) -> None:
    """Let every user search the parents of a path."""
    for parent in path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)


@as_root
def test_other_user_cannot_keep_daemon_from_starting(start: Starter) -> None:
    """A stranger who locks all that may be read keeps no successor out after a crash, and `stop` signals no stranger.

    Catches a lock on a file that everybody may open.
    """
    daemon = start()
    open_to_others(daemon.runtime)
    stranger = python(HOLD_LOCKS, *daemon.runtime.iterdir(), daemon.runtime)
    try:
        daemon.signal(SIGKILL)
        daemon.wait_exit()
        assert stranger.stdout
        assert stranger.stdout.readline() == b"all locked\n"
        daemon.pid_file.write_text(f"{stranger.pid}\n")
        assert command(daemon, "stop").returncode == 3
        daemon.again()
        echo_once(daemon.address())
        assert command(daemon, "stop", "--wait").returncode == 0
        daemon.wait_exit()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


LISTEN_AS = """
import os, socket, sys, time
sock = socket.socket(socket.AF_UNIX)
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(54321)
sock.bind(sys.argv[1])
sock.listen()
print(flush=True)
time.sleep(60)
"""


@as_root
@pytest.mark.parametrize("arguments", [["stop", "--now"], ["status"], ["reload", "--wait"]], ids=" ".join)
def test_server_planted_by_group_member_is_not_believed(tmp_path: Path, arguments: list[str]) -> None:
    """Where a group may write, a member cannot pose as the daemon, and root's `stop --now` kills no process."""
    daemon = Daemon(tmp_path)
    daemon.runtime.mkdir()
    os.chown(daemon.runtime, 0, 12_345)
    daemon.runtime.chmod(0o775)
    open_to_others(daemon.runtime)
    path = daemon.runtime / "control.sock"
    planted = python(LISTEN_AS, path, 12_345)
    try:
        done = command(daemon, *arguments)
        with pytest.raises(StartFailedError) as failed, daemon:
            pass
        assert planted.poll() is None
    finally:
        planted.kill()
        planted.communicate()

    assert (done.returncode, done.stderr) == (
        1,
        f"echod: {path}: served by user {STRANGER}, who is neither root nor the owner of {daemon.runtime}\n",
    )
    assert failed.value.stderr == (
        f'echod: runtime directory {daemon.runtime}: others may write to it (mode 0775); run "chmod 0755 '
        f'{daemon.runtime}"\n'
    )


@pytest.mark.parametrize("kind", ["fifo", "device", "document", "directory", "link"])
def test_planted_files_are_no_daemon(tmp_path: Path, kind: str) -> None:
    """Whatever lies in the place of the control socket, every command says within a second that no daemon runs."""
    daemon = Daemon(tmp_path)
    daemon.runtime.mkdir()
    path = daemon.runtime / "control.sock"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "document":
            path.write_text("[]")
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
    started = time.monotonic()
    done = [command(daemon, *arguments) for arguments in (["status"], ["stop", "--wait"], ["reload", "--wait"])]

    assert time.monotonic() - started < 5.0
    assert {(3, f"echod: not running (no daemon at {path})\n")} == {(one.returncode, one.stderr) for one in done}


@as_root
def test_other_user_is_refused_by_the_kernel(start: Starter) -> None:
    """A user who is neither root nor the daemon's is told so in one line, exit code 1; the workers' user too."""
    daemon = start()
    open_to_others(daemon.runtime)
    for uid in (STRANGER, 65534):
        folder = os.open(daemon.runtime, os.O_PATH)
        done = subprocess.run(
            [sys.executable, "-c", CONNECT_AS, str(uid), f"/proc/self/fd/{folder}/control.sock"],
            pass_fds=[folder],
            capture_output=True,
            text=True,
            check=True,
        )
        os.close(folder)
        assert done.stdout == "EACCES\n"


CONNECT_AS = """
import errno, os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[2])
    print("connected")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@as_root
@pytest.mark.skipif(not shutil.which("logrotate"), reason="needs logrotate")
def test_logrotate_as_shipped_kills_nothing(tmp_path: Path) -> None:
    """The rotation that ships reopens the log by the command, whatever the pid file says, also without a daemon."""
    shipped = (ROOT / "etc/echod.logrotate").read_text()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "echod"
    log = tmp_path / "log"
    log.mkdir()
    daemon = Daemon(tmp_path, log={"file": str(log / "echod.log")})
    program.write_text(f'#!/bin/sh\ncd {ROOT}\nexec {" ".join(ECHOD)} "$@" -c {daemon.file}\n')
    program.chmod(0o755)
    rules = tmp_path / "rules"
    rules.write_text(
        shipped.replace("/usr/local/bin/echod", str(program))
        .replace("/var/log/echod", str(log))
        .replace("su echod echod", "su root root")
        .replace("create 0640", "create 0640 root root")
    )
    rotate = ["logrotate", "--force", "--state", str(tmp_path / "state"), str(rules)]
    assert "kill" not in shipped
    with daemon:
        daemon.pid_file.write_text("-1\n")
        done = subprocess.run(rotate, check=False, capture_output=True, text=True, env=environment())
        assert (done.returncode, done.stderr) == (0, "")
        echo_once(daemon.address())
        wait_until(lambda: "connection.closed" in (log / "echod.log").read_text(), what="a record in the new file")
        assert "log.reopened" in (log / "echod.log").read_text()
        daemon.reader = None  # it has read the file that was rotated
    done = subprocess.run(rotate, check=False, capture_output=True, text=True, env=environment())
    assert (done.returncode, "not running" in done.stderr) == (0, True)


# -- reload, reopen and stop ------------------------------------------------------------------------------------------


def test_reopen_returns_when_every_process_writes_to_the_new_file(tmp_path: Path, size: Size) -> None:
    """After each `reopen` no byte goes to the file that was renamed, under load and with four workers."""
    path = tmp_path / "echod.log"
    daemon = Daemon(tmp_path, workers=4, log={"file": str(path)})
    done = threading.Event()

    def load(address: Any) -> None:
        while not done.is_set():
            echo_once(address)

    with daemon:
        thread = threading.Thread(target=load, args=[daemon.address()])
        thread.start()
        sizes = []
        try:
            for number in range(size(5, 100)):
                old = path.rename(tmp_path / f"old-{number}")
                assert daemon.control({"command": "reopen"})["ok"]
                sizes.append((old, old.stat().st_size))
        finally:
            done.set()
            thread.join()
        daemon.reader = None  # it has read the first file only

        assert [(old, old.stat().st_size) for old, _ in sizes] == sizes


def test_reopen_waits_for_the_last_worker(start: Starter, tmp_path: Path) -> None:
    """A worker that is stopped still writes to the old file, so the answer comes once it goes on."""
    daemon = start(workers=2, log={"file": str(tmp_path / "echod.log")})
    stopped, _ = daemon.workers()
    os.kill(stopped, SIGSTOP)
    with daemon.control_connection() as client, client.makefile("rb") as lines:
        client.sendall(b'{"command": "reopen"}\n')
        daemon.wait_for("log.reopened")
        assert select.select([client], [], [], 0.3)[0] == [], "answered although a worker has not"
        os.kill(stopped, SIGCONT)
        client.settimeout(5 * SCALE)
        assert json.loads(lines.readline())["ok"]


def test_reopen_that_fails_says_why(start: Starter, tmp_path: Path) -> None:
    """A log that cannot be opened again is one line and exit code 1; the old file goes on."""
    folder = tmp_path / "log"
    folder.mkdir()
    daemon = start(log={"file": str(folder / "echod.log")}, expect=["log.failed"])
    folder.rename(tmp_path / "away")
    done = command(daemon, "reopen")
    (tmp_path / "away").rename(folder)

    assert (done.returncode, done.stderr) == (1, f"echod: log.file: {folder}/echod.log: No such file or directory\n")
    echo_once(daemon.address())
    daemon.wait_for("connection.closed")


def test_requests_during_reload_share_one_more(start: Starter) -> None:
    """Ten clients ask while a reload is held up: each is answered, by one more reload that begins after it."""
    daemon = start(workers=2)
    (worker, _) = daemon.workers()
    os.kill(worker, SIGSTOP)  # which holds the first reload up
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        answers.append(daemon.control({"command": "reload", "wait": True}, timeout=20))

    clients = [threading.Thread(target=ask) for _ in range(11)]
    clients[0].start()
    wait_until(lambda: daemon.state()["state"] == "reloading", what="the first reload")
    for client in clients[1:]:
        client.start()
    wait_until(lambda: len(daemon.records("control.received")) == 11, what="all requests")
    assert answers == []
    os.kill(worker, SIGCONT)
    for client in clients:
        client.join()

    assert [answer["ok"] for answer in answers] == [True] * 11
    assert daemon.state()["reload"]["count"] == 2


def test_reload_is_refused_while_stopping(start: Starter) -> None:
    """A drain has begun: a reload that waits and one that comes now are told that the daemon is stopping."""
    daemon = start()
    with connect(daemon.address(), receive_buffer=4096) as stuck:
        stuck.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                stuck.send(bytes(MIB))
        assert command(daemon, "stop").returncode == 0
        done = command(daemon, "reload", "--wait")
        state = daemon.state()["state"]
        again = command(daemon, "stop")
        assert command(daemon, "stop", "--now", "--wait").returncode == 0
        daemon.wait_exit()

    assert (done.returncode, done.stderr) == (1, "echod: the daemon is stopping\n")
    assert state == "stopping"
    assert again.returncode == 0
    assert daemon.wait_for("service.stopped")["echod.connections.cut"] == 1


def test_client_that_leaves_cancels_nothing(start: Starter) -> None:
    """A reload whose client was killed is done all the same."""
    daemon = start()
    client = daemon.control_connection()
    client.sendall(b'{"command": "reload", "wait": true}\n')
    client.close()

    daemon.wait_for("reload.completed")


def test_start_succeeds_right_after_stop_wait(tmp_path: Path, size: Size) -> None:
    """Lock, paths and addresses are free when `stop --wait` returns: the next start takes the same port."""
    path = tmp_path / "echo.sock"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    daemon = Daemon(
        tmp_path,
        workers=2,
        listeners=[
            {"name": "echo", "kind": "tcp", "address": f"127.0.0.1:{port}"},
            {"name": "path", "kind": "unix", "address": str(path)},
        ],
    )
    for _ in range(size(5, 100)):
        daemon.start()
        answer = daemon.control_connection()
        with answer, answer.makefile("rb") as lines:
            answer.sendall(b'{"command": "stop", "wait": true}\n')
            assert json.loads(lines.readline())["ok"]
            assert lines.readline() == b""
        assert list(daemon.runtime.iterdir()) == []
        assert not path.exists()
        socket.create_server(("127.0.0.1", port)).close()
        assert daemon.wait_exit() == 0
        daemon.exit_code = None
    daemon.kill()


# -- a daemon that hangs, and clients that do --------------------------------------------------------------------------


def test_hung_daemon_is_reported_and_killed(start: Starter) -> None:
    """A supervisor that is stopped: each command says within 6 s that it hangs; `stop --now` ends it."""
    daemon = start()
    workers = daemon.workers()
    os.kill(daemon.pid, SIGSTOP)
    started = time.monotonic()
    done = command(daemon, "status")
    took = time.monotonic() - started
    second = echod("run", "-c", str(daemon.file))
    killed = command(daemon, "stop", "--now", "--wait")

    assert (done.returncode, done.stderr) == (1, f"echod: running (pid {daemon.pid}) but not answering\n")
    assert 4.5 < took < 7.0
    assert (second.returncode, second.stderr) == (1, f"echod: already running (pid {daemon.pid})\n")
    assert (killed.returncode, killed.stderr) == (0, "")
    assert daemon.wait_exit() == -SIGKILL
    wait_until(lambda: not any(map(proc.alive, workers)), what="the workers' end")


def test_status_answers_while_clients_flood_and_stall(start: Starter, size: Size) -> None:
    """1,000 clients with garbage and 200 silent ones: `status` takes less than 100 ms meanwhile, and echo goes on."""
    daemon = start(expect=["control.rejected", "log.suppressed"])
    garbage, silent = size(100, 1000), size(50, 200)
    stalled: list[socket.socket] = []
    over = threading.Event()

    def stall() -> None:
        for number in range(silent):
            stalled.append(daemon.control_connection())
            with contextlib.suppress(ConnectionError):  # another one has taken its place already
                stalled[-1].send(b'{"comm' if number % 2 else b"")

    def flood() -> None:
        for number in range(garbage):
            with daemon.control_connection() as client, contextlib.suppress(OSError):
                client.send(os.urandom(number % 6000 + 1))
        over.set()

    threads = [threading.Thread(target=stall), threading.Thread(target=flood)]
    for thread in threads:
        thread.start()
    times: list[float] = []
    while not over.is_set() or len(times) < 20:
        started = time.monotonic()
        assert control_client.status(daemon.file)["state"] == "ready"
        times.append(time.monotonic() - started)
        echo_once(daemon.address())
    for thread in threads:
        thread.join()
    for client in stalled:
        client.close()

    print(f"status: {len(times)} times, slowest {max(times) * 1000:.1f} ms")  # noqa: T201
    assert max(times) < 0.1
    assert len(proc.descriptors(daemon.pid)) < 60


def test_descriptors_cannot_be_passed_to_the_supervisor(start: Starter) -> None:
    """Descriptors that a client sends never stay in the supervisor; a new kernel does not even take them."""
    daemon = start(expect=["control.rejected"])
    before = len(proc.descriptors(daemon.pid))
    for _ in range(20):
        with daemon.control_connection() as client, contextlib.suppress(PermissionError):
            socket.send_fds(client, [b'{"command": "sta'], [0] * 100)
    assert daemon.control({"command": "status"})["ok"]

    wait_until(lambda: len(proc.descriptors(daemon.pid)) <= before, what="no more descriptors than before")


def test_socat_speaks_to_the_daemon(start: Starter) -> None:
    """One line from a shell is enough, as the manual says."""
    if not shutil.which("socat"):
        pytest.skip("needs socat")
    daemon = start()
    path = daemon.runtime / "control.sock"
    done = shell(f'echo \'{{"command": "status"}}\' | socat - UNIX-CONNECT:{path}')

    assert json.loads(done.stdout)["status"]["pid"] == daemon.pid


def test_lock_is_of_the_supervisor_alone(start: Starter) -> None:
    """The lock is held while the daemon runs, and by no worker: an orphan would keep the next daemon out."""
    daemon = start(workers=2)
    fd = os.open(daemon.runtime / "echod.lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    workers = daemon.workers()
    for pid in workers:
        os.kill(pid, SIGSTOP)  # or they would be gone soon
    daemon.signal(SIGKILL)
    daemon.wait_exit()
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    for pid in workers:
        os.kill(pid, SIGKILL)
    wait_until(lambda: not any(map(proc.alive, workers)), what="the workers' end")
