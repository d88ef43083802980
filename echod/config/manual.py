"""Writes echod.toml(5), the manual page of the configuration file, from the models.

Rule: what the page says of a key is what the model says of it. `make man` writes it to man/echod.toml.5.
"""

import json
import re

import echod
from echod.config.fields import RESTART, Table
from echod.config.listeners import Listener
from echod.config.models import Config

EXAMPLE = """\
[daemon]
workers = "auto"

[log]
file = "/var/log/echod/echod.log"
suppress = ["connection.opened"]

[limits]
max_connections = 2000
idle_timeout = "1m30s"

[[listener]]
name = "echo"
address = "*:10008"
"""

_HEAD = rf""".\" Written by `make man` from the models: change those.
.TH ECHOD.TOML 5 "" "echod {echod.__version__}" "File Formats Manual"
.nh
.SH NAME
echod.toml \- configuration of the echo daemon
.SH SYNOPSIS
.I /etc/echod.toml
.SH DESCRIPTION
The file is TOML (https://toml.io).
Every key may be left out and has its default then; so may the whole file.
Unknown keys are refused, and so are values of another type than the default's, but for those that are listed with it.
All faults are said at once, with file, line and key, by
.BR "echod check" .
.PP
Durations have units ("500ms", "30s", "1m30s"), and "0s" switches a limit off; so have sizes ("64KiB", "1MiB").
.PP
.B "echod reload"
puts the file into force, all of it or, with a message, nothing of it.
Connections that are open keep the limits under which they were accepted.
A change of a key that needs a restart is refused by a reload.
.PP
The defaults below are also what
.B "echod show defaults"
prints, as a file.
.SH TABLES AND KEYS
"""

_TAIL = r""".SH EXAMPLE
.nf
.in +4n
%s.in
.fi
.SH FILES
.TP
.I /etc/echod.toml
The file that is read when none is named.
Without it the defaults are in force.
.SH SEE ALSO
.BR echod (8)
"""


def page() -> str:
    """Return the manual page."""
    tables = "".join(
        _table(name, f"[[{name}]]" if name == "listener" else f"[{name}]", field.description or "", _sample(name))
        for name, field in Config.model_fields.items()
    )
    return _HEAD + tables + _TAIL % escaped(EXAMPLE)


def _sample(name: str) -> Table:
    return Listener() if name == "listener" else Config.model_fields[name].default


def _table(path: str, head: str, description: str, sample: Table) -> str:
    values = sample.model_dump(mode="json")
    text, inner = f".SS {head}\n{escaped(description)}\n", ""
    for name, field in type(sample).model_fields.items():
        if isinstance(field.default, Table):
            inner += _table(f"{path}.{name}", f"[{path}.{name}]", field.description or "", field.default)
        else:
            value = escaped(json.dumps(values[name]))
            text += f".TP\n\\fB{escaped(name)}\\fP = {value}\n{escaped(_described(field))}\n"
    return text + inner


def _described(field: object) -> str:
    restart = " Needs a restart." if getattr(field, "json_schema_extra", None) == RESTART else ""
    return f"{getattr(field, 'description', '')}{restart}"


def escaped(text: str) -> str:
    """Return `text` as roff prints it: backslashes, hyphens that are copied, and lines that would be requests."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)
