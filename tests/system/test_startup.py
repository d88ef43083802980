"""Starting: the starter tells the truth, in time, and what it leaves behind is a daemon by every step of daemon(7)."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.system import proc
from tests.system.clients import connect, echo_once, free_port, ping
from tests.system.daemon import ECHOD, ROOT, SCALE, Daemon, StartFailedError, children_cpu, environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.conftest import Size

PROMPT = 2.0  # CPU seconds in which a start that cannot succeed must say so; a loaded machine must not decide
PATIENCE = 20.0  # seconds that it may take at the most
MARK = "inherited"  # the file on which a hostile parent leaves its descriptors open

HOSTILE = """
import os, resource, signal, sys
closed, limit, mark, *command = sys.argv[1:]
os.dup2(os.open(mark, os.O_RDONLY | os.O_CREAT), 5002)
for fd in range(int(limit) or 3, 5002):
    os.dup2(5002, fd)
if int(limit):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
for fd in range(3) if int(closed) else ():
    os.close(fd)
command[-1] = os.path.relpath(command[-1])
os.execv(command[0], command)
"""

WITH_UMASK = "import os, sys; os.umask(int(sys.argv[1], 8)); os.execv(sys.argv[2], sys.argv[2:])"

WITHOUT_SPACE = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
os.execv(sys.argv[1], sys.argv[1:])
"""

ALLOWED = {
    "ECHOD_CLEANED",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "PATH",
    "RUNTIME_DIRECTORY",
    "SHELL",
    "TZ",
    "USER",
    "XDG_RUNTIME_DIR",
}
POISON = {
    "LD_PRELOAD": "",
    "PYTHONPATH": "/nonexistent/poison",
    "PYTHONINSPECT": "1",
    "PYTHONSTARTUP": "/nonexistent/poison.py",
    "IFS": "/",
    "LISTEN_FDS": "3",
    "LISTEN_PID": "1",
    "HUGE": "x" * 100 * 1024,
}

IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
LEFT_TO_THE_SUPERVISOR = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")


def without_null_device(daemon: Daemon, before: str) -> subprocess.CompletedProcess[str]:
    """Run a starter in a mount namespace whose /dev is empty, after a command of the shell.

    Coverage is not measured there: it could not write what it has found, and would say so.
    """
    env = {name: value for name, value in environment().items() if not name.startswith("COVERAGE_")}
    shell = f'mount -t tmpfs none /dev; {before or ":"}; exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "-", *ECHOD, "run", "--daemon", "-c", str(daemon.file)],
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE * SCALE,
        env=env,
        cwd=ROOT,
        check=False,
    )


class Outcome(NamedTuple):
    """What a starter said, and how many CPU seconds it took."""

    code: int
    lines: list[str]
    seconds: float


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Make daemons under --daemon that the test starts by itself; none of them outlives it."""
    made: list[Daemon] = []

    def one(**options: Any) -> Daemon:
        directory = tmp_path / f"echod-{len(made)}"
        directory.mkdir()
        daemon = Daemon(directory, **({"detached": True} | options))
        made.append(daemon)
        return daemon

    try:
        yield one
    finally:
        for daemon in made:
            daemon.kill()


def run(daemon: Daemon, prefix: Sequence[str] = (), **extra: str) -> Outcome:
    """Run the starter to its end: it returns only once nothing of the daemon holds its standard streams."""
    used = children_cpu()
    result = subprocess.run(
        [*prefix, *ECHOD, "run", "--daemon", "-c", str(daemon.file)],
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE * SCALE,
        env=environment(**extra),
        cwd=ROOT,
        check=False,
    )
    return Outcome(result.returncode, (result.stdout + result.stderr).splitlines(), children_cpu() - used)


def assert_refused(outcome: Outcome, code: int, *reasons: str) -> None:
    """Hold that the start was refused in time, with one line of echod's for each reason."""
    assert (code, len(reasons)) == (outcome.code, len(outcome.lines)), outcome.lines
    for line, reason in zip(outcome.lines, reasons, strict=True):
        assert line.startswith("echod: ")
        assert reason in line
    assert outcome.seconds < PROMPT


