"""`[listener.proxy_protocol]`: whose connections these are, told by a proxy in front.

Rule: a listener demands the header or knows nothing of it; it is never guessed. Only from those whom the operator
trusts is a header believed: whoever may send one can claim any address.
"""

from typing import Any

from pydantic import Field, field_validator

from echod.config.fields import Deadline, Networks, Table, rule


class ProxyProtocol(Table):
    """`[listener.proxy_protocol]`."""

    enabled: bool = Field(
        default=False, description="Demand a header, of version 1 or 2, on every connection; at most 2,048 bytes."
    )
    trusted: Networks = Field(
        default=(), strict=False, description='Networks of the proxies, such as ["10.0.0.0/8"]; others are turned away.'
    )
    timeout: Deadline = Field(default=5.0, description="Ends a connection whose header is not complete by then.")

    @field_validator("trusted")
    @classmethod
    def _is_used(cls, trusted: tuple[str, ...], info: Any) -> tuple[str, ...]:
        if trusted and info.data.get("enabled") is False:
            raise rule("is for enabled = true only")
        return trusted
