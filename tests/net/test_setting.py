"""What is shared is shared: a reload reaches those who are open already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from echod.core.access import Networks

if TYPE_CHECKING:
    from tests.net.conftest import Rig


def test_a_change_reaches_who_is_open(rig: Rig) -> None:
    """Whose connections are written is asked when they end, not remembered from when they came."""
    client, stream = rig.pair()
    rig.setting.verbose = True
    client.send(b"hello")
    rig.fetch(client, 5)
    rig.setting.quiet = Networks(["127.0.0.0/8"])

    assert ["connection.opened", "connection.received", "connection.sent"] == [event.name for event in rig.recorded]
    assert stream.caller.host in rig.setting.quiet
