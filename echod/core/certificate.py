"""Makes a context of OpenSSL from what the operator supplies, and reads what certificates say.

Rule: what an operator can get wrong is one sentence, in which nothing of a file is shown: it could be the key.

Fails: CertificateError as above; OSError where the file cannot be read.

Known limits
    Whoever offers only protocols (ALPN) that are not ours goes on without one, where RFC 7301 §3.2 wants an alert, and
    clients of TLS 1.2 that know no tickets have their sessions kept, 20,480 of some 1 KiB for each context
    (SSL_CTX_sess_set_cache_size(3)): CPython has no say in either.
    Tickets are good only for the context that has issued them: not for another worker, and not after a reload.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64decode
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Version: TypeAlias = Literal["1.2", "1.3"]

VERSIONS: dict[Version, ssl.TLSVersion] = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_CERTIFICATE = re.compile(
    r"^-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([A-Za-z0-9+/=\s]*)(?:-----END [A-Z0-9 ]+-----)?",
    re.ASCII | re.MULTILINE,  # as OpenSSL, which takes what does not begin a line for a comment
)
_KEY = re.compile(r"^-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----", re.ASCII | re.MULTILINE)

_VERSION_TAG = 0xA0
_UTC_TIME = 0x17
_VALIDITY = 3
"""Where in a TBSCertificate without its version the validity stands (RFC 5280 §4.1)."""

_SHORT = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
"""The short names of attribute types (RFC 4514 §3); others keep the name that OpenSSL has for them, or their number."""

_SPECIAL = re.compile(r'^[ #]|[,+"\\<>;]| $')
"""What takes a backslash in a distinguished name (RFC 4514 §2.4)."""


Name: TypeAlias = "Iterable[Iterable[tuple[str, str | bytes]]]"
"""A subject as CPython has it: parts, each of types and values, most of them one. A bit string is bytes."""


class CertificateError(ValueError):
    """A certificate or a key is not what it must be; the text says why."""


class Validity(NamedTuple):
    """From when to when all certificates of a chain are valid."""

    not_before: datetime
    not_after: datetime


def context(
    path: str,
    client_ca: str | None = None,
    alpn: Iterable[str] = (),
    minimum_version: Version = "1.2",
    *,
    client_required: bool = True,
) -> ssl.SSLContext:
    """Return the context of a server.

    The file at `path` holds in PEM the server's certificate, those that lead from it to a root, and its key. It may be
    a descriptor's, /proc/self/fd/3 say, since OpenSSL takes nothing but names. With `client_ca`, PEM text, clients are
    asked for a certificate, and those without one are refused if it is `client_required`.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    made.minimum_version = VERSIONS[minimum_version]
    try:
        made.load_cert_chain(path, password=_refuse)
    except ssl.SSLError as error:
        _explain(error, path)
    if alpn:
        made.set_alpn_protocols(alpn)
    if client_ca is not None:
        _trust(made, client_ca, " in client_ca")
        made.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return made


def validity(chain: str) -> Validity:
    """Return when the certificates of `chain` are valid, a text in PEM that `context` has accepted."""
    try:
        periods = [_period(b64decode(body)) for body in _CERTIFICATE.findall(chain)]
        return Validity(max(start for start, _ in periods), min(end for _, end in periods))
    except (ValueError, IndexError):  # OpenSSL looks at dates only when somebody else shows them
        raise CertificateError("the dates of a certificate cannot be read") from None


def distinguished(subject: Name) -> str:
    """Write a name as RFC 4514 §2 does, its last part first."""
    parts = ["+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part) for part in subject]
    return ",".join(reversed(parts))


# -- what is wrong ----------------------------------------------------------------------------------------------------


def _refuse() -> NoReturn:
    """Answer for the terminal, where OpenSSL would ask for a passphrase."""
    raise CertificateError("the private key is encrypted, and there is nobody to ask for its passphrase")


def _explain(error: ssl.SSLError, path: str) -> NoReturn:
    """Say why the file at `path` was refused, where OpenSSL has often no more to say than "PEM lib"."""
    if error.reason == "KEY_VALUES_MISMATCH":
        raise CertificateError("the private key does not belong to the first certificate") from error
    text = Path(path).read_text(encoding="ascii", errors="replace")
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), text)
    if not _KEY.search(text):
        raise CertificateError("there is no private key in PEM format") from error
    if error.reason is None or error.library == "PEM":
        raise CertificateError("the private key is damaged") from error
    raise CertificateError(f"OpenSSL refuses the certificate: {error.reason.lower().replace('_', ' ')}") from error


def _trust(made: ssl.SSLContext, text: str, where: str = "") -> None:
    """Have `made` trust the certificates in `text`, among which there may be anything in any language."""
    found = [match[0] for match in _CERTIFICATE.finditer(text)]
    if not found:
        raise CertificateError(f"there is no certificate{where} in PEM format")
    try:
        made.load_verify_locations(cadata="\n".join(found))
    except ssl.SSLError as error:
        raise CertificateError(f"a certificate{where} is damaged") from error


# -- what certificates say --------------------------------------------------------------------------------------------


def _period(der: bytes) -> tuple[datetime, datetime]:
    (_, certificate), *_ = _elements(der)
    (_, content), *_ = _elements(certificate)
    fields = [element for element in _elements(content) if element[0] != _VERSION_TAG]
    start, end = (_moment(*element) for element in _elements(fields[_VALIDITY][1]))
    return start, end


def _moment(tag: int, content: bytes) -> datetime:
    """Read a time, whose year has two digits in its older form (RFC 5280 §4.1.2.5)."""
    text = content.decode()
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%S%z")


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element (X.690 §8.1, with tags of one byte and definite lengths)."""
    while der:
        length, start = der[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[2:start], "big")
        yield der[0], der[start : start + length]
        der = der[start + length :]


def _escaped(value: str | bytes) -> str:
    if isinstance(value, bytes):
        return f"#{value.hex()}"  # §2.4 has the tag and the length in it, too
    return _SPECIAL.sub(r"\\\g<0>", value)
