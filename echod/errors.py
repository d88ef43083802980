"""The kinds of failure that end a command, and the exit code of each.

Rule: whatever a user can cause is one of these, carries sentences fit to print, and never shows a traceback.
"""


class EchodError(Exception):
    """A failure with a reason that a user can read.

    `lines` holds one sentence per problem, each without a trailing newline.
    """

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


class StartError(EchodError):
    """The daemon cannot start or a command cannot be carried out (exit 1)."""


class UsageError(EchodError):
    """The command line makes no sense (exit 2, as argparse does)."""

    exit_code = 2


class NotRunningError(EchodError):
    """No daemon holds the lock of the runtime directory (exit 3, LSB's "not running")."""

    exit_code = 3


class ConfigError(EchodError):
    """The configuration is refused (exit 78, EX_CONFIG of sysexits.h); one line per fault."""

    exit_code = 78
