"""Reads the host name and the protocols out of a ClientHello.

Rule: what is not there, not complete or not well formed is no name and no protocol; OpenSSL is who judges the rest.

CPython can tell the name as well, but one that is not ASCII would be a traceback on standard error and the end of the
handshake, and a handshake that fails early would tell none. Of the protocols it tells only the one that was selected.
"""

from __future__ import annotations

from echod.config.wording import printable

LONGEST_HELLO = 16 * 1024
"""Bytes of the wire in which the name is looked for, as in nginx's ssl_preread (preread_buffer_size)."""

LONGEST_NAME = 255
"""Characters of a name that are shown: a host name has no more (RFC 1035 §2.3.4)."""

_RECORD, _MESSAGE, _NAME = b"\x16", b"\x01", b"\0"
_SERVER_NAME, _ALPN = b"\0\0", b"\0\x10"  # types of extensions (RFC 6066 §3, RFC 7301 §3.1)


def server_name(wire: bytes | bytearray) -> str | None:
    """Return the name of the server that the client asks for, short and printable."""
    content = _extension(wire, _SERVER_NAME)
    return None if content is None else _host(content)


def protocols(wire: bytes | bytearray) -> frozenset[bytes]:
    """Return the application protocols that the client offers (RFC 7301 §3.1); none for no list."""
    content = _extension(wire, _ALPN)
    if content is None:
        return frozenset()
    names, found = _split(content, 2)[0], []
    while names:
        name, names = _split(names, 1)
        found.append(bytes(name))
    return frozenset(found)


def _extension(wire: bytes | bytearray, wanted: bytes) -> memoryview | None:
    """Return the content of the first extension of the type that is wanted."""
    message = _message(memoryview(wire))
    if message[:1] != _MESSAGE:
        return None
    hello, _ = _split(memoryview(message)[1:], 3)
    rest = hello[2 + 32 :]  # version and random
    for size in (1, 2, 1):  # session id, cipher suites, compression methods
        _, rest = _split(rest, size)
    rest, _ = _split(rest, 2)
    while rest:
        kind = rest[:2]
        content, rest = _split(rest[2:], 2)
        if kind == wanted:
            return content
    return None


def _message(wire: memoryview) -> bytes:
    """Join what the records of the handshake carry (RFC 8446 §5.1)."""
    message = b""
    while wire[:1] == _RECORD:
        content, wire = _split(wire[3:], 2)
        message += content
    return message


def _host(content: memoryview) -> str | None:
    """Return the one name of the extension (RFC 6066 §3)."""
    names, _ = _split(content, 2)
    name, _ = _split(names[1:], 2)
    if names[:1] != _NAME or not name:
        return None
    return printable(bytes(name).decode("ascii", "backslashreplace"), LONGEST_NAME)


def _split(data: memoryview, size: int) -> tuple[memoryview, memoryview]:
    """Split off a vector whose length stands in its first `size` bytes; an incomplete one is empty, and ends all."""
    end = size + int.from_bytes(data[:size], "big")
    return (data[size:end], data[end:]) if len(data) >= end else (data[:0], data[:0])
