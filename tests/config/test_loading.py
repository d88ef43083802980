"""What is read from a file, and how every bad file is refused."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.config.loading import MOST_FAULTS, load, placed
from echod.config.models import Config
from echod.config.reading import MOST_BYTES, runtime_directory
from echod.errors import ConfigError
from tests.bad_configs import BAD_CONFIGS
from tests.config.conftest import refused

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_LOAD = 1.0 if sys.gettrace() is None else 5.0  # seconds; coverage makes Python slow

TOKENS = (
    *("[daemon]", "[log]", "[limits]", "[[listener]]", "\n", "\r\n", " ", "=", ".", ",", "[", "]", "{", "}", "#", "\\"),
    *("workers", "poller", "user", "level", "suppress", "buffer", "idle_timeout", "name", "kind", "address"),
    *('"', "'", '"""', "'''", '"auto"', '"30s"', '"64KiB"', '"localhost:7"', "1", "-1", "1.5", "true", "1979-05-27"),
    *("\0", "\x7f", "\u2028", "\ufeff", "é", "workers = 2\n", 'address = "[::1]:7"\n', "[log]\nsuppress = [\n"),
)


def test_takes_what_a_file_says_and_defaults_for_the_rest(file: Path) -> None:
    """Keys of the file are taken, all others are at their defaults."""
    file.write_bytes(
        b'[daemon]\r\nworkers = 2\r\n\r\n[[listener]]\r\naddress = "[::]:7"\r\n[[listener]]\r\nname = "b"\r\n'
    )
    config = load(file)

    assert 2 == config.daemon.workers
    assert ["[::]:7", "localhost:10000"] == [listener.address for listener in config.listener]
    assert Config().limits == config.limits


def test_an_empty_file_means_the_defaults(file: Path) -> None:
    """A file without a word is valid: everything is at its default."""
    file.write_bytes(b"")

    assert Config() == load(file)


@pytest.mark.parametrize(("content", "expected"), BAD_CONFIGS.values(), ids=list(BAD_CONFIGS))
def test_refuses_bad_files(file: Path, content: str | bytes, expected: str) -> None:
    """Each kind of bad file gives its one clear line, soon."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    started = time.process_time()
    (line,) = refused(load, file)

    assert expected in line
    assert time.process_time() - started < LONGEST_LOAD
    assert len(line) < 250
    assert "pydantic" not in line


def test_tells_all_faults_at_once_in_the_order_of_the_file(file: Path) -> None:
    """Nobody has to correct a file fault by fault."""
    file.write_text(
        '[limits]\nbuffer = 1\n\n[[listener]]\n[[listener]]\nport = 7\nname = "a b"\n[log]\nlevl = "info"\n'
    )

    assert [
        ':2: limits.buffer: must be a size in B, KiB, MiB or GiB, such as "64KiB" or "1MiB", got 1',
        ":6: listener[1].port: unknown key",
        ':7: listener[1].name: must be 1 to 63 letters, digits, "_", "." or "-", got "a b"',
        ':9: log.levl: unknown key, did you mean "level"?',
    ] == refused(load, file)


def test_tells_only_the_first_of_many_faults(file: Path) -> None:
    """A file of nothing but faults does not fill the log."""
    file.write_text("".join(f"key{n} = 1\n" for n in range(MOST_FAULTS + 3)))
    lines = refused(load, file)

    assert ":20: key19: unknown key" == lines[-2]
    assert ": and 3 more" == lines[-1]


WORST = {
    "keys": "".join(f"{n:x}=1\n" for n in range(20_000)),
    "dotted keys": "".join(f"j.{n:x}=1\n" for n in range(20_000)),
    "tables": "".join(f"[{n:x}]\n" for n in range(20_000)),
    "arrays of tables": "[[l]]\na=1\n" * 10_000,
    "listeners": "[[listener]]\n" * 10_000,
    "deep keys": "[" + ".".join("a" * 16) + "]\n" + "".join(f"{'a.' * 15}{n:x}=1\n" for n in range(3_000)),
    "empty tables": "listener = [" + "{}," * 20_000 + "]",
    "quotes": '"' * MOST_BYTES,
    "escaped quotes": '"""\n' + '\\"""\n' * 10_000,
    "dots": "a.\t" * 20_000,
    "unclosed": "[]" * 30_000,
    "host": 'listener = [{address = "' + "1." * 30_000 + ':7"}]',
    "scope": 'listener = [{address = "[' + "1:" * 30_000 + ']:7"}]',
    "event": "log.suppress = [" + '"xxxxxxxxxx",' * 100 + '"' + "connection.opene" * 3_000 + '"]',
    "duration": 'limits.idle_timeout = "' + "1s" * 30_000 + '"',
}


@pytest.mark.parametrize("content", WORST.values(), ids=list(WORST))
def test_no_file_stalls(file: Path, content: str) -> None:
    """A reload happens in the supervisor, which must not stand still: the most costly files take under a second."""
    file.write_text(content[:MOST_BYTES])
    started = time.process_time()
    refused(load, file)

    assert time.process_time() - started < LONGEST_LOAD


@given(content=st.binary() | st.lists(st.sampled_from(TOKENS)).map(lambda tokens: "".join(tokens).encode()))
def test_any_bytes_are_a_config_or_a_config_error(file: Path, content: bytes) -> None:
    """Whatever a file holds, nothing else escapes, and the runtime directory can be asked for."""
    file.write_bytes(content)
    try:
        load(file)
    except ConfigError as error:
        assert all(line.isprintable() for line in error.lines)  # noqa: PT017 - a success is fine too

    assert runtime_directory(file) is None


@pytest.mark.parametrize(
    ("sentence", "line"),
    [
        ("limits.buffer: is too much", ":2"),
        ("limits.max_connections: is too much", ":1"),
        ("listener[0].tls.key: is open to all", ":6"),
        ("listener[0].tls.certificate: is gone", ":5"),
        ("listener[1].name: is taken", ":3"),
        ("daemon.user: is nobody", ""),
        ("something else", ""),
    ],
)
def test_a_sentence_is_put_where_its_key_is(tmp_path: Path, sentence: str, line: str) -> None:
    """What is found wrong later is told as what is wrong in the file; a missing key is where its table is."""
    path = tmp_path / "echod.toml"
    path.write_text('[limits]\nbuffer = "64KiB"\n[[listener]]\nname = "echo"\n[listener.tls]\nkey = "/k"\n')

    assert f"{path}{line}: {sentence}" == placed(path, sentence)


def test_a_sentence_without_its_file_is_told_all_the_same(tmp_path: Path) -> None:
    """The file may be gone by then."""
    assert f"{tmp_path}/gone: limits.buffer: is too much" == placed(tmp_path / "gone", "limits.buffer: is too much")
