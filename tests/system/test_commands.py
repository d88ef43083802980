"""The commands as an operator meets them: what they print, how they exit, and what they say to misuse.

Rule: whatever is wrong is one clear line `echod: ...` on stderr, never a traceback, within two seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system import proc
from tests.system.clients import connect, echo_once, ping, read_to_end
from tests.system.daemon import (
    ECHOD,
    PYTHON,
    ROOT,
    SCALE,
    Daemon,
    StartFailedError,
    children_cpu,
    echod,
    environment,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.conftest import Size
    from tests.system.daemon import Starter

PROMPT = 2.0  # CPU seconds: -X dev and the imports take most of them; a loaded machine must not decide


@contextlib.contextmanager
def promptly() -> Iterator[None]:
    """Hold that the commands run inside use little CPU time and do not wait for long."""
    used, started = children_cpu(), time.monotonic()
    yield
    assert children_cpu() - used < PROMPT
    assert time.monotonic() - started < 15 * PROMPT * SCALE


def assert_refused(result: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    """Hold that a command failed with this code and one `echod: ` line that contains the texts."""
    lines = result.stderr.splitlines()
    assert (result.returncode, len(lines)) == (code, 1), result
    assert lines[0].startswith("echod: ")
    assert "Traceback" not in result.stdout
    for text in texts:
        assert text in lines[0]


def test_check(tmp_path: Path) -> None:
    """`check` accepts a good file with 0, and says of a bad one every fault with its line, with 78."""
    daemon = Daemon(tmp_path)
    assert echod("check", "-c", str(daemon.file)).returncode == 0
    daemon.file.write_text('[limits]\nmax_conections = 3\nbuffer = "many"\n')
    result = echod("check", "-c", str(daemon.file))
    lines = result.stderr.splitlines()

    assert result.returncode == 78
    assert len(lines) == 2
    assert f'{daemon.file}:2: limits.max_conections: unknown key, did you mean "max_connections"?' in lines[0]
    assert f"{daemon.file}:3: limits.buffer" in lines[1]


def test_check_does_not_disturb_a_running_daemon(start: Starter) -> None:
    """`check` of the file of a running daemon answers, and the daemon does not notice."""
    daemon = start()
    with connect(daemon.address()) as client:
        ping(client)
        assert echod("check", "-c", str(daemon.file)).returncode == 0
        ping(client)

    assert daemon.records("signal.received") == []


def test_show_config_parses_back(tmp_path: Path) -> None:
    """What `show config` prints is a file that `check` accepts and that prints the same again."""
    daemon = Daemon(
        tmp_path, workers=3, limits={"buffer": "16KiB", "idle_timeout": "90s"}, log={"suppress": ["log.dropped"]}
    )
    first = echod("show", "config", "-c", str(daemon.file))
    again = tmp_path / "again.toml"
    again.write_text(first.stdout)
    shown = tomllib.loads(first.stdout)

    assert first.returncode == 0
    assert first.stdout == echod("show", "config", "-c", str(again)).stdout
    assert shown["daemon"]["workers"] == 3
    assert shown["log"]["suppress"] == ["log.dropped"]


def test_show_defaults_is_the_shipped_file() -> None:
    """`show defaults` prints etc/echod.toml to the letter."""
    result = echod("show", "defaults")

    assert result.returncode == 0
    assert (ROOT / "etc" / "echod.toml").read_text() == result.stdout


def test_show_schema() -> None:
    """`show schema` prints a JSON Schema that knows the tables."""
    result = echod("show", "schema")
    schema = json.loads(result.stdout)

    assert {"daemon", "log", "limits", "listener"} <= set(schema["properties"])


def test_status(start: Starter) -> None:
    """`status` names state, pid and addresses; `status --json` prints the state, with the numbers of this moment."""
    daemon = start(workers=2)
    with connect(daemon.address()) as client:
        ping(client)
        text = echod("status", "-c", str(daemon.file))
        state = json.loads(echod("status", "--json", "-c", str(daemon.file)).stdout)

    assert text.returncode == 0
    for word in ("ready", str(daemon.pid), str(daemon.address()[1])):
        assert word in text.stdout
    assert (state["pid"], state["state"]) == (daemon.pid, "ready")
    assert sorted(worker["pid"] for worker in state["workers"]) == daemon.workers()


def test_status_is_live(start: Starter) -> None:
    """The numbers are those of this moment, and asking writes nothing: an idle daemon keeps no disk awake."""
    daemon = start()
    files = [daemon.runtime, *daemon.runtime.iterdir()]

    def written() -> list[int]:
        return [path.stat().st_mtime_ns for path in files]

    def active() -> int:
        return int(json.loads(echod("status", "--json", "-c", str(daemon.file)).stdout)["connections"]["active"])

    with connect(daemon.address()) as client:
        ping(client)
        wait_until(lambda: active() == 1, 5, "one active connection in the status")
    wait_until(lambda: active() == 0, 5, "none in the status")
    before = written()
    active()

    assert written() == before


@pytest.mark.parametrize(
    "command", [["status"], ["status", "--json"], ["stop"], ["stop", "--wait"], ["reload"]], ids=" ".join
)
@pytest.mark.parametrize("pid_file", [None, "", "1\n", "garbage"], ids=["none", "empty", "foreign", "garbage"])
def test_not_running(tmp_path: Path, command: list[str], pid_file: str | None) -> None:
    """Without a daemon, whatever the pid file says, each command exits 3 and signals nobody."""
    daemon = Daemon(tmp_path)
    daemon.runtime.mkdir()
    if pid_file is not None:
        daemon.pid_file.write_text(pid_file)
    with promptly():
        assert_refused(echod(*command, "-c", str(daemon.file)), 3, "not running")


def test_a_pid_file_of_somebody_else_is_not_believed(start: Starter, tmp_path: Path) -> None:
    """`stop` compares the lock, not the number: a process whose pid stands in a stale file is left alone."""
    other = start()
    directory = tmp_path / "stale"
    directory.mkdir()
    daemon = Daemon(directory)
    daemon.runtime.mkdir()
    daemon.pid_file.write_text(f"{other.pid}\n")
    assert_refused(echod("stop", "--wait", "-c", str(daemon.file)), 3)

    assert proc.alive(other.pid)
    assert other.records("signal.received") == []


def test_stop_wait(start: Starter) -> None:
    """`stop --wait` returns 0 when the daemon is gone, and not before."""
    daemon = start(workers=2)
    pids = daemon.pids()
    result = echod("stop", "--wait", "-c", str(daemon.file))

    assert result.returncode == 0, result
    # The supervisor is this test's child, so it stays a zombie until it is waited for; a zombie counts as gone.
    assert not any(map(proc.alive, pids))
    assert daemon.wait_exit() == 0


def test_a_broken_file_does_not_prevent_a_stop(start: Starter) -> None:
    """`status` and `stop` need the runtime directory only: other faults in the file do not matter."""
    daemon = start()
    daemon.file.write_text(
        f'[daemon]\nruntime_directory = "{daemon.runtime}"\nworkers = "lots"\n[limits]\nbuffer = 1\n'
    )
    assert echod("status", "-c", str(daemon.file)).returncode == 0
    assert echod("stop", "--wait", "-c", str(daemon.file)).returncode == 0
    assert daemon.wait_exit() == 0


def test_reload_wait(start: Starter) -> None:
    """`reload --wait` returns 0 when the new file is in force, 78 with its faults when it is not taken."""
    daemon = start(expect=["reload.refused"])
    daemon.write(limits={"idle_timeout": "200ms"})
    assert echod("reload", "--wait", "-c", str(daemon.file)).returncode == 0
    with connect(daemon.address()) as client:
        assert read_to_end(client, 5) == (b"", "fin")
    state = daemon.state()
    good = daemon.file.read_text()
    daemon.file.write_text(good + "\n[nonsense]\n")
    result = echod("reload", "--wait", "-c", str(daemon.file))
    daemon.file.write_text(good)

    assert result.returncode == 78, result
    assert "nonsense" in result.stderr
    assert (state["generation"], state["workers"]) == (daemon.state()["generation"], daemon.state()["workers"])
    echo_once(daemon.address())


def test_reload_without_wait(start: Starter) -> None:
    """`reload` signals and returns; the reload happens."""
    daemon = start()
    assert echod("reload", "-c", str(daemon.file)).returncode == 0
    daemon.wait_for("reload.completed")


MISUSE: dict[str, tuple[list[str | bytes], int, str]] = {
    "no command": ([], 2, "required"),
    "unknown command": (["frobnicate"], 2, "frobnicate"),
    "unknown option": (["run", "--frobnicate"], 2, "--frobnicate"),
    "abbreviated option": (["run", "--dae"], 2, "--dae"),
    "abbreviated config": (["check", "--conf", "x"], 2, "--conf"),
    "missing value": (["check", "-c"], 2, "-c"),
    "value for a switch": (["run", "--daemon=yes"], 2, "--daemon"),
    "empty config": (["check", "--config", ""], 2, "config"),
    "extra word": (["check", "now"], 2, "now"),
    "unknown topic": (["show", "everything"], 2, "everything"),
    "wait at the wrong command": (["check", "--wait"], 2, "--wait"),
    "missing file": (["check", "-c", "/nonexistent/echod.toml"], 78, "/nonexistent/echod.toml"),
    "directory": (["check", "-c", "/"], 78, "/"),
    "device": (["check", "-c", "/dev/zero"], 78, "/dev/zero"),
    "missing file of run": (["run", "-c", "/nonexistent/echod.toml"], 78, "/nonexistent/echod.toml"),
    "surrogate bytes": (["check", "-c", b"/nonexistent/\xff\xfe.toml"], 78, "/nonexistent/"),
    "surrogate option": ([b"--\xff"], 2, ""),
    "line feed": (["check", "-c", "/nonexistent/a\nb"], 78, "/nonexistent/a"),
    "escape sequence": (["frob\x1b[31m"], 2, "frob"),
}


@pytest.mark.parametrize(("arguments", "code", "text"), MISUSE.values(), ids=MISUSE)
def test_misuse(arguments: list[str | bytes], code: int, text: str) -> None:
    """Each kind of misuse has its exit code and one printable line that names what was wrong."""
    with promptly():
        result = echod(*arguments)

    assert_refused(result, code, text)
    assert result.stderr.rstrip("\n").isprintable()


def shell(script: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `$ECHOD` is the command."""
    command = " ".join(ECHOD)
    return subprocess.run(
        ["bash", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        env=environment(ECHOD=command) | dict(env or {}),
    )


PRINTING = ["--version", "--help", "run --help", "check", "show config", "show defaults", "show schema", "show unit"]


@pytest.mark.parametrize("command", PRINTING)
@pytest.mark.parametrize(
    ("output", "outcome"),
    [
        ("| true", (0, "")),
        (">&-", (0, "")),
        ("> /dev/full", (1, "echod: standard output: No space left on device\n")),
        ("1< /dev/null", (1, "echod: standard output: Bad file descriptor\n")),
    ],
    ids=["closed pipe", "closed", "full", "read only"],
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_output_that_cannot_be_written_fails_in_one_line(
    tmp_path: Path, command: str, output: str, outcome: tuple[int, str], unbuffered: str
) -> None:
    """A full device is one line and exit code 1; a pipe without a reader is silent and 0, buffered by Python or not.

    Catches what the interpreter flushes only as it exits, with code 120 and words of its own.
    """
    code, complaint = outcome
    config = f"-c {Daemon(tmp_path).file}" * (command in {"check", "show config"})
    variables = {"PYTHONUNBUFFERED": unbuffered} if unbuffered else {}
    result = shell(f"$ECHOD {command} {config} {output}; echo code ${{PIPESTATUS[0]}}", variables)
    complaints = [line for line in result.stderr.splitlines(keepends=True) if "in a home directory" not in line]

    assert result.stdout == f"code {code}\n"
    assert "".join(complaints) == complaint


def test_error_that_cannot_be_written_keeps_its_exit_code(tmp_path: Path) -> None:
    """With standard error on a full device a refused configuration is still exit code 78, not the interpreter's 120."""
    result = shell(f"$ECHOD check -c {tmp_path}/missing.toml 2> /dev/full; echo $?")

    assert result.stdout == "78\n"


def test_status_on_a_full_device_fails_in_one_line(start: Starter) -> None:
    """`status` of a running daemon, for people and for programs, fails as the other commands do."""
    daemon = start()
    for command in ("status", "status --json"):
        result = shell(f"$ECHOD {command} -c {daemon.file} > /dev/full")

        assert result.returncode == 1
        assert result.stderr == "echod: standard output: No space left on device\n"


def is_blocked_writing(pid: int) -> bool:
    """Tell whether a process sleeps in a system call on descriptor 1, which is a write."""
    state = proc.stat(pid)[0]
    called = Path(f"/proc/{pid}/syscall").read_text().split()
    return state == "S" and called[1:2] == ["0x1"]


def test_interrupt_while_output_is_blocked_ends_the_command() -> None:
    """^C while the reader of standard output does not read ends the command with 130, at once and without a word."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(4096))
    with subprocess.Popen(
        [*ECHOD, "show", "schema"], cwd=ROOT, env=environment(), stdout=writer, stderr=subprocess.PIPE
    ) as command:
        try:
            wait_until(lambda: is_blocked_writing(command.pid), what="a blocked write")
            command.send_signal(signal.SIGINT)
            _, complaint = command.communicate(timeout=10 * SCALE)
        finally:
            command.kill()
            os.close(reader)
            os.close(writer)

    assert (command.returncode, complaint) == (128 + signal.SIGINT, b"")


@pytest.fixture(scope="session")
def latin_locale(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Make a locale whose encoding is Latin-1, and return the variables that select it."""
    directory = tmp_path_factory.mktemp("locales")
    localedef = shutil.which("localedef")
    if not localedef:
        pytest.skip("localedef is not installed")
    command = [localedef, "-i", "en_US", "-f", "ISO-8859-1", f"{directory}/en_US.ISO-8859-1"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no locale can be made here: {made.stderr.splitlines()[-1]}")
    return {"LOCPATH": str(directory), "LC_ALL": "en_US.ISO-8859-1"}


def assert_config_is_utf_8(directory: Path, variables: dict[str, str]) -> None:
    """Hold that `show config` prints what `check` accepts and what has the same paths, whatever they hold."""
    file = str(directory / "größe 漢.log")
    daemon = Daemon(directory, log={"file": file})
    again = directory / "again.toml"
    shown = shell(f"$ECHOD show config -c {daemon.file} > {again}", variables)
    checked = shell(f"$ECHOD check -c {again}")

    assert (shown.returncode, shown.stderr) == (0, "")
    assert tomllib.loads(again.read_text(encoding="utf-8"))["log"]["file"] == file
    assert (checked.returncode, checked.stderr) == (0, "")


def test_show_config_is_utf_8_in_a_latin_1_locale(tmp_path: Path, latin_locale: dict[str, str]) -> None:
    """TOML is UTF-8, and so is what `show config` prints where text is Latin-1."""
    code = "import locale; print(locale.getencoding())"
    found = subprocess.run([*PYTHON, "-c", code], env=environment(**latin_locale), capture_output=True, check=True)

    assert found.stdout.lower() == b"iso-8859-1\n"
    assert_config_is_utf_8(tmp_path, latin_locale)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_show_config_is_utf_8_whatever_the_streams_are(tmp_path: Path, encoding: str) -> None:
    """PYTHONIOENCODING is for text that people read, not for files."""
    assert_config_is_utf_8(tmp_path, {"PYTHONIOENCODING": encoding})


def test_show_config_is_utf_8_in_the_c_locale(tmp_path: Path) -> None:
    """Also where the interpreter is kept from taking UTF-8 instead of ASCII."""
    assert_config_is_utf_8(tmp_path, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})


def test_show_unit_keeps_the_bytes_of_a_path(tmp_path: Path, latin_locale: dict[str, str]) -> None:
    """The unit names the command by the bytes of its path, also where the locale takes them for other characters."""
    command = tmp_path / "größe" / "echod"
    command.parent.mkdir()
    command.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r}); from echod.cli import main; sys.exit(main())\n")
    for variables in ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, latin_locale):
        env = environment(**variables)
        done = subprocess.run([*PYTHON, command, "show", "unit"], env=env, capture_output=True, check=True)

        assert f"ExecStart={command} run\n".encode() in done.stdout


