"""systemd's journal, when it is what a descriptor of ours leads to.

Rule: what is written to a file, a pipe or a terminal stays pure JSON; only the journal is given a priority before each
line, "<6>" and the like, which it takes off again (sd-daemon(3), SyslogLevelPrefix= of systemd.exec(5)).
"""

from __future__ import annotations

import os
from types import MappingProxyType

from echod.events import Level

PREFIXES = MappingProxyType({Level.DEBUG: b"<7>", Level.INFO: b"<6>", Level.WARNING: b"<4>", Level.ERROR: b"<3>"})
"""What stands before a line of each level: the priorities of syslog(3)."""


def receives(fd: int) -> bool:
    """Tell whether `fd` is the stream that $JOURNAL_STREAM names: who inherits the variable may write elsewhere."""
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return named == f"{found.st_dev}:{found.st_ino}"
