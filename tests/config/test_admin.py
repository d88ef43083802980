"""`[admin]`: an address of either kind, or none, and never one of echo's."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from echod.config.admin import Admin
from echod.config.listeners import ADMIN, Listener
from echod.config.models import Config
from echod.config.plan import plan


@pytest.mark.parametrize(
    ("address", "kind", "canonical"),
    [
        ("localhost:10001", "tcp", "localhost:10001"),
        ("[::0001]:10001", "tcp", "[::1]:10001"),
        ("/run/echod/admin.sock", "unix", "/run/echod/admin.sock"),
        ("@echod-admin", "unix", "@echod-admin"),
    ],
)
def test_an_address_makes_one_listener(address: str, kind: str, canonical: str) -> None:
    """The address says which kind it is, and is spelt in one way."""
    (listener,) = Admin(address=address).listeners

    assert (ADMIN, kind, canonical) == (listener.name, listener.kind, listener.address)


def test_no_address_makes_none() -> None:
    """By default nobody listens."""
    assert () == Admin().listeners
    assert Config().doors == Config().listener


def test_it_is_never_an_echo_listener() -> None:
    """Neither the address nor the name can be shared, not even with every address of the machine."""
    everywhere = Listener(address="0.0.0.0:7")

    with pytest.raises(ValidationError, match="overlaps with"):
        Config(listener=(everywhere,), admin=Admin(address="127.0.0.1:7"))
    with pytest.raises(ValidationError, match="is the name of the listener of"):
        Config(listener=(Listener(name=ADMIN),))


def test_a_socket_of_echo_never_becomes_the_admin_socket() -> None:
    """A reload that gives echo's address to `[admin]` binds it anew: a client that waits there is not given HTTP."""
    old = Config(listener=(Listener(address="127.0.0.1:7"),))
    new = Config(listener=(Listener(address="127.0.0.1:8"),), admin=Admin(address="127.0.0.1:7"))
    changes = plan(old, new, ())

    assert ["echo", ADMIN] == [listener.name for listener in changes.bind]
    assert old.listener == changes.release
