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

MAX_SHOWN = 10_000
"""Characters of a line of `status`: a hundred listeners fit."""

MAX_VERSION = 40
"""Characters of another daemon's version that are shown."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments`, by default the process's own, ask for; return the exit code.

    What the command prints is collected, and written once it has ended: argparse ignores errors of writing, and the
    interpreter reports them only as it exits, in its own words and with code 120.
    """
    try:
        descriptors.open_standard_streams()
        printed = io.BytesIO()
        output = io.TextIOWrapper(printed, sys.stdout.encoding, "backslashreplace", write_through=True)
        with redirect_stdout(output):
            exit_code = _execute(arguments)
        _write(1, printed.getvalue())
    except StartError as error:
        return _fail(error)
    except BrokenPipeError:
        return 0  # the reader of the pipe has read enough
    except OSError as error:
        _complain(f"standard output: {error.strerror}")
        return StartError.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return exit_code


def _execute(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        options.command(options)
    except EchodError as error:
        return _fail(error)
    except OSError as error:
        _complain(f"{error.filename or 'error'}: {error.strerror}")
        return StartError.exit_code
    except SystemExit:
        return 0  # argparse has printed the help or the version
    return 0


def _run(options: argparse.Namespace) -> None:
    from echod.process import signals

    signals.end_at_once()  # this first: PID 1 gets no signal that it has no handler for, and importing takes a while
    if options.daemon:
        from echod.process import daemonize

        daemonize.check_environment()
        daemonize.clean_environment()  # this first: it starts over, and what is imported below would be imported twice
    from echod.process import launch

    launch.run(options.config, foreground=not options.daemon)


def _check(options: argparse.Namespace) -> None:
    from echod.process import privileges, settings

    checked = settings.gather(options.config, foreground=True)
    privileges.check(checked.config.daemon.user, checked.config.daemon.group)
    path = checked.path
    print(f"{path}: ok" if path else "no configuration file: the built-in defaults are ok")


def _reload(options: argparse.Namespace) -> None:
    from echod.process import control_client

    control_client.reload(options.config, wait=options.wait)


def _stop(options: argparse.Namespace) -> None:
    from echod.process import control_client

    stop = control_client.stop_now if options.now else control_client.stop
    stop(options.config, wait=options.wait)


def _reopen(options: argparse.Namespace) -> None:
    from echod.process import control_client

    control_client.reopen(options.config)


def _status(options: argparse.Namespace) -> None:
    from echod.process import control_client

    status = control_client.status(options.config)
    if options.json:
        import json

        print(json.dumps(status, indent=2))
        return
    try:
        print(_table(status))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        running = printable(str(status.get("version")), MAX_VERSION)
        raise StartError(
            f"this is echod {echod.__version__} and cannot read the status of a daemon of version {running}; "
            "restart the daemon, or use --json"
        ) from None


def _show(options: argparse.Namespace) -> None:
    from echod.config import dumping, loading, reading
    from echod.config.models import Config

    if options.what == "defaults":
        _print_file(dumping.defaults_toml().encode())
    elif options.what == "schema":
        _print_file(dumping.schema().encode())
    elif options.what == "status-schema":
        from echod.process import status

        _print_file(status.schema().encode())
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


def _table(status: dict[str, Any]) -> str:
    rows = [
        ("state", status["state"]),
        ("uptime", _span(status["uptime"])),
        ("pid", status["pid"]),
        ("version", status["version"]),
        ("generation", status["generation"]),
        ("workers", " ".join(f"{worker['pid']}{' (retiring)' * worker['retiring']}" for worker in status["workers"])),
        *(
            (
                f"listener {listener['name']}",
                " ".join([listener["transport"], *listener["bound"], *_degraded(listener)]),
            )
            for listener in status["listeners"]
        ),
        ("connections", ", ".join(f"{count} {what}" for what, count in status["connections"].items())),
        ("bytes", f"{status['io']['receive']} received, {status['io']['transmit']} sent back"),
        ("datagrams", f"{status['datagrams']['answered']} answered, {status['datagrams']['bytes']} bytes each way"),
        ("log", f"{status['log']['dropped']} lines dropped"),
        ("last reload", _last_reload(status["reload"])),
    ]
    names = [printable(name, MAX_SHOWN) for name, _ in rows]
    width = max(map(len, names))
    return "\n".join(
        f"{name:<{width}}  {printable(str(value), MAX_SHOWN)}" for name, (_, value) in zip(names, rows, strict=True)
    )


def _degraded(listener: dict[str, Any]) -> list[str]:
    return [f"({', '.join(listener['degraded'])})"] if listener.get("degraded") else []


def _last_reload(reload: dict[str, Any]) -> str:
    ago = f", {_span(reload['age'])} ago" if reload["age"] is not None else ""
    errors = f": {'; '.join(reload['errors'])}" if reload["errors"] else ""
    return f"{reload['outcome'].replace('_', ' ')}{ago}{errors}"


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
        "--wait", action="store_true", help="return once it serves, or fail with the reason"
    )
    stop = add("stop", _stop, "Make the daemon finish its connections and exit.")
    stop.add_argument("--wait", action="store_true", help="return once it has exited")
    stop.add_argument("--now", action="store_true", help="reset connections instead; kill a daemon that hangs")
    add("reopen", _reopen, "Make the daemon open its log file again, after it was rotated.")
    add("status", _status, "Show what the daemon does.").add_argument(
        "--json", action="store_true", help="for programs"
    )
    add(
        "show", _show, "Print the effective configuration, the defaults, a JSON Schema, or a systemd unit."
    ).add_argument("what", choices=("config", "defaults", "schema", "status-schema", "unit"))
    return parser


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("must name a file")
    return Path(text).absolute()  # the daemon changes its directory, and a reload must find the file again


def _print_file(content: bytes) -> None:
    """Print what is meant to be saved as a file: the same bytes in every locale."""
    sys.stdout.buffer.write(content)


def _fail(error: EchodError) -> int:
    for line in error.lines:
        _complain(line)
    return error.exit_code


def _complain(line: str) -> None:
    from echod.observe import journal

    with suppress(OSError):  # a closed or full standard error: there is no better place to report it
        if journal.receives(2):
            from echod.events import CommandFailed
            from echod.observe import log

            _write(2, log.journal_line(CommandFailed(error=line)))
        elif sys.stderr:  # else it was closed from the start, and its number may be that of another file
            _write(2, f"echod: {printable(line, len(line))}\n".encode(sys.stderr.encoding, "backslashreplace"))


def _write(fd: int, data: bytes) -> None:
    """Write all of `data`, without a buffer that would be written once more at the end; raise OSError."""
    while data:
        data = data[os.write(fd, data) :]