def signals_of(pid: int, field: str) -> set[int]:
    """Return the signals of a mask in /proc/PID/status."""
    mask = int(proc.status(pid)[field], 16)
    # The C library keeps 32 and 33 for itself: no program can change what they were when it was started.
    return {number for number in range(1, 65) if mask & 1 << number - 1 and number not in {32, 33}}


def ancestors(pid: int) -> list[int]:
    """Return the parents of a process up to the first."""
    found = []
    while pid and (fields := proc.stat(pid)):
        pid = int(fields[1])
        found.append(pid)
    return found


def at(port: int) -> list[dict[str, Any]]:
    """Return the listener tables for one address with a fixed port."""
    return [{"name": "echo", "kind": "tcp", "address": f"127.0.0.1:{port}"}]


# -- the starter ------------------------------------------------------------------------------------------------------


def test_the_first_connect_works(make: Callable[..., Daemon], size: Size) -> None:
    """Each time the starter has left with 0, the very next connect is echoed, and the state says ready."""
    for _ in range(size(20, 200)):
        daemon = make(workers=2)
        outcome = run(daemon)

        assert (0, []) == (outcome.code, outcome.lines)
        with connect(daemon.address()) as client:
            ping(client)
        assert "ready" == daemon.state()["state"]
        assert daemon.state()["pid"] == daemon.pid
        daemon.stop()
        daemon.check()


def test_a_port_in_use_is_refused(make: Callable[..., Daemon]) -> None:
    """The starter says which address is taken, and nothing is left behind."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon = make(listeners=at(port))
        outcome = run(daemon)

    assert_refused(outcome, 1, f"127.0.0.1:{port}: Address already in use")
    assert [] == list(daemon.runtime.iterdir())
    assert [] == daemon.left_over()


def test_a_second_instance_is_refused(make: Callable[..., Daemon]) -> None:
    """The starter names the pid of the first instance, which goes on undisturbed."""
    daemon = make().start()
    pid = daemon.pid

    assert_refused(run(daemon), 1, f"already running (pid {pid})")
    assert pid == daemon.pid
    echo_once(daemon.address(), b"still here")
    daemon.stop()
    daemon.check()


def test_of_many_starts_at_once_one_wins(make: Callable[..., Daemon], size: Size) -> None:
    """A hundred starters at the same moment: one leaves with 0, the others name its daemon.

    Catches a lock that is taken by looking whether a file is there.
    """
    count = size(4, 100)
    daemon = make()
    command = [*ECHOD, "run", "--daemon", "-c", str(daemon.file)]
    starters = [
        subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, encoding="utf-8")
        for _ in range(count)
    ]
    said = sorted((starter.communicate(timeout=(20 + count) * SCALE)[1], starter.returncode) for starter in starters)
    pid = daemon.pid

    assert [("", 0), *[(f"echod: already running (pid {pid})\n", 1)] * (count - 1)] == said
    echo_once(daemon.address(), b"the winner")
    daemon.stop()
    daemon.check()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/run", "not a directory"),
        ("file", "not a directory"),
        ("open", "others may write to it (mode 0777); run "),
        ("link", "a symbolic link; name the directory itself"),
        ("/proc/echod", "No such file or directory"),
        pytest.param(
            "closed/run",
            "Permission denied",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
)
def test_a_bad_runtime_directory_is_refused(make: Callable[..., Daemon], place: str, reason: str) -> None:
    """A runtime directory that cannot be made, or is not the daemon's own, is named with the reason."""
    daemon = make()
    daemon.directory.joinpath("file").touch()
    daemon.directory.joinpath("open").mkdir()
    daemon.directory.joinpath("open").chmod(0o777)
    daemon.directory.joinpath("closed").mkdir(0o500)
    daemon.directory.joinpath("link").symlink_to(daemon.directory)
    directory = daemon.directory / place
    daemon.write(daemon={"runtime_directory": str(directory)})

    assert_refused(run(daemon), 1, f"runtime directory {directory}: {reason}")


