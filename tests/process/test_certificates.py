"""Certificates from files: what is read, what is refused and with which words."""

from __future__ import annotations

import errno
import os
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from echod.config.listeners import Listener
from echod.errors import ConfigError, StartError
from echod.events import CertificateLoaded
from echod.process import certificates
from tests.core.peers import CA_PEM, CLIENT, SERVER

if TYPE_CHECKING:
    from pathlib import Path

    from echod.events import Event

CHAIN = b"".join(blob.bytes() for blob in SERVER.cert_chain_pems)
KEY = SERVER.private_key_pem.bytes()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Lay out a certificate, its key and the authority of clients."""
    (tmp_path / "chain.pem").write_bytes(CHAIN)
    (tmp_path / "key.pem").write_bytes(KEY)
    (tmp_path / "both.pem").write_bytes(CHAIN + KEY)
    (tmp_path / "ca.pem").write_text(CA_PEM)
    (tmp_path / "other.pem").write_bytes(CLIENT.private_key_pem.bytes())
    for path in tmp_path.iterdir():
        path.chmod(0o640)
    return tmp_path


def listener(files: Path, certificate: str = "chain.pem", key: str = "key.pem", **keys: Any) -> Listener:
    """Return a listener that speaks TLS with such files."""
    tls = {"enabled": True, "certificate": str(files / certificate), "key": str(files / key) if key else ""}
    return Listener.model_validate({"address": "127.0.0.1:7", "tls": tls | keys})


def refusal(*listeners: Listener) -> list[str]:
    """Return the lines of why the files are refused."""
    with pytest.raises(ConfigError) as caught:
        certificates.read(listeners)
    return list(caught.value.lines)


def test_only_those_who_speak_tls_need_files() -> None:
    """A plain listener has no certificate."""
    assert {} == certificates.read([Listener()])


@pytest.mark.parametrize(("certificate", "key"), [("chain.pem", "key.pem"), ("both.pem", "")])
def test_a_worker_needs_no_file(files: Path, certificate: str, key: str) -> None:
    """What is read is all that a context is made of, whether the key stands by itself or not."""
    one = listener(files, certificate, key, client_ca=str(files / "ca.pem"))
    found = certificates.read([Listener(name="plain"), one])
    for path in files.iterdir():
        path.unlink()
    made = certificates.contexts([one], found)

    assert ["echo"] == list(found) == list(made)
    assert ssl.CERT_REQUIRED == made["echo"].verify_mode


def test_a_key_for_all_to_read_is_refused(files: Path) -> None:
    """Whoever can read the key can be the server; a group may read it."""
    (files / "key.pem").chmod(0o644)
    (files / "both.pem").chmod(0o601)
    said = "holds the private key and is open to all (mode {}): chmod o= it"

    assert [
        f"listener[0].tls.key: {files}/key.pem: {said.format('0644')}",
        f"listener[1].tls.certificate: {files}/both.pem: {said.format('0601')}",
    ] == refusal(listener(files), listener(files, "both.pem", ""))


@pytest.mark.parametrize(
    ("certificate", "key", "keys", "expected"),
    [
        ("none.pem", "key.pem", {}, "certificate: {}/none.pem: does not exist"),
        ("chain.pem", "none.pem", {}, "key: {}/none.pem: does not exist"),
        ("", "key.pem", {}, "certificate: {}: is a directory, not a regular file"),
        ("chain.pem", "", {}, "certificate: {}/chain.pem: there is no private key in PEM format"),
        ("key.pem", "key.pem", {}, "certificate: {}/key.pem: there is no certificate in PEM format"),
        ("chain.pem", "other.pem", {}, "certificate: {}/chain.pem: the private key does not belong to the first cert"),
        ("chain.pem", "key.pem", {"client_ca": "none.pem"}, "client_ca: {}/none.pem: does not exist"),
        ("chain.pem", "key.pem", {"client_ca": "key.pem"}, "client_ca: {}/key.pem: there is no certificate in client_"),
    ],
)
def test_what_is_wrong_is_one_line(
    files: Path, certificate: str, key: str, keys: dict[str, str], expected: str
) -> None:
    """It names the key and the file, and shows nothing of what is in there."""
    paths = {name: str(files / path) for name, path in keys.items()}
    [line] = refusal(listener(files, certificate, key, **paths))

    assert line.startswith(f"listener[0].tls.{expected.format(files)}")
    assert "BEGIN" not in line


def test_nothing_prints_a_key(files: Path) -> None:
    """Whatever shows what a listener speaks TLS with, in a test or in a traceback, shows no key."""
    assert "PRIVATE KEY" not in repr(certificates.read([listener(files)]))


def test_without_descriptors_nothing_is_wrong_with_the_files(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reload is refused for want of them, and the supervisor lives on."""

    def none_left(_name: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", none_left)
    with pytest.raises(StartError, match="cannot try the certificate: Too many open files"):
        certificates.read([listener(files)])


def test_it_is_said_how_long_they_are_valid(files: Path) -> None:
    """Whoever watches the log knows when a certificate ends before it does."""
    said: list[Event] = []
    certificates.say_loaded(certificates.read([listener(files)]), said.append)

    [loaded] = said
    assert isinstance(loaded, CertificateLoaded)
    assert "echo" == loaded.listener
    assert str(loaded.not_before) < str(loaded.not_after)


@pytest.mark.parametrize(("begins", "ends"), [(-2, -1), (1, 2)])
def test_it_is_said_that_they_are_not_valid_now(files: Path, begins: int, ends: int) -> None:
    """A certificate that has expired, or is not valid yet, serves all the same, but not in silence."""
    now = datetime.now(UTC)
    start, end = (now + timedelta(days=days) for days in (begins, ends))
    issued = trustme.CA().issue_cert("echo.example", not_before=start, not_after=end)
    path = files / "both.pem"
    path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    said: list[Event] = []
    certificates.say_loaded(certificates.read([listener(files, "both.pem", "")]), said.append)

    assert ["certificate.loaded", "certificate.distrusted"] == [event.name for event in said]
