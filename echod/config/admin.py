"""`[admin]`: where echod answers those who look after it, and not those who test with it.

Rule: the admin listener is a listener like others, under a name that no other may have; it never serves echo.
"""

from pydantic import Field, field_validator

from echod.config.address import parse_address, parse_path
from echod.config.fields import Table
from echod.config.listeners import ADMIN, Listener


def _is_path(address: str) -> bool:
    return address.startswith(("/", "@"))


class Admin(Table):
    """`[admin]`: metrics and health, over HTTP."""

    address: str = Field(
        default="",
        description='HOST:PORT or a path for /metrics, /livez and /readyz over HTTP; "" for none. Keep it private.',
    )

    @field_validator("address")
    @classmethod
    def _canonical(cls, address: str) -> str:
        if not address:
            return ""
        return parse_path(address) if _is_path(address) else str(parse_address(address))

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The one listener, or none."""
        if not self.address:
            return ()
        return (Listener(name=ADMIN, kind="unix" if _is_path(self.address) else "tcp", address=self.address),)
