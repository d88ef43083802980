"""What ships beside the package says the same as the package."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from echod import events
from echod.config import dumping, manual
from echod.config.fields import Table
from echod.config.models import Config
from echod.observe import schema
from echod.process.signals import ACTED_ON

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_shipped_file_is_the_printed_one() -> None:
    """etc/echod.toml is what `echod show defaults` prints, so neither can drift."""
    shipped = (ROOT / "etc/echod.toml").read_text()

    assert dumping.defaults_toml() == shipped


def test_the_shipped_manual_page_is_the_printed_one() -> None:
    """man/echod.toml.5 is what the models say; `make man` writes it."""
    assert manual.page() == (ROOT / "man/echod.toml.5").read_text()


def test_the_shipped_page_of_events_is_the_printed_one() -> None:
    """man/echod-events.7 is what the catalogue says; `make man` writes it."""
    assert schema.page() == (ROOT / "man/echod-events.7").read_text()


def test_every_key_is_in_the_readme_and_the_changelog() -> None:
    """A new option arrives in model, README and CHANGELOG together."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    tables = [(f"[{name}]", field.default) for name, field in Config.model_fields.items() if name != "listener"]
    listener = Config.model_fields["listener"].default[0]
    inner = {name: value for name, value in listener if isinstance(value, Table)}
    tables += [("[[listener]]", listener), *((f"[listener.{name}]", table) for name, table in inner.items())]
    for head, table in tables:
        for key, value in table.model_dump(mode="json").items():
            if table is not listener or key not in inner:
                row = f"| `{head}` `{key}` | `{json.dumps(value)}` | {type(table).model_fields[key].description}"

                assert row in README
                assert f"`{key}`" in changelog


def test_every_event_is_in_the_readme() -> None:
    """The table of events has each event with its level and the first line of its docstring, and no other."""
    expected = [
        f"| `{event.name}` | {event.level} | {(event.__doc__ or '').splitlines()[0]} |" for event in events.catalogue()
    ]

    assert expected == re.findall(
        r"^\| `[a-z]+\.[a-z]+` \| (?:debug|info|warning|error) \| .* \|$", README, re.MULTILINE
    )


def test_every_reason_is_in_the_readme() -> None:
    """Each word for why a connection ended or was refused is explained."""
    for reason in (*events.CloseReason, *events.RefuseReason):
        assert f"`{reason}`" in README


def test_every_signal_is_in_the_readme() -> None:
    """Each signal that the supervisor acts on is explained; CHLD is between it and its workers."""
    for number in ACTED_ON:
        if number.name != "SIGCHLD":
            assert f"`{number.name.removeprefix('SIG')}`" in README


def test_the_remedy_for_closed_sockets_is_the_same_everywhere() -> None:
    """What the socket unit says to do once systemd has given up, the README and the manual page say too."""
    (remedy,) = re.findall(r"^# {5}(systemctl .+)$", (ROOT / "systemd/echod.socket").read_text(), re.MULTILINE)
    manual = (ROOT / "man/echod.8").read_text().replace("\\-", "-")

    assert f"`{remedy}`" in README
    assert all(f"\n{command}\n" in manual for command in remedy.split(" && "))


@pytest.mark.parametrize("name", ["filebeat.yml", "fluent-bit.yaml", "otelcol.yaml", "vector.yaml"])
def test_the_examples_for_shippers_are_yaml(name: str) -> None:
    """Each is one mapping, without the tabs and the loose ends that YAML does not take.

    Known limit: none of these programs is packaged where tests can have it, so only their syntax is held.
    """
    document = yaml.safe_load((ROOT / "etc/shipping" / name).read_text())

    assert isinstance(document, dict)
    assert "echod" in str(document)


def test_the_examples_for_shippers_refer_to_what_they_have() -> None:
    """What reads from another part of the same file names a part that is there."""
    vector, otelcol = (
        yaml.safe_load((ROOT / "etc/shipping" / name).read_text()) for name in ("vector.yaml", "otelcol.yaml")
    )
    parts = vector["sources"] | vector["transforms"] | vector["sinks"]
    logs = otelcol["service"]["pipelines"]["logs"]
    alloy = (ROOT / "etc/shipping/config.alloy").read_text()
    blocks = {".".join(block) for block in re.findall(r'^([a-z.]+) "([a-z]+)" {$', alloy, re.MULTILINE)}

    assert {source for part in parts.values() for source in part.get("inputs", [])} <= set(parts)
    assert (set(logs["receivers"]), set(logs["exporters"])) == (set(otelcol["receivers"]), set(otelcol["exporters"]))
    assert {"loki.process.echod", "loki.write.default"} == set(re.findall(r"\[(.*)\.receiver\]", alloy)) <= blocks
    assert alloy.count("{") == alloy.count("}")


def test_the_unit_is_clean() -> None:
    """systemd finds nothing to say about the unit."""
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        [analyze, "verify", "--man=no", ROOT / "systemd/echod.service"], capture_output=True, text=True, check=False
    )
    # The command need not be installed where the tests run.
    said = [line for line in done.stderr.splitlines() if "echod.service" in line and "is not executable" not in line]

    assert [] == said


def test_both_distributions_hold_the_unit(tmp_path: Path) -> None:
    """What is built from the checkout, and from the source distribution again, prints the unit that ships."""

    def build(source: Path, target: str) -> Path:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", tmp_path / target],
            cwd=source,
            check=True,
            capture_output=True,
        )
        (built,) = (tmp_path / target).iterdir()
        return built

    def held(wheel: Path) -> str:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read("echod/config/echod.service").decode()

    shipped = (ROOT / "systemd/echod.service").read_text()
    wheel = build(ROOT, "wheel")
    assert shipped == held(wheel)
    wheel.unlink()
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xf", build(ROOT, "sdist"), "-C", unpacked], check=True)
    (source,) = unpacked.iterdir()
    assert shipped == held(build(source, "wheel"))