def test_a_bad_configuration_is_refused(make: Callable[..., Daemon]) -> None:
    """Every fault is a line with file, line number and key; the exit code is 78."""
    daemon = make()
    daemon.file.write_text('[daemon]\nworkers = 0\n\n[limits]\nmax_conections = 1\n[log]\nfile = "/tmp/x"\n')

    assert_refused(
        run(daemon),
        78,
        f"{daemon.file}:2: daemon.workers: must be",
        f'{daemon.file}:5: limits.max_conections: unknown key, did you mean "max_connections"?',
    )


def test_a_missing_log_file_is_refused(make: Callable[..., Daemon]) -> None:
    """A daemon without a terminal must have somewhere to write."""
    daemon = make(log={"file": ""})

    assert_refused(run(daemon), 78, f"{daemon.file}: log.file: must name a file under --daemon")


def test_an_unwritable_log_is_refused(make: Callable[..., Daemon]) -> None:
    """The log is opened while the terminal can still be told that it cannot be."""
    daemon = make(log={"file": "/proc/echod.log"})

    assert_refused(run(daemon), 1, "log.file: /proc/echod.log: No such file or directory")
    assert [] == list(daemon.runtime.iterdir())


def test_a_service_manager_is_refused(make: Callable[..., Daemon]) -> None:
    """Under $NOTIFY_SOCKET the manager waits for this very process, which must not detach."""
    assert_refused(run(make(), NOTIFY_SOCKET="/run/systemd/notify"), 2, "--daemon makes no sense under a service")


@as_root
def test_an_unknown_user_is_refused(make: Callable[..., Daemon]) -> None:
    """The user whom workers are to become is looked up before anything is detached."""
    daemon = make(daemon={"user": "no-such-user"})

    assert_refused(run(daemon), 1, 'daemon.user: there is no user "no-such-user"')


@as_root
@pytest.mark.parametrize(
    ("closed", "lines"),
    [
        (("0",), ["echod: standard input is closed, and /dev/null cannot take its place: No such file or directory"]),
        (("1",), ["echod: standard output is closed, and /dev/null cannot take its place: No such file or directory"]),
        (("0", "1", "2"), []),
    ],
)
def test_closed_stream_without_null_device_is_one_line(
    make: Callable[..., Daemon], closed: tuple[str, ...], lines: list[str]
) -> None:
    """In a root directory without /dev/null a closed stream cannot be replaced: exit code 1, and one line where it can.

    The line goes to standard error only.
    """
    daemon = make()
    result = without_null_device(daemon, "; ".join(f"exec {fd}>&-" for fd in closed))

    assert 1 == result.returncode
    assert "" == result.stdout
    assert lines == [line.partition("; ")[0] for line in result.stderr.splitlines()]
    assert not daemon.runtime.exists()


@as_root
def test_daemon_without_null_device_is_one_line(make: Callable[..., Daemon]) -> None:
    """Without /dev/null a daemon has nothing to put in the place of its standard streams."""
    daemon = make()
    result = without_null_device(daemon, "")

    assert 1 == result.returncode
    assert "echod: /dev/null: No such file or directory\n" == result.stderr
    assert [] == list(daemon.runtime.iterdir())


