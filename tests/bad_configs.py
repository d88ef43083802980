"""Configuration files that must be refused, each with text that its error must hold.

Shared: the loader is tried with each of them in process, the daemon by a reload.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def _listeners(*addresses: str) -> str:
    return "".join(f'[[listener]]\nname = "l{n}"\naddress = "{address}"\n' for n, address in enumerate(addresses))


_SYNTAX: Mapping[str, tuple[str | bytes, str]] = {
    "byte-order mark": (b'\xef\xbb\xbf[log]\nlevel = "info"\n', ":1: starts with a byte-order mark; remove"),
    "utf-16": ("[log]\n".encode("utf-16"), ":1: is not UTF-8 at byte 0"),
    "latin-1": ('[log]\n# caf\u00e9\nlevel = "info"\n'.encode("latin-1"), ":2: is not UTF-8 at byte 11"),
    "NUL": (b"[log]\n\n# \0\n", ":3: holds a NUL byte"),
    "too large": (b"#" * (84 * 1024 + 1), ": is larger than 84 KiB"),
    "lone carriage return": (b'[log]\rlevel = "info"\r', ":1: not valid TOML: "),
    "unterminated string": ('[log]\nlevel = "info\n', ":2: not valid TOML: "),
    "unterminated multi-line string": ('[log]\nlevel = """info\n\n', ":2: not valid TOML: "),
    "unclosed table": ("[log\n", ":1: not valid TOML: "),
    "unclosed array": ("[log]\nsuppress = [\n", ":2: not valid TOML: "),
    "duplicate key": ('[log]\nlevel = "info"\nlevel = "info"', ":3: not valid TOML: Cannot overwrite a value"),
    "duplicate table": ("[log]\n[limits]\n[log]\n", ":3: not valid TOML: "),
    "table and array of tables": ("[[listener]]\n[listener]\n", ":2: not valid TOML: "),
    "surrogate escape": ('[log]\nfile = "\\ud800"\n', ":2: not valid TOML: "),
    "yaml": ("log:\n  level: info\n", ":1: not valid TOML: "),
    "json": ('{"log": {"level": "info"}}\n', ":1: not valid TOML: "),
    "ini": ("[log]\nlevel = info\n", ":2: not valid TOML: "),
    "trailing comma": ('listener = [\n  { name = "echo", }\n]\n', ":2: "),
    "truncated": ('[log]\nlevel = "debug"\n[limits]\nmax_conn', ":4: not valid TOML: "),
    "git conflict": ("<<<<<<< HEAD\n[log]\n=======\n>>>>>>> theirs\n", ":1: not valid TOML: "),
    "invalid date": ("[log]\nlevel = 2024-13-45\n", ":2: "),
    "nesting of arrays": ("a = " + "[" * 1000 + "]" * 1000, ":1: brackets are nested more than 32 deep"),
    "nesting of tables": ("\na = " + "{a = " * 1000 + "1" + "}" * 1000, ":2: brackets are nested more than 32 deep"),
    "dotted key": ("\n" + ".".join("a" * 20_000) + " = 1\n", ":2: a key has more than 16 parts"),
    "dotted table": ("[" + " . ".join(["'a'"] * 8_000) + "]\n", ":1: a key has more than 16 parts"),
    "keys": ("\n".join(f"k{n} = 1" for n in range(6001)), ":6001: there are more than 6000 keys, tables and arrays"),
    "digits": ("[limits]\nmax_connections = " + "1" * 5000 + "\n", "not valid TOML: a number has too many digits"),
}

