"""The manual page of the log: nothing of the catalogue is missing there, and nothing stands there that is not in it."""

from __future__ import annotations

import re

import pytest

from echod.events import Event, catalogue
from echod.observe import ecs, schema

COMMON = ("timestamp", "level", "event")


def plain(text: str) -> str:
    """Undo the escapes."""
    return text.replace("\\-", "-").replace("\\&", "")


def section(name: str) -> dict[str, tuple[str, str]]:
    """Return of each paragraph of a section its head: what is in parentheses there, and the text."""
    found = re.search(rf"^\.SH {name}\n(.*?)(?=^\.SH |\Z)", plain(schema.page()), re.MULTILINE | re.DOTALL)
    assert found
    paragraphs = re.findall(r"^\.TP\n\.BR (\S+) \" \((.*)\)\"\n((?:(?!\.TP).*\n)+)", found[1], re.MULTILINE)
    return {name: (kind, text) for name, kind, text in paragraphs}


@pytest.mark.parametrize("event", catalogue(), ids=lambda event: event.name)
def test_an_event_has_its_level_its_meaning_and_its_fields(event: type[Event]) -> None:
    """Its paragraph has all that the class says."""
    level, text = section("EVENTS")[event.name]
    meaning, _, fields = text.partition("\n.br\nFields: ")

    assert (str(event.level), " ".join((event.__doc__ or "").split())) == (level, meaning)
    assert (list(event.keys.values()) or ["none"]) == fields.removesuffix(".\n").split(", ")


def test_no_event_is_made_up() -> None:
    """The page has no event that the catalogue has not, and has them in order."""
    assert [event.name for event in catalogue()] == list(section("EVENTS"))


def test_every_field_has_a_meaning() -> None:
    """Each key of each record is explained once, and nothing else is."""
    keys = {key for event in catalogue() for key in event.keys.values()}

    assert keys | set(COMMON) == set(schema.MEANINGS) == set(section("FIELDS"))
    assert all(re.fullmatch(r"[A-Za-z].*\.", meaning) for meaning in schema.MEANINGS.values())


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("level", "string; ECS: log.level"),
        ("client.port", "integer"),
        ("echod.close.reason", "string; ECS: event.reason"),
        ("echod.tcp.rtt", "number"),
        ("tls.resumed", "boolean"),
        ("echod.config.errors", "strings"),
        ("echod.worker.pids", "integers"),
    ],
)
def test_a_field_has_its_type(key: str, kind: str) -> None:
    """What a parser has to expect stands with the key, and so does the name that it has in ECS."""
    assert kind == section("FIELDS")[key][0]


def test_each_name_of_ecs_is_said() -> None:
    """Whoever renames a field for ECS finds the new name on the page."""
    said = {key: kind.partition("; ECS: ")[2] for key, (kind, _) in section("FIELDS").items()}

    assert ecs.NAMES == {key: name for key, name in said.items() if name}
