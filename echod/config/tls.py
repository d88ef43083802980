"""`[listener.tls]`: speak TLS on a listener, and with what certificate.

Rule: only what a file says is checked here; that the certificates and the key can be read and belong together is proven
by `process.certificates`, at the start and at each reload.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from echod.config.fields import Deadline, OptionalPath, Table, at_most, rule

MOST_PROTOCOLS = 16


def _protocol(name: str) -> str:
    if not re.fullmatch(r"[!-~]{1,255}", name):
        raise ValueError("must be 1 to 255 printable ASCII characters")
    return name


class Tls(Table):
    """`[listener.tls]`."""

    enabled: bool = Field(
        default=False, description="Speak TLS, after the header of the PROXY protocol where there is one."
    )
    certificate: OptionalPath = Field(
        default="",
        validate_default=True,
        description="File with the server's certificate and those that lead from it to a root, in PEM.",
    )
    key: OptionalPath = Field(
        default="", description='File with the private key, not readable to all; "" if it is with the certificate.'
    )
    client_ca: OptionalPath = Field(
        default="", description='File with the authorities whose clients are let in, in PEM; "" asks no client.'
    )
    client_required: bool = Field(
        default=True, description="With client_ca, turn away clients without a certificate; false makes it optional."
    )
    alpn: Annotated[tuple[Annotated[str, AfterValidator(_protocol)], ...], at_most(MOST_PROTOCOLS)] = Field(
        default=(),
        strict=False,
        description="Protocols to agree on (ALPN), the best first; a client that offers only others is refused.",
    )
    minimum_version: Literal["1.2", "1.3"] = Field(default="1.2", description="Refuse clients that speak less.")
    timeout: Deadline = Field(default=10.0, description="Ends a connection whose handshake is not complete by then.")

    @field_validator("certificate")
    @classmethod
    def _is_there(cls, certificate: str, info: Any) -> str:
        if info.data.get("enabled") and not certificate:
            raise rule("must name a file where enabled = true")
        return certificate

    @field_validator("certificate", "key", "client_ca")
    @classmethod
    def _is_used(cls, path: str, info: Any) -> str:
        if path and info.data.get("enabled") is False:
            raise rule("is for enabled = true only")
        return path