_SHAPES: Mapping[str, tuple[str | bytes, str]] = {
    "unknown key": (
        "[limits]\n\nmax_conections = 5\n",
        ':3: limits.max_conections: unknown key, did you mean "max_connections"?',
    ),
    "unknown key without a likeness": ("[limits]\nxyzzy = 5\n", ":2: limits.xyzzy: unknown key"),
    "key of another table": (
        "[daemon]\nmax_connections = 5\n",
        ":2: daemon.max_connections: unknown key here, it belongs to [limits]",
    ),
    "key of a listener": ('address = "localhost:7"\n', ":1: address: unknown key here, it belongs to [[listener]]"),
    "unknown table": ("[limit]\n", ':1: limit: unknown table, did you mean "limits"?'),
    "unknown key of an array": ("[[listen]]\n", ':1: listen: unknown key, did you mean "listener"?'),
    "version": ("config_version = 99\n", ":1: config_version: unknown key"),
    "future key": ("[[listener]]\nservice = {}\n", ":2: listener[0].service: unknown key"),
    "host bits": (
        '[[listener]]\nallow = ["10.0.0.1/8"]\n',
        ':2: listener[0].allow[0]: must be a network such as "10.0.0.0/8" or "2001:db8::/32", with no bits set',
    ),
    "no network": ('[[listener]]\ndeny = ["example.org"]\n', ":2: listener[0].deny[0]: must be a network such as"),
    "no network to be quiet about": ("[log]\nquiet = [7]\n", ":2: log.quiet[0]: must be a string, got an integer"),
    "negative rate": ("[[listener]]\naccept_rate = -1\n", ":2: listener[0].accept_rate: must be at least 0, got -1"),
    "no backlog": ("[[listener]]\nbacklog = 0\n", ":2: listener[0].backlog: must be at least 1, got 0"),
    "word for a boolean": ('[[listener]]\nnodelay = "yes"\n', ":2: listener[0].nodelay: must be true or false, got"),
    "small kernel buffer": ('[[listener]]\nsend_buffer = "1KiB"\n', 'must be a size from 4KiB to 64MiB, or "0B"'),
    "interface": ('[[listener]]\ninterface = "eth0/1"\n', "must be the name of a network interface, at most 15"),
    "precedence": ("[[listener]]\ntos = 256\n", ":2: listener[0].tos: must be at most 255, got 256"),
    "networks of a Unix socket": (
        '[[listener]]\nkind = "unix"\naddress = "@x"\nallow = ["10.0.0.0/8"]\n',
        ':4: listener[0].allow: is for kind = "tcp" or "udp" only',
    ),
    "future table": ('[audit]\naddress = "localhost:10001"\n', ":1: audit: unknown table"),
    "address of the admin listener": ('[admin]\naddress = "10001"\n', ":2: admin.address: has no port"),
    "admin listener on the echo port": (
        '[admin]\naddress = "localhost:10000"\n',
        ':1: admin: localhost:10000 is the address of listener "echo" already',
    ),
    "name of the admin listener": (
        '[[listener]]\nname = "admin"\n',
        ':2: listener[0].name: "admin" is the name of the listener of [admin]',
    ),
    "TLS without a certificate": (
        "[[listener]]\n[listener.tls]\nenabled = true\n",
        ":2: listener[0].tls.certificate: must name a file where enabled = true",
    ),
    "TLS that is off with a certificate": (
        '[[listener]]\n[listener.tls]\ncertificate = "/c.pem"\n',
        ":3: listener[0].tls.certificate: is for enabled = true only",
    ),
    "TLS with a relative path": (
        '[[listener]]\n[listener.tls]\nenabled = true\ncertificate = "c.pem"\n',
        ":4: listener[0].tls.certificate: must be an absolute path",
    ),
    "TLS of old": (
        '[[listener]]\n[listener.tls]\nenabled = true\ncertificate = "/c.pem"\nminimum_version = "1.1"\n',
        ':5: listener[0].tls.minimum_version: must be "1.2" or "1.3", got "1.1"',
    ),
    "TLS without a deadline": (
        '[[listener]]\n[listener.tls]\nenabled = true\ncertificate = "/c.pem"\ntimeout = "0s"\n',
        ':5: listener[0].tls.timeout: must be longer than "0s"',
    ),
    "TLS with a protocol that is none": (
        '[[listener]]\n[listener.tls]\nenabled = true\ncertificate = "/c.pem"\nalpn = ["echo", ""]\n',
        ":5: listener[0].tls.alpn[1]: must be 1 to 255 printable ASCII characters",
    ),
    "TLS over UDP": (
        '[[listener]]\nkind = "udp"\naddress = "127.0.0.1:7"\n[listener.tls]\nenabled = true\ncertificate = "/c.pem"\n',
        'listener[0].tls: is for kind = "tcp" or "unix" only',
    ),
    "network with an interface": (
        '[[listener]]\ndeny = ["fe80::1%eth0"]\n',
        ":2: listener[0].deny[0]: must not name an interface",
    ),
    "burst without a rate": (
        '[[listener]]\nkind = "udp"\n[listener.udp]\nrate = 0\nburst = 5\n',
        ":5: listener[0].udp.burst: does nothing with rate = 0",
    ),
    "hostile key": ('"\\u001b[2J\\n" = 1\n', ':1: "\\x1b[2J\\n": unknown key'),
    "single listener": ("[listener]\n", ":1: listener: must be an array of tables: write [[listener]]"),
    "listener of another type": ("listener = 7\n", ":1: listener: must be an array, got an integer"),
    "listener of integers": ("listener = [7]\n", ":1: listener[0]: must be a table, got an integer"),
    "table of another type": ('\nlog = "info"\n', ":2: log: must be a table, got a string"),
    "no listener": ("listener = []\n", ":1: listener: must hold at least one listener"),
    "listeners": ("[[listener]]\n" * 101, ":1: listener: must hold at most 100 items, got 101"),
    "integer as a string": ('[limits]\nmax_connections = "7"\n', "must be an integer, got a string"),
    "integer as a boolean": ("[limits]\nmax_connections = true\n", "must be an integer, got a boolean"),
    "integer as a float": ("[limits]\nmax_connections = 7.0\n", "must be an integer, got a float"),
    "integer as a date": ("[limits]\nmax_connections = 2024-01-01\n", "must be an integer, got a date or time"),
    "integer as an array": ("[limits]\nmax_connections = [7]\n", "must be an integer, got an array"),
    "integer below": ("[limits]\nmax_connections = 0\n", "limits.max_connections: must be at least 1, got 0"),
    "integer above": ("[limits]\nmax_connections = 1_000_001\n", "must be at most 1000000, got 1000001"),
    "integer far above": (f"[limits]\nmax_connections = {10**30}\n", "must be at most 1000000, got an integer"),
    "integer without end": ("[limits]\nmax_connections = 0x" + "f" * 40_000, "must be at most 1000000, got an integer"),
    "string as an integer": ("[daemon]\nuser = 1000\n", ":2: daemon.user: must be a string, got an integer"),
    "array as a string": (
        '[log]\nsuppress = "connection.opened"\n',
        ":2: log.suppress: must be an array, got a string",
    ),
    "array of integers": ("[log]\nsuppress = [1]\n", ":2: log.suppress[0]: must be a string, got an integer"),
    "array without end": ("log.suppress = [" + "1," * 20_000 + "]\n", "log.suppress: must hold at most 100 items"),
    "no workers": ("[daemon]\nworkers = 0\n", 'must be an integer from 1 to 128, or "auto", got 0'),
    "workers": ("[daemon]\nworkers = 10000\n", 'must be an integer from 1 to 128, or "auto", got 10000'),
    "workers misspelt": ('[daemon]\nworkers = "atuo"\n', 'must be an integer from 1 to 128, or "auto", got "atuo"'),
    "workers as a boolean": ("[daemon]\nworkers = true\n", 'or "auto", got a boolean'),
    "poller": ('[daemon]\npoller = "kqueue"\n', 'must be "auto", "epoll", "poll" or "select", got "kqueue"'),
    "case of a word": ('[log]\nlevel = "INFO"\n', 'must be "debug", "info", "warning" or "error", got "INFO"'),
    "none": ('[log]\nformat = "none"\n', 'must be "auto", "json", "ecs" or "console", got "none"'),
    "kind": ('[[listener]]\nkind = "sctp"\n', ':2: listener[0].kind: must be "tcp", "udp" or "unix", got "sctp"'),
    "ports": (
        '[[listener]]\nkind = "udp"\n[listener.udp]\ndeny_source_ports = ["7", "9-8"]\n',
        ':4: listener[0].udp.deny_source_ports[1]: must be a port or a range of ports such as "53" or "0-1023"',
    ),
    "proxy protocol without trust": (
        "[[listener]]\nproxy_protocol = { enabled = true }\n",
        ":2: listener[0].proxy_protocol: needs trusted to name the networks of the proxies",
    ),
    "trust without proxy protocol": (
        '[[listener]]\nproxy_protocol = { trusted = ["10.0.0.0/8"] }\n',
        ":2: listener[0].proxy_protocol.trusted: is for enabled = true only",
    ),
    "trust of a path": (
        '[[listener]]\nkind = "unix"\naddress = "@x"\nproxy_protocol = { enabled = true, trusted = ["::/0"] }\n',
        ":4: listener[0].proxy_protocol: trusts by the mode of the path; leave trusted out",
    ),
    "no end to a header": (
        '[[listener]]\nproxy_protocol = { enabled = true, trusted = ["::/0"], timeout = "0s" }\n',
        ':2: listener[0].proxy_protocol.timeout: must be longer than "0s"',
    ),
    "fault of a datagram": (
        "[[listener]]\nfaults = { drop = 0.5 }\n",
        ':2: listener[0].faults: drop is for kind = "udp" only',
    ),
    "fault of a stream": (
        '[[listener]]\nkind = "udp"\n[listener.faults]\ndelay = "1s"\n',
        ':3: listener[0].faults: delay is for kind = "tcp" or "unix" only',
    ),
    "more jitter than delay": (
        '[[listener]]\n[listener.faults]\ndelay = "1s"\njitter = "2s"\n',
        ":4: listener[0].faults.jitter: must not be longer than delay",
    ),
    "long delay": (
        '[[listener]]\nfaults = { delay = "2m" }\n',
        ':2: listener[0].faults.delay: must be a duration of at most "1m", got "2m"',
    ),
    "two ends": (
        '[[listener]]\nfaults = { close_after = "1B", stall_after = "2B" }\n',
        ":2: listener[0].faults.stall_after: cannot be beside close_after",
    ),
    "large rate": (
        '[[listener]]\nfaults = { rate = "2GiB" }\n',
        ':2: listener[0].faults.rate: must be a size of at most 1GiB, or "0B", got "2GiB"',
    ),
    "part as a percentage": (
        '[[listener]]\nkind = "udp"\n[listener.faults]\ndrop = 50\n',
        ":4: listener[0].faults.drop: must be at most 1.0, got 50",
    ),
    "part that is no number": (
        '[[listener]]\nkind = "udp"\n[listener.faults]\ndrop = nan\n',
        ":4: listener[0].faults.drop: must be at most 1.0, got a float",
    ),
    "part as a string": (
        '[[listener]]\nkind = "udp"\n[listener.faults]\nduplicate = "1"\n',
        ":4: listener[0].faults.duplicate: must be a number, got a string",
    ),
    "seed of nothing": (
        '[[listener]]\nfaults = { delay = "1s", seed = 1 }\n',
        ":2: listener[0].faults.seed: does nothing without jitter, drop or duplicate",
    ),
    "negative seed": (
        "[[listener]]\nfaults = { seed = -1 }\n",
        ":2: listener[0].faults.seed: must be at least 0, got -1",
    ),
    "rate below the number of workers": (
        '[daemon]\nworkers = 4\n[[listener]]\nkind = "udp"\n[listener.udp]\nrate = 3\n',
        ":6: listener[0].udp.rate: 3 is below daemon.workers (4), which share it; raise it or lower daemon.workers",
    ),
    "burst below the number of workers": (
        '[daemon]\nworkers = 4\n[[listener]]\nkind = "udp"\n[listener.udp]\nburst = 3\n',
        ":6: listener[0].udp.burst: 3 is below daemon.workers (4)",
    ),
    "accept_rate below the number of workers": (
        "[daemon]\nworkers = 4\n[[listener]]\naccept_rate = 3\n",
        ":4: listener[0].accept_rate: 3 is below daemon.workers (4)",
    ),
    "path MTU discovery": (
        '[[listener]]\nkind = "udp"\n[listener.udp]\npath_mtu_discovery = "never"\n',
        ':4: listener[0].udp.path_mtu_discovery: must be "dont", "want", "do" or "probe", got "never"',
    ),
    "udp of a TCP listener": (
        "[[listener]]\nudp = { rate = 1 }\n",
        ':2: listener[0].udp: is for kind = "udp" only',
    ),
    "typo in a table of a listener": (
        '[[listener]]\nkind = "udp"\n[listener.udp]\nburts = 1\n',
        ':4: listener[0].udp.burts: unknown key, did you mean "burst"?',
    ),
    "backlog of a UDP listener": (
        '[[listener]]\nkind = "udp"\nbacklog = 1\n',
        ':3: listener[0].backlog: is for kind = "tcp" or "unix" only',
    ),
    "relative path": (
        '[[listener]]\nkind = "unix"\naddress = "run/x"\n',
        ":3: listener[0].address: must be an absolute path",
    ),
    "long path": (f'[[listener]]\nkind = "unix"\naddress = "/{"x" * 107}"\n', "must be at most 107 bytes long, got "),
    "path without a name": ('[[listener]]\nkind = "unix"\naddress = "@"\n', "must name a socket"),
    "unix socket without a path": ('[[listener]]\nkind = "unix"\n', "listener[0].address: must be an absolute path"),
    "path of a TCP listener": ('[[listener]]\naddress = "/run/x"\n', "has no port"),
    "mode of a TCP listener": ('[[listener]]\nmode = "0600"\n', ':2: listener[0].mode: is for kind = "unix" only'),
    "mode": (
        '[[listener]]\nkind = "unix"\naddress = "@x"\nmode = "660"\n',
        'must be a file mode such as "0660", got "660"',
    ),
    "owner": (
        '[[listener]]\nkind = "unix"\naddress = "@x"\nowner = "a b"\n',
        'must be "USER", "USER:GROUP" or ":GROUP"',
    ),
    "event": (
        '[log]\nsuppress = ["conection.opened"]\n',
        ':2: log.suppress[0]: unknown event "conection.opened", did you mean "connection.opened"?',
    ),
    "event without a likeness": ('[log]\nsuppress = ["xyzzy"]\n', ':2: log.suppress[0]: unknown event "xyzzy"'),
    "relative runtime directory": ('[daemon]\nruntime_directory = "run"\n', 'must be an absolute path, got "run"'),
    "home directory": ('[log]\nfile = "~/log"\n', ':2: log.file: must be an absolute path, got "~/log"'),
    "NUL in a path": ('[log]\nfile = "/var/\\u0000"\n', 'must not hold control characters, got "/var/\\x00"'),
    "NUL in a user": ('[daemon]\nuser = "a\\u0000b"\n', ":2: daemon.user: must not hold control characters"),
    "group without user": ('[daemon]\ngroup = "echo"\n', ":2: daemon.group: needs daemon.user to be set too"),
}

