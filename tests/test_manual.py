"""The manual page of the command says what the command does, and prints without a complaint."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import echod
from echod import cli, errors
from echod.config.models import Config
from echod.process.signals import ACTED_ON

MAN = Path(__file__).parent.parent / "man"
PAGE = (MAN / "echod.8").read_text()


def section(name: str) -> str:
    """Return one section of the page, without font changes and escapes."""
    found = re.search(rf"^\.SH {name}\n(.*?)(?=^\.SH |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"no section {name}"
    return found[1].replace("\\-", "-").replace("\\fR", "")


def entries(name: str) -> list[str]:
    """Return the heads of a section's tagged paragraphs."""
    return [re.sub(r'^\.[BIR]+ |"', "", line) for line in re.findall(r"^\.TP\n(.*)", section(name), re.MULTILINE)]


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    parser = cli._parser()
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options that a parser knows."""
    return {text for action in parser._actions for text in action.option_strings}


def test_each_command_is_explained() -> None:
    """Each command, and each thing that `show` shows, has a paragraph; nothing else has."""
    (what,) = (action.choices for action in commands()["show"]._actions if action.dest == "what")
    shown = [f"show {name}" for name in what or ()]

    assert [name for name in commands() if name != "show"] + shown == entries("COMMANDS")


def test_each_command_is_in_the_synopsis_with_its_options() -> None:
    """The synopsis of a command has each of its options but the help; the page names no option that is not there."""
    synopsis = section("SYNOPSIS")
    for name, parser in commands().items():
        (line,) = (part for part in synopsis.split(".SY echod") if part.startswith(f"\n.B {name}\n"))
        expected = options(parser) - {"-h", "--help", "--config"}

        assert expected == set(re.findall(r"(?<![\w-])--?[a-z]+", line))


def test_each_option_is_explained() -> None:
    """The section has each option of each command, and no other."""
    expected = options(cli._parser()).union(*map(options, commands().values()))

    assert expected == set(re.findall(r"(?<![\w-])--?[a-z]+", " ".join(entries("OPTIONS"))))


def test_each_exit_status_is_explained() -> None:
    """Success, and the exit code of each kind of error."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EchodError)]

    assert {0, *(kind.exit_code for kind in kinds)} == {int(code) for code in entries("EXIT STATUS")}


def test_each_signal_is_explained() -> None:
    """Each signal that the supervisor acts on; CHLD is between it and its workers."""
    expected = {number.name.removeprefix("SIG") for number in ACTED_ON} - {"CHLD"}

    assert expected == set(re.findall(r"[A-Z]+[0-9]?", " ".join(entries("SIGNALS"))))


def test_each_key_that_is_named_is_there() -> None:
    """A key that the page speaks of is one that the configuration has."""
    for table, *keys in (name.split(".") for name in named_keys()):
        found = Config().listener[0] if table == "listener" else getattr(Config(), table)
        for key in keys:
            assert key in type(found).model_fields, f"{table}.{'.'.join(keys)}"
            found = getattr(found, key)


def named_keys() -> list[str]:
    """Return what the page names with dots below a table of the configuration."""
    return re.findall(r"\b(?:daemon|log|limits|listener|admin)(?:\.[a-z_]+)+", PAGE.replace("\\-", "-"))


def test_the_example_is_accepted() -> None:
    """The configuration in the examples is one."""
    (text,) = re.findall(r"^(\[\[listener\]\]\n.*?)^\.in$", section("EXAMPLES"), re.MULTILINE | re.DOTALL)
    document: dict[str, Any] = tomllib.loads(text)

    assert ["*:10007"] == [listener.address for listener in Config.model_validate(document).listener]


@pytest.mark.parametrize("page", ["echod.8", "echod.toml.5", "echod-events.7"])
def test_the_pages_are_of_this_version(page: str) -> None:
    """The foot of each page has the version of the program."""
    assert f'"echod {echod.__version__}"' in (MAN / page).read_text().split(".SH")[0]


@pytest.mark.parametrize("page", ["echod.8", "echod.toml.5", "echod-events.7"])
def test_the_pages_print_without_a_complaint(page: str) -> None:
    """Groff has nothing to say with all its warnings on."""
    groff = shutil.which("groff")
    if not groff:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        [groff, "-ww", "-man", "-Tutf8", MAN / page], capture_output=True, encoding="utf-8", check=False
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert "SEE ALSO" in re.sub(r".\x08|\x1b\[[0-9]*m", "", done.stdout)
