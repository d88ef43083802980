"""Options of UDP sockets that the socket module does not name.

The numbers are those of asm-generic/socket.h; PA-RISC and SPARC have others.
"""

from __future__ import annotations

import socket
import struct

_IP_MTU_DISCOVER = 10  # ip(7)
_IPV6_MTU_DISCOVER, _IPV6_MTU = 23, 24  # ipv6(7)
_PATH_MTU_DISCOVERY = {"dont": 0, "want": 1, "do": 2, "probe": 3}  # IP_PMTUDISC_*, and IPV6_PMTUDISC_* likewise
_IPV6_MINIMUM_MTU = 1280  # bytes that every link carries (RFC 8200 §5)
_SO_MEMINFO = 55  # asm-generic/socket.h, since Linux 4.12
_MEMINFO = struct.Struct("=32x I")  # SK_MEMINFO_DROPS, the last of nine numbers in linux/sock_diag.h


def drops(sock: socket.socket) -> int | None:
    """Return how many datagrams for `sock` the kernel has dropped, modulo 2**32; None where it does not tell.

    The receive buffer was full, nearly always. A wrong checksum and a socket filter count as well.
    """
    try:
        info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return None
    return int(_MEMINFO.unpack(info)[0]) if len(info) == _MEMINFO.size else None


def set_path_mtu_discovery(sock: socket.socket, word: str) -> None:
    """Let the kernel fragment what is sent from `sock`, or not, by one of the words of ping(8) -M.

    Known limit: an IPv6 packet that fits the MTU of its route leaves whole. Linux then asks for no smaller fragments,
    and of the first one that is too long for a link further on only an ICMP error comes back.
    """
    mode = _PATH_MTU_DISCOVERY[word]
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, mode)  # for what an IPv6 socket sends as IPv4 too
    if sock.family == socket.AF_INET6:
        # No router fragments IPv6: what is to pass without discovery must leave in fragments that pass everywhere.
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, mode)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU, _IPV6_MINIMUM_MTU if word == "dont" else 0)