_NO_DURATIONS = (
    *("5", "5.0", "true", "inf", "nan", "-1", "[]"),
    *('"5"', '"5 s"', '"PT5S"', '"-5s"', '"+5s"', '"nan"', '"inf"', '"1d"', '"s"', '"5s, 5s"', '"\\u0665s"', '""'),
)
_NO_SIZES = ("65536", "true", '"65536"', '"64k"', '"10m"', '"64KB"', '"64 KiB"', '"-64KiB"', '"64kib"', '"1.5MiB"')

_QUANTITIES: Mapping[str, tuple[str | bytes, str]] = {
    **{
        f"duration {value}": (
            f"[limits]\nidle_timeout = {value}\n",
            ':2: limits.idle_timeout: must be a duration such as "30s" or "1m30s", got ',
        )
        for value in _NO_DURATIONS
    },
    **{
        f"size {value}": (
            f"[limits]\nbuffer = {value}\n",
            ':2: limits.buffer: must be a size in B, KiB, MiB or GiB, such as "64KiB" or "1MiB", got ',
        )
        for value in _NO_SIZES
    },
    "duration of ages": ('[limits]\nidle_timeout = "87601h"\n', "must be a duration of at most ten years"),
    "duration of nothing": (
        '[limits]\nidle_timeout = "1ns"\n',
        'must be a duration of at least "1ms", or "0s" for off',
    ),
    "size below": ('[limits]\nbuffer = "1B"\n', 'must be a size from 4KiB to 64MiB, got "1B"'),
    "size above": ('[limits]\nbuffer = "1GiB"\n', 'must be a size from 4KiB to 64MiB, got "1GiB"'),
}