def test_help_on_a_narrow_terminal() -> None:
    """`--help` fits 20 columns without failing, and names each command."""
    result = shell("$ECHOD --help", {"COLUMNS": "20"})

    assert (result.returncode, result.stderr) == (0, "")
    for command in ("run", "check", "reload", "stop", "status", "show"):
        assert command in result.stdout


def test_without_home_and_user(tmp_path: Path) -> None:
    """With neither HOME nor USER nor PATH set, `check` works."""
    daemon = Daemon(tmp_path)
    env = {name: value for name, value in environment().items() if name not in {"HOME", "USER", "LOGNAME", "PATH"}}

    assert echod("check", "-c", str(daemon.file), env=env).returncode == 0


def test_python_variables_reach_no_process_under_test() -> None:
    """Importing the tests' conftest removes them, so that each process under test has those of an ordinary shell.

    Catches a suite that passes only because PYTHONUNBUFFERED is set where it runs.
    """
    code = "import os, tests.conftest; print([name for name in os.environ if name.startswith('PYTHON')])"
    env = environment(PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", PYTHONHASHSEED="0")
    done = subprocess.run([*PYTHON, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
    assert [name for name in environment() if name.startswith("PYTHON")] == []


@pytest.mark.parametrize("variable", ["PYTHONWARNINGS=error", "PYTHONOPTIMIZE=2", "PYTHONUNBUFFERED=1", "PYTHONUTF8=0"])
def test_python_variables(start: Starter, variable: str) -> None:
    """Python's own variables do not change what the daemon does."""
    name, _, value = variable.partition("=")
    daemon = start(env=environment(**{name: value}))
    echo_once(daemon.address())


def test_a_path_beyond_ascii_under_the_c_locale(tmp_path: Path) -> None:
    """LANG=C and a path that is not ASCII: the file is found, and a message about it is printable."""
    folder = tmp_path / "größe"
    folder.mkdir()
    daemon = Daemon(folder)
    env = environment(LANG="C", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert echod("check", "-c", str(daemon.file), env=env).returncode == 0

    assert_refused(echod("check", "-c", str(daemon.file) + "x", env=env), 78)


def test_a_deleted_working_directory(tmp_path: Path) -> None:
    """From a directory that no longer exists an absolute path works and a relative one is refused in one line."""
    daemon = Daemon(tmp_path)
    script = 'd=$(mktemp -d) && cd "$d" && rmdir "$d" && $ECHOD check -c '
    env = {"PYTHONPATH": str(ROOT)}
    relative = shell(script + "echod.toml", env)

    assert shell(script + str(daemon.file), env).returncode == 0
    assert relative.returncode in {1, 2, 78}
    assert [line[:7] for line in relative.stderr.splitlines()] == ["echod: "]


@pytest.mark.alone
def test_a_second_instance_names_the_first(start: Starter) -> None:
    """A second `run` on the same runtime directory exits 1 at once with the pid of the first, which does not notice."""
    daemon = start()
    with promptly():
        assert_refused(echod("run", "-c", str(daemon.file)), 1, "already running", str(daemon.pid))

    assert daemon.pid_file.read_text() == f"{daemon.pid}\n"
    echo_once(daemon.address())


@pytest.mark.alone
def test_many_starts_at_once(tmp_path: Path, start: Starter, size: Size) -> None:
    """Of 20 simultaneous starts exactly one runs; the others exit 1 and say that it does. The short form has 8."""
    count = size(8, 20)
    daemon = start()
    daemon.stop()
    with (tmp_path / "output").open("wb") as output:
        rivals = [
            subprocess.Popen(
                [*ECHOD, "run", "-c", str(daemon.file)],
                cwd=ROOT,
                env=environment(),
                stdout=output,
                stderr=subprocess.PIPE,
            )
            for _ in range(count)
        ]
        try:
            wait_until(lambda: sum(rival.poll() is not None for rival in rivals) == count - 1, 30, "giving up")
            winner = next(rival for rival in rivals if rival.poll() is None)
            wait_until(lambda: daemon.state().get("state") == "ready", 10, "readiness")
            echo_once(daemon.address())
            winner.terminate()
            winner.wait(10)
            said = [rival.communicate(timeout=10)[1].decode() for rival in rivals if rival is not winner]
        finally:
            for rival in rivals:
                if rival.poll() is None:
                    rival.kill()
                    rival.wait()
                if rival.stderr:
                    rival.stderr.close()

    assert winner.returncode == 0
    assert {rival.returncode for rival in rivals if rival is not winner} == {1}
    assert all("already running" in text for text in said)


@pytest.mark.parametrize(
    "content", ["", "1\n", "garbage\0\xff", "9" * 5000], ids=["empty", "foreign", "garbage", "huge"]
)
def test_a_stale_pid_file_does_not_hinder(tmp_path: Path, content: str) -> None:
    """Whatever a dead daemon left in its pid file, the next start takes it over."""
    daemon = Daemon(tmp_path)
    daemon.runtime.mkdir()
    daemon.pid_file.write_text(content)
    with daemon:
        assert daemon.pid_file.read_text() == f"{daemon.pid}\n"
        echo_once(daemon.address())


def test_run_refuses_a_taken_port(start: Starter, tmp_path: Path) -> None:
    """`run` on a port in use exits 1 with the address, and leaves no pid file behind."""
    host, port = start().address()
    daemon = Daemon(tmp_path, listeners=[{"name": "echo", "kind": "tcp", "address": f"{host}:{port}"}])
    with pytest.raises(StartFailedError) as failure, daemon:
        pass

    assert failure.value.code == 1
    assert str(port) in failure.value.stderr
    assert not daemon.pid_file.exists()


def test_version() -> None:
    """`--version` prints the version alone, quickly."""
    with promptly():
        result = echod("--version")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("echod ")


def test_runtime_directory_holds_three_files(start: Starter) -> None:
    """The pid is for everybody; the lock and the control socket are for the owner alone."""
    daemon = start()

    assert daemon.runtime.stat().st_mode & 0o777 == 0o755
    assert {"echod.pid": 0o644, "echod.lock": 0o600, "control.sock": 0o600} == {
        path.name: path.stat().st_mode & 0o777 for path in daemon.runtime.iterdir()
    }


def test_a_failure_that_the_journal_gets_is_json(tmp_path: Path) -> None:
    """Where standard error is the journal each fault is a record with its priority; elsewhere it is a sentence."""
    file = tmp_path / "echod.toml"
    file.write_text("[lag]\nx = 1\n\n[limits]\nbuffer = 3\n")
    reader, writer = socket.socketpair()
    with reader, writer:
        found = os.fstat(writer.fileno())
        env = environment(JOURNAL_STREAM=f"{found.st_dev}:{found.st_ino}")
        done = subprocess.run(
            [*ECHOD, "check", "-c", str(file)], env=env, cwd=ROOT, stderr=writer.fileno(), check=False
        )
        lines = reader.recv(65536).splitlines()
    plain = echod("check", "-c", str(file), env=env).stderr.splitlines()

    assert 78 == done.returncode
    assert [b"<3>{", b"<3>{"] == [line[:4] for line in lines]
    records = [json.loads(line[3:]) for line in lines]
    assert plain == [f"echod: {record['error.message']}" for record in records]
    assert {("error", "command.failed")} == {(record["level"], record["event"]) for record in records}
