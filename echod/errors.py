"""The kinds of failure that end a command, and the exit code of each.

Rule: whatever a user can cause is one of these, carries sentences fit to print, and never shows a traceback.
"""

import errno


class EchodError(Exception):
    """A failure with a reason that a user can read.

    `lines` holds one sentence per problem, each without a trailing newline. `errno` is the system's number for what is
    behind it (errno(3)), 0 where there is none.
    """

    exit_code = 1
    errno = 0

    def __init__(self, *lines: str, errno: int | None = None) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.errno = errno or self.errno


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
    errno = errno.EINVAL
