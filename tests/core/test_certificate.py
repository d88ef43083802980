"""Contexts from what an operator supplies: what they demand, what is wrong with a file, and what certificates say."""

from __future__ import annotations

import os
import ssl
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from echod.core.certificate import CertificateError, Version, context, distinguished, validity
from tests.core.peers import CA, CA_PEM, SERVER, STRANGER, Client, client_context, pair

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

YEARS = [datetime(year, 2, 28, 23, 59, 58, tzinfo=UTC) for year in (1950, 1999, 2000, 2049, 2050, 9999)]

CERTIFICATE = SERVER.cert_chain_pems[0].bytes()
KEY = SERVER.private_key_pem.bytes()


def encrypted(layout: PrivateFormat) -> bytes:
    """Return the key as it is after a passphrase was given for it."""
    key = load_pem_private_key(KEY, None)
    return key.private_bytes(Encoding.PEM, layout, BestAvailableEncryption(b"secret"))


def damaged(pem: bytes) -> bytes:
    """Return PEM whose content begins wrongly."""
    head, end, content = pem.partition(b"-----\n")
    return head + end + b"AAAA" + content[4:]


def write(directory: Path, content: bytes) -> str:
    """Return the path of a file with `content`."""
    path = directory / "chain.pem"
    path.write_bytes(content)
    return str(path)


# -- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        CERTIFICATE + KEY,
        KEY + CERTIFICATE,
        CERTIFICATE + CA_PEM.encode() + KEY,
        "# für echo.example\n".encode() + CERTIFICATE + b"\n\n" + KEY + b"the end",
        CERTIFICATE.replace(b"\n", b"\r\n") + KEY,
        CERTIFICATE + KEY + STRANGER.private_key_pem.bytes(),
        b"see -----BEGIN CERTIFICATE----- below\n# -----BEGIN CERTIFICATE-----\n# MII\n" + CERTIFICATE + KEY,
    ],
    ids=["certificate first", "key first", "chain", "comments", "CR LF", "two keys", "certificates in comments"],
)
def test_what_is_accepted(tmp_path: Path, content: bytes) -> None:
    """Certificate and key may stand in any order, among whatever else a file may hold; the first of a kind counts."""
    assert isinstance(context(write(tmp_path, content)), ssl.SSLContext)
    assert validity(content.decode()).not_after


def test_a_descriptor_is_as_good_as_a_file() -> None:
    """A text that is nowhere but in memory can be loaded by the name of its descriptor, more than once."""
    descriptor = os.memfd_create("chain")
    try:
        os.write(descriptor, CERTIFICATE + KEY)
        made = [context(f"/proc/self/fd/{descriptor}") for _ in range(2)]
    finally:
        os.close(descriptor)

    assert 2 == len(made)


@pytest.mark.parametrize("minimum_version", ["1.2", "1.3"])
def test_what_a_context_demands(tmp_path: Path, minimum_version: Version) -> None:
    """The oldest version is the one asked for; nothing is compressed or negotiated again; no certificate is wanted."""
    made = context(write(tmp_path, CERTIFICATE + KEY), minimum_version=minimum_version)

    assert f"TLSv{minimum_version.replace('.', '_')}" == made.minimum_version.name
    assert ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION in ssl.Options(made.options)
    assert ssl.CERT_NONE is made.verify_mode


@pytest.mark.parametrize(("required", "mode"), [(True, ssl.CERT_REQUIRED), (False, ssl.CERT_OPTIONAL)])
def test_a_client_ca_makes_clients_show_a_certificate(tmp_path: Path, required: bool, mode: ssl.VerifyMode) -> None:
    """With `client_ca` a certificate is asked for; comments in it may be in any language."""
    path = write(tmp_path, CERTIFICATE + KEY)
    made = context(path, client_ca="# Főtanúsítvány\n" + CA_PEM, client_required=required)

    assert mode is made.verify_mode
    assert 1 == made.cert_store_stats()["x509_ca"]