_NO_ADDRESSES = {
    "127.1:7": "is not a valid IPv4 address",
    "010.0.0.1:7": "is not a valid IPv4 address",
    "256.0.0.1:7": "is not a valid IPv4 address",
    "2130706433:7": "is not a valid IPv4 address",
    "0x7f.1:7": "is not a valid IPv4 address",
    "[::1:7": "lacks the closing bracket",
    "[::1]": "has no port",
    "[::1]7": "has no port",
    "[127.0.0.1]:7": "has no valid IPv6 address in its brackets",
    "[fe80::1%]:7": "has no valid IPv6 address in its brackets",
    "[fe80::1]:7": "is link-local and must name its interface",
    "::1:7": "must be HOST:PORT; put the IPv6 address in brackets",
    "localhost": "has no port",
    "localhost:": "must end in a port from 0 to 65535",
    "localhost:65536": "must end in a port from 0 to 65535",
    "localhost:-1": "must end in a port from 0 to 65535",
    "localhost:abc": "must end in a port from 0 to 65535",
    "localhost:7_0": "must end in a port from 0 to 65535",
    "localhost:" + "1" * 5000: "must end in a port from 0 to 65535",
    ":7": "has no host",
    "*": "has no port",
    "*.example:7": "has a host that is neither an IP address nor a name",
    "[*]:7": "has no valid IPv6 address in its brackets",
    "": "has no port",
    "echo host:7": "must not hold spaces, control characters",
    "\u00e9cho:7": "must not hold spaces, control characters or characters outside ASCII",
    "echo..example:7": "has a host that is neither an IP address nor a name",
    "a" * 64 + ":7": "has a host that is neither an IP address nor a name",
    "a." * 127 + ":7": "has a host of more than 253 characters",
    "http//echo:7": "has a host that is neither an IP address nor a name",
}