def test_variable_set_by_the_interpreter_starts_the_daemon_once(make: Callable[..., Daemon], tmp_path: Path) -> None:
    """A module sets a variable at each start of the interpreter, as a .pth file, pex or PyInstaller may do.

    The daemon is there, the variable is not in its environment, and the interpreter has started twice, not for ever.
    """
    starts = tmp_path / "starts"
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", site], check=True)
    (packages,) = site.glob("lib/python*/site-packages")
    packages.joinpath("a.pth").write_text(
        f"import os; 'LATE' in os.environ or open({str(starts)!r}, 'a').write('x'); os.environ['LATE'] = '1'\n"
    )
    packages.joinpath("b.pth").write_text("\n".join(filter(os.path.isdir, sys.path)))
    daemon = make()
    result = subprocess.run(
        [site / "bin/python", "-m", "echod", "run", "--daemon", "-c", daemon.file],
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE * SCALE,
        env=environment(),
        cwd=ROOT,
        check=False,
    )
    daemon.wait_ready()

    assert (0, "") == (result.returncode, result.stderr)
    assert "xx" == starts.read_text()
    assert "LATE" not in proc.environment(daemon.pid)
    daemon.stop()
    daemon.check()


def test_daemon_without_close_range_does_not_count_to_the_limit(make: Callable[..., Daemon], tmp_path: Path) -> None:
    """Where close_range(2) is missing, no descriptor is closed that was not open: the limit may be a billion."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    calls = ("-e", "trace=close,close_range", "-e", "inject=close_range:error=ENOSYS", "-o", str(trace))
    daemon = make(prefix=["strace", "-D", "-f", "-qq", *calls]).start()

    assert 100 > trace.read_text(errors="replace").count(" EBADF ")
    daemon.stop()
    wait_until(lambda: not daemon.left_over(), what="the end of strace")
    daemon.check()


def test_a_failure_after_detaching_reaches_the_starter(make: Callable[..., Daemon]) -> None:
    """A daemon that cannot even write its pid hands the reason to the starter's terminal, and leaves nothing."""
    daemon = make()

    assert_refused(run(daemon, [sys.executable, "-c", WITHOUT_SPACE]), 1, "File too large")
    wait_until(lambda: not daemon.left_over(), what="the daemon's end")
    assert [] == list(daemon.runtime.iterdir())


