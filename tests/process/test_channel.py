"""The channel: whole messages, descriptors beside them, and an end that is noticed."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from echod.config.models import Config, Daemon
from echod.process import channel
from echod.process.certificates import Material

MESSAGES: list[channel.Message] = [
    channel.Assign(3, ("one", "two")),
    channel.Assign(4, ()),
    channel.Ping(),
    channel.Drain(2.5),
    channel.Stop(),
    channel.Reopen(),
    channel.Answer(3),
    channel.Pong(),
    channel.Missed(),
    channel.Released(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: channel.Message) -> None:
    """Every kind of message comes out equal to what went in, one at a time and in order."""
    ours, theirs = channel.pair()
    ours.send(message)
    ours.send(channel.Ping())

    assert channel.Received(message) == theirs.receive()
    assert channel.Received(channel.Ping()) == theirs.receive()
    ours.close()
    theirs.close()


def test_descriptors_are_duplicated_and_close_on_exec() -> None:
    """The receiver owns copies of its own, which no program that it might execute inherits."""
    ours, theirs = channel.pair()
    reader, writer = os.pipe()
    ours.send(channel.Reopen(), [reader, writer])
    os.close(reader)
    os.close(writer)
    received = theirs.receive()

    assert received
    reader, writer = received.descriptors
    os.write(writer, b"through")
    through, inheritable = os.read(reader, 10), [os.get_inheritable(fd) for fd in received.descriptors]
    for fd in received.descriptors:
        os.close(fd)
    ours.close()
    theirs.close()

    assert b"through" == through
    assert [False, False] == inheritable


def test_the_most_descriptors_arrive() -> None:
    """As many descriptors as a configuration may ever need fit one message."""
    ours, theirs = channel.pair()
    with socket.socket() as sock:
        ours.send(channel.Assign(1, ()), [sock.fileno()] * channel.MOST_DESCRIPTORS)
    received = theirs.receive()

    assert received
    assert channel.MOST_DESCRIPTORS == len(set(received.descriptors))
    for fd in received.descriptors:
        os.close(fd)
    ours.close()
    theirs.close()


def test_descriptors_that_find_no_place_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of which only some descriptors could be taken arrives without any, says so, and leaves none open."""
    ours, theirs = channel.pair()
    copy = os.dup(0)
    monkeypatch.setattr(socket, "recv_fds", lambda *_: (b'["Reopen",{}]', [copy], socket.MSG_CTRUNC, None))

    assert channel.Received(channel.Reopen(), [], whole=False) == theirs.receive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(copy)
    ours.close()
    theirs.close()


def test_memory_that_is_short_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel cannot hand over just now is there to be read later."""
    ours, theirs = channel.pair()
    ours.send(channel.Ping())

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(socket, "recv_fds", fail)
        with pytest.raises(BlockingIOError):
            theirs.receive()

    assert channel.Received(channel.Ping()) == theirs.receive()
    ours.close()
    theirs.close()


def test_nothing_to_receive_is_not_the_end() -> None:
    """An empty channel raises BlockingIOError; one whose other end is gone returns None, to either side."""
    ours, theirs = channel.pair()
    with pytest.raises(BlockingIOError):
        theirs.receive()
    ours.close()

    assert theirs.receive() is None
    with pytest.raises(BrokenPipeError):
        theirs.send(channel.Pong())
    theirs.close()


def test_an_end_with_unread_messages_is_an_end() -> None:
    """A process that dies without reading resets the channel, which is no exception but the end."""
    ours, theirs = channel.pair()
    theirs.send(channel.Pong())
    theirs.send(channel.Pong())
    ours.close()

    assert theirs.receive() is None
    theirs.close()


def _repeat(end: channel.Channel, message: channel.Message, count: int) -> None:
    for _ in range(count):
        end.send(message)


def test_a_full_channel_never_blocks() -> None:
    """Whoever does not read makes the sender fail, not wait."""
    ours, theirs = channel.pair()
    with pytest.raises(BlockingIOError):
        _repeat(ours, channel.Ping(), 100_000)
    ours.close()
    theirs.close()


def test_the_configuration_travels_as_a_memfd() -> None:
    """Several readers of one memfd get the same configuration, whatever its file offset; each closes its copy."""
    config = Config(daemon=Daemon(workers=7, drain_timeout="3s"))  # type: ignore[arg-type]
    materials = {"echo": Material("the chain", None)}
    fd = channel.to_memfd(config, materials)
    copies = [os.dup(fd), os.dup(fd)]

    assert [(config, materials)] * 2 == [channel.from_memfd(copy) for copy in copies]
    for copy in copies:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(copy)
    os.close(fd)
