"""The command line, in this process: exit codes, one line for each fault, and nothing a terminal could choke on."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import echod
from echod import cli
from echod.config import dumping, reading
from echod.errors import StartError
from echod.process import control_client, daemonize, launch

if TYPE_CHECKING:
    from pathlib import Path

RELOAD = {"count": 0, "outcome": "none", "age": None, "duration": None, "errors": [], "exit_code": None}

STATUS: dict[str, Any] = {
    "pid": 12,
    "version": "1.2.3",
    "state": "ready",
    "uptime": 7323.5,
    "generation": 4,
    "listeners": [{"name": "echo", "transport": "tcp", "address": "localhost:7", "bound": ["127.0.0.1:7", "[::1]:7"]}],
    "workers": [{"slot": 1, "pid": 13, "retiring": False}, {"slot": 2, "pid": 14, "retiring": True}],
    "reload": RELOAD,
    "connections": {"active": 3, "accepted": 5, "rejected": 0},
    "io": {"receive": 1234, "transmit": 1230},
    "datagrams": {"answered": 7, "bytes": 77},
    "log": {"dropped": 1},
}

COMMANDS = ("run", "check", "reload", "stop", "reopen", "status", "show")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a configuration with a runtime directory of its own; there is no default one, and nobody is signalled."""
    monkeypatch.setattr(reading, "DEFAULT_PATH", tmp_path / "none")
    path = tmp_path / "echod.toml"
    path.write_text(f'[daemon]\nruntime_directory = "{tmp_path}"\n')
    return path


