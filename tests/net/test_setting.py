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


def test_views_of_small_messages_are_made_once(rig: Rig) -> None:
    """A view is of the right length whatever came before, and only those of small messages stay."""
    views, buffer = rig.setting.views, rig.setting.buffer
    buffer[:3] = b"abc"

    assert [b"abc", b"a", b"abc", bytes(buffer)] == [bytes(views[count]) for count in (3, 1, 3, len(buffer))]
    assert {1, 3} == views.keys()
