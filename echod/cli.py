"""The command line: arguments to a command, its outcome to an exit code.

Rule: no traceback ever reaches a user; what goes wrong is one line per fault on standard error. What only some commands
need is imported by them, so that `--version` and `--help` answer at once.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
from contextlib import redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import echod
from echod.config.wording import printable
from echod.errors import EchodError, StartError, UsageError
from echod.process import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

MOST_SHOWN = 10_000
"""Characters of a line of `status`: a hundred listeners fit."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments`, by default the process's own, ask for; return the exit code.

    What the command prints is collected, and written once it has ended: argparse ignores errors of writing, and the
    interpreter reports them only as it exits, in its own words and with code 120.
    """
    descriptors.open_standard_streams()
    output = _Output(sys.stdout.encoding)
    try:
        with redirect_stdout(output):
            exit_code = _execute(arguments)
        _write(output.fileno(), output.printed.getvalue())
    except BrokenPipeError:
        return 0  # the reader of the pipe has read enough
    except OSError as error:
        _complain(f"standard output: {error.strerror}")
        return StartError.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return exit_code


class _Output(io.TextIOWrapper):
    """Standard output, held back until the command has ended."""

    def __init__(self, encoding: str) -> None:
        self.printed = io.BytesIO()
        super().__init__(self.printed, encoding, "backslashreplace", write_through=True)

    def fileno(self) -> int:
        """Return the descriptor of standard output, which python-daemon asks for to redirect it."""
        return 1


def _execute(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        options.command(options)
    except EchodError as error:
        for line in error.lines:
            _complain(line)
        return error.exit_code
    except OSError as error:
        _complain(f"{error.filename or 'error'}: {error.strerror}")
        return StartError.exit_code
    except SystemExit:
        return 0  # argparse has printed the help or the version
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.daemon:
        from echod.process import daemonize

        daemonize.check_environment()
        daemonize.clean_environment()  # this first: it starts over, and what is imported below would be imported twice
    from echod.process import launch

    launch.run(options.config, foreground=not options.daemon)


def _check(options: argparse.Namespace) -> None:
    from echod.process import settings

    path = settings.gather(options.config, foreground=True).path
    print(f"{path}: ok" if path else "no configuration file: the built-in defaults are ok")


def _reload(options: argparse.Namespace) -> None:
    from echod.process import control

    control.reload(options.config, wait=options.wait)


def _stop(options: argparse.Namespace) -> None:
    from echod.process import control

    control.stop(options.config, wait=options.wait)


def _status(options: argparse.Namespace) -> None:
    from echod.process import control

    state = control.status(options.config)
    if options.json:
        import json

        print(json.dumps(state, indent=2))
    else:
        print(_table(state))


def _show(options: argparse.Namespace) -> None:
    from echod.config import dumping, loading, reading
    from echod.config.models import Config

    if options.what == "defaults":
        _print_file(dumping.defaults_toml().encode())
    elif options.what == "schema":
        _print_file(dumping.schema().encode())
    elif options.what == "unit":
        _show_unit()
    else:
        path = options.config or reading.default_file()
        _print_file(dumping.to_toml(loading.load(path) if path else Config()).encode())


def _show_unit() -> None:
    from echod.config import unit

    command = unit.running_command()
    _print_file(os.fsencode(unit.text(command, unit.code_homes())))  # ASCII but for the paths in it
    for path in unit.out_of_reach(command):
        _complain(f"{path}: the service cannot read what lies in a home directory; install echod elsewhere")


def _table(state: dict[str, Any]) -> str:
    rows = [
        ("state", state["state"]),
        ("uptime", _span(state["uptime"])),
        ("pid", state["pid"]),
        ("version", state["version"]),
        ("generation", state["generation"]),
        ("workers", " ".join(f"{worker['pid']}{' (leaving)' * worker['retiring']}" for worker in state["workers"])),
        *(
            (f"listener {listener['name']}", f"{listener['kind']} {' '.join(listener['bound'])}")
            for listener in state["listeners"]
        ),
        ("connections", ", ".join(f"{count} {what}" for what, count in state["connections"].items())),
        ("bytes", f"{state['io']['receive']} received, {state['io']['transmit']} sent back"),
        ("datagrams", f"{state['datagrams']['answered']} answered, {state['datagrams']['bytes']} bytes each way"),
        ("log", f"{state['log']['dropped']} lines dropped"),
        ("last reload", _reload_ended(state["reload"])),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {printable(str(value), MOST_SHOWN)}" for name, value in rows)


def _reload_ended(report: dict[str, Any] | None) -> str:
    from echod.process import state

    ago = f", {_span(time.monotonic() - report['finished'] / 1e9)} ago" if report and report["finished"] else ""
    errors = f": {'; '.join(report['error'])}" if report and report["error"] else ""
    return f"{state.reload_outcome(report)}{ago}{errors}"


def _span(seconds: float) -> str:
    import durationpy

    return str(durationpy.to_str(timedelta(seconds=int(seconds)))) if seconds >= 1 else "0s"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line that a script can show, and where to read more."""

    def error(self, message: str) -> Any:
        """Raise UsageError."""
        raise UsageError(f"{printable(message, len(message))} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="echod", description="An echo daemon (RFC 862) that can be trusted.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"echod {echod.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("-c", "--config", metavar="FILE", type=_path, help="default: /etc/echod.toml where it exists")
        sub.set_defaults(command=command)
        return sub

    add("run", _run, "Run the daemon.").add_argument(
        "--daemon", action="store_true", help="detach, and return once the first connect works"
    )
    add("check", _check, "Check a configuration file.")
    add("reload", _reload, "Make the daemon read its configuration again.").add_argument(
        "--wait", action="store_true", help="return once it serves, or fail with the reason why not"
    )
    add("stop", _stop, "Make the daemon finish its connections and leave.").add_argument(
        "--wait", action="store_true", help="return once it is gone"
    )
    add("status", _status, "Show what the daemon does.").add_argument(
        "--json", action="store_true", help="for programs"
    )
    add(
        "show", _show, "Print what the configuration comes to, the defaults, their schema, or a systemd unit."
    ).add_argument("what", choices=("config", "defaults", "schema", "unit"))
    return parser


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("must name a file")
    return Path(text).absolute()  # the daemon changes its directory, and a reload must find the file again


def _print_file(content: bytes) -> None:
    """Print what is meant to be saved as a file: the same bytes in every locale."""
    sys.stdout.buffer.write(content)


def _complain(line: str) -> None:
    from echod.observe import journal

    with suppress(OSError):  # a closed or full standard error: there is no better place to report it
        if journal.receives(2):
            from echod.events import CommandFailed
            from echod.observe import log

            _write(2, log.journal_line(CommandFailed(error=line)))
        else:
            _write(2, f"echod: {printable(line, len(line))}\n".encode(sys.stderr.encoding, "backslashreplace"))


def _write(fd: int, data: bytes) -> None:
    """Write all of `data`, without a buffer that would be written once more at the end; raise OSError."""
    while data:
        data = data[os.write(fd, data) :]