def fail(error: BaseException) -> Any:
    """Return something that raises `error`, whatever it is called with."""

    def raising(*_arguments: object, **_options: object) -> None:
        raise error

    return raising


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND (see echod --help)"),
        (["frob"], "(see echod --help)"),
        (["run", "--frob"], "unrecognized arguments: --frob (see echod --help)"),
        (["run", "extra"], "unrecognized arguments: extra (see echod --help)"),
        (["--vers"], "(see echod --help)"),
        (["run", "--daem"], "unrecognized arguments: --daem (see echod --help)"),
        (["stop", "--wai"], "unrecognized arguments: --wai (see echod --help)"),
        (["check", "--conf", "x"], "unrecognized arguments: --conf x (see echod --help)"),
        (["check", "-c"], "argument -c/--config: expected one argument (see echod check --help)"),
        (["run", "--daemon=yes"], "argument --daemon: ignored explicit argument 'yes' (see echod run --help)"),
        (["check", "-c", ""], "argument -c/--config: must name a file (see echod check --help)"),
        (["check", "-c", "a\0b"], "argument -c/--config: must name a file (see echod check --help)"),
        (["show"], "(see echod show --help)"),
        (["show", "everything"], "(see echod show --help)"),
        (["run", "\x1b[31mred\n\u202e\udcff"], r"unrecognized arguments: \x1b[31mred\n\u202e\udcff"),
    ],
)
def test_a_senseless_command_line_is_one_line(
    arguments: list[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one printable line that says what is wrong and where to read more; abbreviations are refused."""
    code = cli.main(arguments)
    out, err = capfd.readouterr()

    assert (2, "") == (code, out)
    assert err.startswith("echod: ")
    assert complaint in err
    assert [err[:-1]] == err.splitlines()
    assert err[:-1].isprintable()


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_answers(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Every command explains itself on standard output and leaves with 0."""
    code = cli.main(arguments)
    out, err = capfd.readouterr()

    assert (0, "") == (code, err)
    assert out.startswith("usage: echod ")


def test_the_version_answers(capfd: pytest.CaptureFixture[str]) -> None:
    """One line with name and number."""
    assert 0 == cli.main(["--version"])
    assert f"echod {echod.__version__}\n" == capfd.readouterr().out


def test_check_says_ok_or_every_fault(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sound file is said to be, by its absolute path; of a broken one each fault is a line, and the code is 78."""
    assert 0 == cli.main(["check", "-c", os.path.relpath(file)])
    assert f"{file}: ok" == os.path.normpath(capfd.readouterr().out.strip())
    assert 0 == cli.main(["check"])
    assert "no configuration file: the built-in defaults are ok\n" == capfd.readouterr().out
    file.write_text('[daemon]\nworkers = "many"\n[limits]\nnone = 1\n')
    assert 78 == cli.main(["check", "--config", str(file)])
    out, err = capfd.readouterr()
    assert ("", 2) == (out, len(err.splitlines()))
    assert all(
        line.startswith(f"echod: {file}:{number}: ") for line, number in zip(err.splitlines(), (2, 4), strict=True)
    )


@pytest.mark.parametrize("command", ["reload", "stop", "reopen", "status"])
def test_who_does_not_run_is_said(file: Path, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a daemon the code is 3."""
    assert 3 == cli.main([command, "-c", str(file)])
    assert f"echod: not running (no daemon at {file.parent}/control.sock)\n" == capfd.readouterr().err


@pytest.mark.parametrize(
    ("reload", "shown"),
    [
        ({}, "none"),
        ({"outcome": "in_progress"}, "in progress"),
        ({"outcome": "ok", "age": 3723.9}, "ok, 1h2m3s ago"),
        ({"outcome": "rejected", "age": 0.1, "errors": ["one", "two"]}, "rejected, 0s ago: one; two"),
    ],
)
def test_status_is_a_table(
    reload: dict[str, Any], shown: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the daemon answers is shown as aligned rows, times as people say them."""
    monkeypatch.setattr(control_client, "status", lambda _path: STATUS | {"reload": RELOAD | reload})
    code = cli.main(["status"])
    rows = dict(line.split("  ", 1) for line in capfd.readouterr().out.splitlines())

    assert 0 == code
    assert {
        "state": "ready",
        "uptime": "2h2m3s",
        "pid": "12",
        "version": "1.2.3",
        "generation": "4",
        "workers": "13 14 (retiring)",
        "listener echo": "tcp 127.0.0.1:7 [::1]:7",
        "connections": "3 active, 5 accepted, 0 rejected",
        "bytes": "1234 received, 1230 sent back",
        "datagrams": "7 answered, 77 bytes each way",
        "log": "1 lines dropped",
        "last reload": shown,
    } == {name: value.strip() for name, value in rows.items()}


@pytest.mark.parametrize(
    "changed",
    [
        {"listeners": 7},
        {"workers": [[]]},
        {"workers": [{"pid": 1, "retiring": 1e308}]},
        {"uptime": "long"},
        {"uptime": 1e300},
        {"connections": []},
        {"reload": None},
        {"reload": {"outcome": 1, "age": None, "errors": []}},
        {"version": None, "io": {}},
    ],
    ids=str,
)
def test_status_of_other_version_is_one_line(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A document that this version cannot read is said to be one, and --json prints it all the same."""
    monkeypatch.setattr(control_client, "status", lambda _path: STATUS | changed)
    code = cli.main(["status"])
    out, err = capfd.readouterr()

    assert (1, "") == (code, out)
    assert re.fullmatch(r"echod: this is echod \S+ and cannot read the status of a daemon of version .*\n", err)
    assert 0 == cli.main(["status", "--json"])


def test_status_is_escaped(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing in an answer acts on the terminal, whichever way it is shown."""
    hostile = STATUS | {"state": "\x1b[2J", "listeners": [STATUS["listeners"][0] | {"name": "a\nb"}]}
    monkeypatch.setattr(control_client, "status", lambda _path: hostile)
    for arguments in (["status"], ["status", "--json"]):
        assert 0 == cli.main(arguments)
        assert "\x1b" not in capfd.readouterr().out


def test_status_is_json_for_programs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """With --json it is the document itself."""
    monkeypatch.setattr(control_client, "status", lambda _path: STATUS)

    assert 0 == cli.main(["status", "--json"])
    assert STATUS == json.loads(capfd.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "name", "options"),
    [
        (["run"], "run", {"foreground": True}),
        (["run", "--daemon"], "run", {"foreground": False}),
        (["reload"], "reload", {"wait": False}),
        (["reload", "--wait"], "reload", {"wait": True}),
        (["stop", "--wait"], "stop", {"wait": True}),
        (["stop", "--now"], "stop_now", {"wait": False}),
        (["stop", "--now", "--wait"], "stop_now", {"wait": True}),
        (["reopen"], "reopen", {}),
    ],
)
def test_options_reach_the_command(
    arguments: list[str], name: str, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each command is called with an absolute path, since the daemon changes its directory, and with its options."""
    calls: list[tuple[Path, dict[str, bool]]] = []
    monkeypatch.setattr(daemonize, "check_environment", lambda: None)
    monkeypatch.setattr(daemonize, "clean_environment", lambda: None)
    monkeypatch.setattr(
        launch if name == "run" else control_client, name, lambda path, **given: calls.append((path, given))
    )
    monkeypatch.chdir(tmp_path)

    assert 0 == cli.main([*arguments, "-c", "echod.toml"])
    assert [(tmp_path / "echod.toml", options)] == calls


def test_to_detach_it_first_starts_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --daemon the environment is checked and cleaned before what takes long; without, it is left as it is."""
    steps: list[str] = []
    for name in ("check_environment", "clean_environment"):
        monkeypatch.setattr(daemonize, name, partial(steps.append, name))
    monkeypatch.setattr(launch, "run", lambda _path, *, foreground: steps.append("run"))

    assert [0, 0] == [cli.main(["run", "--daemon"]), cli.main(["run"])]
    assert ["check_environment", "clean_environment", "run", "run"] == steps


def test_show_prints_what_can_be_read_again(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The configuration in force and the defaults are TOML that `check` accepts; the schema is JSON."""
    for what in ("config", "defaults"):
        assert 0 == cli.main(["show", what, "-c", str(file)])
        again = file.with_name("again.toml")
        again.write_text(capfd.readouterr().out)
        assert 0 == cli.main(["check", "-c", str(again)])
        capfd.readouterr()
    for what in ("schema", "status-schema"):
        assert 0 == cli.main(["show", what])
        assert "properties" in json.loads(capfd.readouterr().out)


def test_show_prints_the_unit_for_this_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The unit is for the command that prints it; what the service could not read is said on standard error."""
    monkeypatch.setattr(sys, "argv", ["/home/ann/bin/echod", "show", "unit"])
    monkeypatch.setattr(sys, "executable", "/usr/bin/env")
    code = cli.main(["show", "unit"])
    out, err = capfd.readouterr()

    assert 0 == code
    assert "\nExecStart=/home/ann/bin/echod run\n" in out
    assert (
        "echod: /home/ann/bin/echod: the service cannot read what lies in a home directory; install echod elsewhere\n"
        == err
    )


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(13, "Permission denied", "/some\nwhere"), 1, "echod: /some\\nwhere: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "echod: error: No space left on device\n"),
        (KeyboardInterrupt(), 128 + signal.SIGINT, ""),
    ],
)
def test_what_the_system_denies_is_one_line(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error that no command expects is still a line and an exit code; ^C says nothing."""
    monkeypatch.setattr(control_client, "status", fail(error))

    assert code == cli.main(["status"])
    assert ("", said) == capfd.readouterr()


def test_broken_pipe_of_a_command_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pipe that breaks inside a command is not the reader of standard output, and is reported."""
    monkeypatch.setattr(control_client, "status", fail(BrokenPipeError(32, "Broken pipe")))

    assert 1 == cli.main(["status"])
    assert "echod: error: Broken pipe\n" == capfd.readouterr().err


def test_output_is_written_whole_when_the_kernel_takes_it_in_parts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A short write(2), as of a disk that is nearly full, is continued and not taken for success."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))

    assert 0 == cli.main(["show", "defaults"])
    assert dumping.defaults_toml() == capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢", "plain ü 漢"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\tb\nc\x7f", r"a\tb\nc\x7f"),
        ("caf\udce9", r"caf\udce9"),
        ("\u202eevil\u2028", r"\u202eevil\u2028"),
        (r"back\slash", r"back\slash"),
    ],
)
def test_what_a_terminal_could_act_on_is_escaped(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Control characters, lone surrogates and invisible marks appear as escapes, all else as it is."""
    monkeypatch.setattr(control_client, "status", fail(StartError(text)))

    assert 1 == cli.main(["status"])
    assert f"echod: {shown}\n" == capfd.readouterr().err