def test_an_interrupted_starter_leaves_the_daemon_alone(make: Callable[..., Daemon]) -> None:
    """^C in the instant between detaching and readiness ends the starter; the daemon keeps its pid file and goes on."""
    daemon = make()
    with subprocess.Popen(
        [*ECHOD, "run", "--daemon", "-c", str(daemon.file)],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as starter:
        wait_until(lambda: daemon.pid_file.exists() and daemon.pid_file.read_text(), what="the pid")
        starter.send_signal(SIGINT)
        _, said = starter.communicate(timeout=20 * SCALE)
    daemon.wait_ready()

    assert starter.returncode in {0, -SIGINT}
    assert b"" == said
    echo_once(daemon.address(), b"still here")
    daemon.stop()
    daemon.check()


# -- the pid file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"1\n", b"999999999\n", b"-1", b"\0\xff garbage" * 1000], ids=repr)
def test_an_old_pid_file_hinders_nobody(make: Callable[..., Daemon], content: bytes) -> None:
    """What a pid file says matters only while it is locked: stale, empty and garbled ones are written over."""
    daemon = make()
    daemon.runtime.mkdir()
    daemon.pid_file.write_bytes(content)
    daemon.start()

    assert f"{daemon.pid}\n".encode() == daemon.pid_file.read_bytes()
    assert proc.alive(daemon.pid)
    daemon.stop()
    daemon.check()


def test_start_replaces_symbolic_link_at_pid_file(make: Callable[..., Daemon]) -> None:
    """A link in the place of the pid file is never followed: its target stays as it was."""
    daemon = make()
    daemon.runtime.mkdir()
    target = daemon.directory / "target"
    target.write_text("precious")
    daemon.pid_file.symlink_to(target)

    daemon.start()
    assert "precious" == target.read_text()
    assert f"{daemon.pid}\n" == daemon.pid_file.read_text()
    assert not daemon.pid_file.is_symlink()
    daemon.stop()
    daemon.check()


def test_start_refuses_other_kinds_of_files(make: Callable[..., Daemon]) -> None:
    """A directory for a pid file, a pipe or a link for the lock: one line names the file, and nothing is waited for."""
    daemon = make()
    lock = daemon.runtime / "echod.lock"
    daemon.runtime.mkdir()
    daemon.pid_file.mkdir()
    assert_refused(run(daemon), 1, f"{daemon.pid_file}: Is a directory")
    os.mkfifo(lock)
    assert_refused(run(daemon), 1, f"{lock}: not a regular file; remove it")
    lock.unlink()
    lock.symlink_to(daemon.directory / "target")
    assert_refused(run(daemon), 1, f"{lock}: is a symbolic link; remove it")
    assert not (daemon.directory / "target").exists()


# -- the steps of daemon(7) -------------------------------------------------------------------------------------------


def hostile(make: Callable[..., Daemon], *, closed: bool = False, limit: int = 0) -> Daemon:
    """Start from a parent that ignores and blocks signals, leaves 5,000 descriptors open and poisons the environment.

    With `closed` it also closes descriptors 0 to 2; with `limit` it lowers the limit of descriptors below those open.
    The path of the configuration is handed over relative to the starter's directory.
    """
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 5100:
        pytest.skip("the machine does not allow 5,000 descriptors")
    daemon = make(workers=2, env=environment(**POISON))
    mark = str(daemon.directory / MARK)
    daemon._prefix = [sys.executable, "-c", HOSTILE, str(int(closed)), str(limit), mark]
    return daemon.start()


def test_a_hostile_parent_leaves_no_trace(make: Callable[..., Daemon]) -> None:
    """Whatever the parent left: descriptors, signals, environment, session, directory and streams are a daemon's."""
    daemon = hostile(make)
    supervisor, *workers = pids = daemon.pids()
    starter = daemon._process
    assert starter

    assert 2 == len(workers)
    for pid in pids:
        fields, descriptors = proc.stat(pid), proc.descriptors(pid)
        assert [] == [fd for fd, what in descriptors.items() if what == str(daemon.directory / MARK)]
        assert {"/dev/null"} == {descriptors[fd] for fd in range(3)}
        assert not any(proc.descriptor_flags(pid, fd) & os.O_CLOEXEC for fd in range(3))
        assert set() == signals_of(pid, "SigBlk")
        assert set() == proc.environment(pid).keys() & POISON.keys()
        assert set() == {
            name for name in proc.environment(pid) if name not in ALLOWED and not name.startswith(("LC_", "COVERAGE_"))
        }
        assert "/" == str(Path(f"/proc/{pid}/cwd").readlink())
        assert "0027" == proc.status(pid)["Umask"]
        assert 0 == int(fields[4]), "a controlling terminal"
        assert int(fields[3]) not in {pid, starter.pid, os.getsid(0)}, "the session"
    assert {proc.stat(supervisor)[3]} == {proc.stat(pid)[3] for pid in pids}
    assert int(proc.stat(supervisor)[1]) in ancestors(os.getpid()), "neither init nor a subreaper"
    assert signals_of(supervisor, "SigIgn") == IGNORED_BY_PYTHON
    for pid in workers:
        assert signals_of(pid, "SigIgn") == IGNORED_BY_PYTHON | LEFT_TO_THE_SUPERVISOR
        assert str(daemon.runtime / "echod.lock") not in proc.descriptors(pid).values(), "an orphan would hold the lock"

    daemon.stop()
    daemon.check()


def test_descriptors_beyond_the_limit_are_closed(make: Callable[..., Daemon]) -> None:
    """A parent that lowered the limit of descriptors below those it holds does not smuggle them into the daemon."""
    daemon = hostile(make, limit=1024)
    mark = str(daemon.directory / MARK)
    smuggled = {pid: len([what for what in proc.descriptors(pid).values() if what == mark]) for pid in daemon.pids()}

    assert dict.fromkeys(daemon.pids(), 0) == smuggled
    daemon.stop()
    daemon.check()


def test_closed_standard_streams_hinder_nobody(make: Callable[..., Daemon]) -> None:
    """Started without descriptors 0 to 2, none of them becomes a socket or the log: all three are /dev/null."""
    daemon = hostile(make, closed=True)

    for pid in daemon.pids():
        assert {"/dev/null"} == {proc.descriptors(pid)[fd] for fd in range(3)}
        assert not any(proc.descriptor_flags(pid, fd) & os.O_CLOEXEC for fd in range(3))
    echo_once(daemon.address(), b"undisturbed")
    daemon.stop()
    daemon.check()


def test_a_hostile_parent_does_not_make_it_deaf(make: Callable[..., Daemon]) -> None:
    """HUP reloads from a path that was given relative to a directory left long ago, USR1 reopens, TERM stops."""
    daemon = hostile(make)
    daemon.reload(limits={"idle_timeout": "1m"})
    daemon.signal(signal.SIGUSR1)
    daemon.wait_for("log.reopened")

    assert str(daemon.file) == os.path.realpath(daemon.records("config.loaded")[-1]["echod.config.path"])
    echo_once(daemon.address(), b"reloaded")
    daemon.stop()
    daemon.check()


@as_root
def test_workers_have_no_privileges(make: Callable[..., Daemon]) -> None:
    """Started as root, workers have the user and group asked for in all four columns, no groups, no capabilities."""
    daemon = make(workers=2, daemon={"user": "daemon", "group": "nogroup"}).start()
    for pid in daemon.workers():
        status = proc.status(pid)

        assert ["1"] * 4 == status["Uid"].split()
        assert ["65534"] * 4 == status["Gid"].split()
        assert "0" not in status["Groups"].split()
        assert {"65534"} >= set(status["Groups"].split()) - {"1"}
        assert {0} == {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    assert ["0"] * 4 == proc.status(daemon.pid)["Uid"].split()
    daemon.stop()
    daemon.check()


@pytest.mark.parametrize("umask", ["000", "022", "077"])
def test_file_modes_do_not_depend_on_the_starter(make: Callable[..., Daemon], umask: str) -> None:
    """Log 0640, pid file 0644, lock and control socket 0600, directory 0755, whatever the umask of the starter was."""
    daemon = make(prefix=[sys.executable, "-c", WITH_UMASK, umask]).start()
    own = [daemon.runtime / name for name in ("echod.lock", "control.sock")]
    paths = (daemon.log_file, daemon.pid_file, *own, daemon.runtime)
    modes = [oct(path.stat().st_mode & 0o7777) for path in paths]

    assert ["0o640", "0o644", "0o600", "0o600", "0o755"] == modes
    daemon.stop()
    daemon.check()


# -- after a crash ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detached", [False, True])
def test_a_killed_daemon_can_be_started_again_at_once(make: Callable[..., Daemon], detached: bool) -> None:
    """After SIGKILL of the supervisor the same command works at once, on the same port, stuck client or not."""
    daemon = make(detached=detached, workers=2, listeners=at(free_port())).start()
    for _ in range(3):
        killed = daemon.pid
        with connect(daemon.address()) as stuck:
            stuck.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                while True:
                    stuck.send(bytes(1 << 20))
            os.kill(killed, SIGKILL)
            if not detached:
                assert daemon.wait_exit() == -SIGKILL
                daemon.exit_code = None
            daemon.start()

            assert killed != daemon.pid
            echo_once(daemon.address(), b"again")
    daemon.stop()
    daemon.check()


def test_a_foreground_start_says_why_not(make: Callable[..., Daemon]) -> None:
    """In the foreground a refusal has the same words and the same exit code as under --daemon."""
    first = make(detached=False).start()
    second = make(detached=False, daemon={"runtime_directory": str(first.runtime)})
    with pytest.raises(StartFailedError) as refused:
        second.start()

    assert (1, f"echod: already running (pid {first.pid})\n") == (refused.value.code, refused.value.stderr)
    assert re.fullmatch(r"\d+\n", first.pid_file.read_text())
    first.stop()
    first.check()
