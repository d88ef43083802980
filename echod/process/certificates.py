"""Certificates and keys: read and proven by the supervisor, which may, and used by the workers, which may not.

Rule: a worker gets the text of the files with its assignment and never opens one. Whatever is wrong with a file refuses
the start or the reload; a daemon that runs goes on with what it has.

Fails: ConfigError with a line for each listener, that names key and file; StartError where descriptors or memory are
short; OSError for the same in a worker.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from echod.config import reading
from echod.core import certificate
from echod.core.certificate import CertificateError
from echod.errors import ConfigError, StartError
from echod.events import CertificateDistrusted, CertificateLoaded

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping

    from echod.config.listeners import Listener
    from echod.config.tls import Tls
    from echod.events import Event

MOST_BYTES = 256 * 1024
"""Of a file; the authorities that browsers trust are as many."""


@dataclass(frozen=True)
class Material:
    """What a listener speaks TLS with, as text in PEM."""

    chain: str = field(repr=False)
    """The certificates that are shown, and the key, which nothing must ever print."""
    client_ca: str | None


def read(listeners: Iterable[Listener]) -> dict[str, Material]:
    """Read and prove the files of all listeners that speak TLS; return them by the listeners' names."""
    found: dict[str, Material] = {}
    faults: list[str] = []
    for index, listener in enumerate(listeners):
        if not listener.tls.enabled:
            continue
        try:
            found[listener.name] = _material(listener.tls)
        except ConfigError as error:
            faults += [f"listener[{index}].tls.{line}" for line in error.lines]
    if faults:
        raise ConfigError(*faults)
    return found


def contexts(listeners: Iterable[Listener], materials: Mapping[str, Material]) -> dict[str, ssl.SSLContext]:
    """Return what OpenSSL needs, by the listeners' names."""
    return {
        listener.name: context(listener.tls, materials[listener.name])
        for listener in listeners
        if listener.name in materials
    }


def context(tls: Tls, material: Material) -> ssl.SSLContext:
    """Return what OpenSSL needs; raise CertificateError that says what is wrong."""
    # OpenSSL takes a certificate from nowhere but a file. This one is in memory.
    fd = os.memfd_create("echod-certificate")
    try:
        os.pwrite(fd, material.chain.encode(), 0)
        return certificate.context(
            f"/proc/self/fd/{fd}",
            material.client_ca,
            tls.alpn,
            tls.minimum_version,
            client_required=tls.client_required,
        )
    finally:
        os.close(fd)


def say_loaded(materials: Mapping[str, Material], emit: Callable[[Event], None]) -> None:
    """Emit from when to when each listener's certificates are valid, and whether that is not now."""
    now = datetime.now(UTC)
    for name, material in materials.items():
        start, end = certificate.validity(material.chain)
        facts = {"listener": name, "not_before": start.isoformat(), "not_after": end.isoformat()}
        emit(CertificateLoaded(**facts))
        if not start <= now <= end:
            emit(CertificateDistrusted(**facts))


def _material(tls: Tls) -> Material:
    _keep_secret("key" if tls.key else "certificate", tls.key or tls.certificate)
    chain = _text("certificate", tls.certificate)
    if tls.key and tls.key != tls.certificate:
        chain += "\n" + _text("key", tls.key)
    material = Material(chain, _text("client_ca", tls.client_ca) if tls.client_ca else None)
    try:
        context(tls, material)
        certificate.validity(chain)
    except CertificateError as error:
        where = "client_ca" if "client_ca" in str(error) else "certificate"
        raise ConfigError(f"{where}: {getattr(tls, where)}: {error}") from None
    except OSError as error:
        raise StartError(f"cannot try the certificate: {error.strerror}", errno=error.errno) from None
    return material


def _keep_secret(key: str, path: str) -> None:
    try:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
    except OSError:
        return  # reading it says why
    if mode & stat.S_IRWXO:
        raise ConfigError(f"{key}: {path}: holds the private key and is open to all (mode {mode:04o}): chmod o= it")


def _text(key: str, path: str) -> str:
    try:
        return reading.content(Path(path), MOST_BYTES).decode(errors="replace")
    except ConfigError as error:
        raise ConfigError(*(f"{key}: {line}" for line in error.lines)) from None