def test_a_context_offers_protocols(tmp_path: Path) -> None:
    """The names of protocols are those of the operator, in the same order."""
    made = context(write(tmp_path, CERTIFICATE + KEY), alpn=("first", "second"))
    client = client_context()
    client.set_alpn_protocols(["second", "first"])

    assert "first" == pair(made, Client(client))[0].facts.alpn


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "there is no certificate in PEM format"),
        (b"\0\x01\xff" * 100, "there is no certificate in PEM format"),
        (ssl.PEM_cert_to_DER_cert(CERTIFICATE.decode()), "there is no certificate in PEM format"),
        (KEY, "there is no certificate in PEM format"),
        (damaged(CERTIFICATE) + KEY, "a certificate is damaged"),
        (CERTIFICATE[:200], "a certificate is damaged"),
        (CERTIFICATE + damaged(CA_PEM.encode()) + KEY, "a certificate is damaged"),
        (CERTIFICATE, "there is no private key in PEM format"),
        (CERTIFICATE + damaged(KEY), "the private key is damaged"),
        (CERTIFICATE + KEY[:-40], "the private key is damaged"),
        (
            CERTIFICATE + STRANGER.private_key_pem.bytes(),
            "the private key does not belong to the first certificate",
        ),
        (CA_PEM.encode() + CERTIFICATE + KEY, "the private key does not belong to the first certificate"),
        (
            CERTIFICATE + encrypted(PrivateFormat.PKCS8),
            "the private key is encrypted, and there is nobody to ask for its passphrase",
        ),
        (
            CERTIFICATE + encrypted(PrivateFormat.TraditionalOpenSSL),
            "the private key is encrypted, and there is nobody to ask for its passphrase",
        ),
    ],
    ids=[
        "empty",
        "binary",
        "DER",
        "no certificate",
        "damaged certificate",
        "cut certificate",
        "damaged chain",
        "no key",
        "damaged key",
        "cut key",
        "other key",
        "wrong order",
        "encrypted",
        "encrypted in the old form",
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    """Whatever is wrong with a file is said in words that tell the operator what to mend."""
    with pytest.raises(CertificateError) as caught:
        context(write(tmp_path, content))
    assert sentence == str(caught.value)


def test_what_openssl_finds_too_weak(tmp_path: Path) -> None:
    """What is in order but not good enough for OpenSSL is refused with its reason."""
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "echo.example")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, YEARS[1], YEARS[3])
    content = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    content += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    with pytest.raises(CertificateError) as caught:
        context(write(tmp_path, content))
    assert "OpenSSL refuses the certificate: ee key too small" == str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there is no certificate in client_ca in PEM format"),
        ("garbage", "there is no certificate in client_ca in PEM format"),
        (KEY.decode(), "there is no certificate in client_ca in PEM format"),
        (CA_PEM[:200], "a certificate in client_ca is damaged"),
        (CA_PEM + damaged(CA_PEM.encode()).decode(), "a certificate in client_ca is damaged"),
    ],
    ids=["empty", "garbage", "key", "cut", "damaged"],
)
def test_what_is_wrong_with_a_client_ca(tmp_path: Path, text: str, sentence: str) -> None:
    """The same holds for the certificates that clients are judged by."""
    path = write(tmp_path, CERTIFICATE + KEY)

    with pytest.raises(CertificateError) as caught:
        context(path, client_ca=text)
    assert sentence == str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error_of_the_system(tmp_path: Path) -> None:
    """A missing file is told apart from one that is wrong, since that is for others to explain."""
    with pytest.raises(FileNotFoundError):
        context(str(tmp_path / "missing.pem"))


# -- what certificates say --------------------------------------------------------------------------------------------


def issued(start: datetime, end: datetime) -> str:
    """Return a certificate for the time from `start` to `end`."""
    return CA.issue_cert("echo.example", not_before=start, not_after=end).cert_chain_pems[0].bytes().decode()


@pytest.mark.parametrize(("start", "end"), list(pairwise(YEARS)))
def test_validity(start: datetime, end: datetime) -> None:
    """Both forms of times are read, to the second, and expired certificates like others."""
    assert (start, end) == validity(issued(start, end))


def test_dates_that_are_none() -> None:
    """OpenSSL takes a thirteenth month, as long as nobody asks: whoever wants the dates gets one sentence."""
    head, _, rest = issued(*YEARS[:2]).partition("-----\n")
    der = b64decode(rest.partition("-----END")[0])
    start = der.index(YEARS[0].strftime("%y%m%d").encode())
    spoilt = der[: start + 2] + b"13" + der[start + 4 :]

    with pytest.raises(CertificateError, match="dates"):
        validity(f"{head}-----\n{b64encode(spoilt).decode()}\n-----END CERTIFICATE-----\n")


def test_the_validity_of_a_chain(tmp_path: Path) -> None:
    """A chain is valid while each of its certificates is; a certificate that is not is accepted all the same."""
    leaf = CA.issue_cert("echo.example", not_before=YEARS[1], not_after=YEARS[2])
    chain = leaf.private_key_pem.bytes().decode() + leaf.cert_chain_pems[0].bytes().decode()
    path = write(tmp_path, chain.encode())

    assert context(path)
    assert (YEARS[1], YEARS[2]) == validity(chain + issued(YEARS[0], YEARS[3]))
    assert (YEARS[1], YEARS[1]) == validity(chain + issued(YEARS[0], YEARS[1]))


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ([], ""),
        ([[("commonName", "client.example")]], "CN=client.example"),
        (
            [[("countryName", "AT")], [("organizationName", "Acme, Inc.")], [("commonName", "a"), ("userId", "b")]],
            r"CN=a+UID=b,O=Acme\, Inc.,C=AT",
        ),
        ([[("emailAddress", "a@b.example")], [("1.2.3.4", "x")]], "1.2.3.4=x,emailAddress=a@b.example"),
        ([[("commonName", ' #"+,;<>\\= ')]], r"CN=\ #\"\+\,\;\<\>\\=\ "),
        ([[("commonName", "#1")]], r"CN=\#1"),
        ([[("x500UniqueIdentifier", b"\x01\xff")]], "x500UniqueIdentifier=#01ff"),
    ],
)
def test_distinguished_names(subject: Iterable[Iterable[tuple[str, str]]], text: str) -> None:
    """A subject is written as RFC 4514 has it, with what would be taken for syntax escaped."""
    assert text == distinguished(subject)