_ADDRESSES: Mapping[str, tuple[str | bytes, str]] = {
    **{
        f"address {address[:20]}": (f"[[listener]]\naddress = '{address}'\n", f":2: listener[0].address: {reason}")
        for address, reason in _NO_ADDRESSES.items()
    },
    "address as an integer": (
        "[[listener]]\naddress = 1\n",
        ":2: listener[0].address: must be a string, got an integer",
    ),
    "NUL in an address": ('[[listener]]\naddress = "a\\u0000b:7"\n', "must not hold spaces, control characters"),
    "name of a listener": ('[[listener]]\nname = "a b"\n', ":2: listener[0].name: must be 1 to 63 letters, digits"),
    "empty name of a listener": ('[[listener]]\nname = ""\n', ":2: listener[0].name: must be 1 to 63 letters, digits"),
    "name twice": (
        '[[listener]]\naddress = "localhost:7"\n[[listener]]\naddress = "localhost:8"\n',
        ':3: listener[1].name: "echo" is the name of another listener already',
    ),
    "address twice": (
        _listeners("localhost:7", "LOCALHOST:07"),
        ':6: listener[1].address: localhost:7 is the address of listener "l0" already',
    ),
    "IPv6 address twice": (_listeners("[::1]:7", "[0:0::1]:7"), '[::1]:7 is the address of listener "l0" already'),
    "wildcard first": (
        _listeners("0.0.0.0:7", "127.0.0.1:7"),
        ':6: listener[1].address: 127.0.0.1:7 overlaps with 0.0.0.0:7 of listener "l0"',
    ),
    "wildcard last": (_listeners("[::1]:7", "[::]:7"), '[::]:7 overlaps with [::1]:7 of listener "l0"'),
}

BAD_CONFIGS: dict[str, tuple[str | bytes, str]] = {**_SYNTAX, **_SHAPES, **_QUANTITIES, **_ADDRESSES}
