"""What is shared is shared: a reload reaches those who are open already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from echod.core.access import Networks
from echod.net.setting import SMALL

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


def test_views_of_small_messages_are_ready(rig: Rig) -> None:
    """There is a view of each number of bytes that counts as small, from the beginning of the buffer."""
    views, buffer = rig.setting.views, rig.setting.buffer
    buffer[:3] = b"abc"

    assert list(range(SMALL + 1)) == [len(view) for view in views]
    assert [b"", b"a", b"ab", b"abc"] == [bytes(view) for view in views[:4]]
