"""What the kernel knows of a TCP connection's path: asked once, when the connection ends.

Rule: one getsockopt, in the layout of `struct tcp_info` in linux/tcp.h, which only ever grows at its end. What the
kernel has not measured is left out, and so is everything where it tells less than is asked for.
"""

from __future__ import annotations

import socket
from struct import Struct
from typing import Any

IPPROTO_MPTCP = 262
"""Multipath TCP, linux/in.h. The socket module lacks it where Python was built with older headers."""

_SOL_MPTCP = 284  # linux/socket.h
_MPTCP_INFO = 1  # linux/mptcp.h

_INFO = Struct("=16x I 40x I 4x II 24x I 44x I 8x Q")
"""tcpi_snd_mss, _pmtu, _rtt, _rttvar, _total_retrans, _min_rtt, _delivery_rate; the last one came with Linux 4.9."""

_UNMEASURED = 0xFFFF_FFFF
"""What tcpi_min_rtt is until there was a round trip."""

_MICROSECONDS = 1_000_000


def path(sock: socket.socket) -> dict[str, Any]:
    """Return what the closing record of `sock` says of its path; nothing where the kernel does not tell."""
    # Python takes the protocol of an accepted socket from its listener.
    return _path(sock) | ({"mptcp": _is_mptcp(sock)} if sock.proto == IPPROTO_MPTCP else {})


def _is_mptcp(sock: socket.socket) -> bool:
    """Tell whether both ends of an accepted socket speak Multipath TCP; the client may have fallen back to TCP."""
    try:
        sock.getsockopt(_SOL_MPTCP, _MPTCP_INFO, 1)
    except OSError:
        return False
    return True


def _path(sock: socket.socket) -> dict[str, Any]:
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:
        return {}
    if len(info) < _INFO.size:
        return {}
    mss, mtu, rtt, rttvar, retransmits, min_rtt, rate = _INFO.unpack(info)
    return {
        "rtt": rtt / _MICROSECONDS if rtt else None,
        "rttvar": rttvar / _MICROSECONDS if rtt else None,
        "min_rtt": min_rtt / _MICROSECONDS if min_rtt != _UNMEASURED else None,
        "retransmits": retransmits,
        "mss": mss,
        "path_mtu": mtu or None,
        "delivery_rate": rate or None,
    }
