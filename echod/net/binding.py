"""Binds the sockets of listeners, and takes over those that were passed to this process.

Rule: nothing here keeps state; the caller owns what is returned.

Fails: StartError from `resolve` and `bind` and ConfigError from `adopt` say which listener and why. `tune` raises
OSError as the kernel gave it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echod.errors import ConfigError, StartError
from echod.net import sockets, udp_options, unix
from echod.net.tcp import IPPROTO_MPTCP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from echod.config import address
    from echod.config.listeners import Listener

_NO_MPTCP = frozenset({errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL})
"""A kernel without Multipath TCP, with net.mptcp.enabled = 0, and one older than 5.6."""

_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "unix": socket.SOCK_STREAM}
_KINDS = {
    "tcp": {(family, socket.SOCK_STREAM) for family in sockets.FAMILIES},
    "udp": {(family, socket.SOCK_DGRAM) for family in sockets.FAMILIES},
    "unix": {(socket.AF_UNIX, socket.SOCK_STREAM)},
}
_ANY4, _ANY6 = "0.0.0.0", "::"  # noqa: S104  # what an operator asks for by "*"
_PORT_TRIES = 16
_PROBES = 3
_LONGEST_IDLE = 32767  # seconds: MAX_TCP_KEEPIDLE of the kernel
_IP_PKTINFO = 8
_IP_FREEBIND = 15  # ip(7); the socket module does not name them
_IPV6_FREEBIND = 78  # linux/in6.h
_IFA_F_TENTATIVE = 0x40  # linux/if_addr.h
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # socket(7)


@dataclass(frozen=True)
class Skipped:
    """An address of a name that this machine does not have, and the error's name."""

    address: sockets.Address
    family: int
    error: str


@dataclass(frozen=True)
class BindTarget:
    """What the names in a listener's configuration stand for."""

    addresses: tuple[tuple[int, tuple[str, int] | tuple[str, int, int, int]], ...]
    """Family and socket address of each address of a host name; empty for a Unix socket."""
    owner: tuple[int, int]
    """User and group of a Unix socket for chown(2), -1 for no change."""


def needs_name_service(listener: Listener) -> bool:
    """Tell whether `resolve` asks a name service, which may take long: for a host name, a user or a group."""
    return bool((listener.parsed and listener.parsed.is_name) or listener.owner)


def resolve(listener: Listener) -> BindTarget:
    """Return where to bind `listener`. Blocks while a name service is asked (getaddrinfo(3), getpwnam(3))."""
    wanted = listener.parsed
    if not wanted:
        return BindTarget((), unix.owner(listener))
    if wanted.is_wildcard:
        both = (socket.AF_INET, (_ANY4, wanted.port)), (socket.AF_INET6, (_ANY6, wanted.port, 0, 0))
        return BindTarget(both, (-1, -1))
    host = wanted.host.encode()  # for a str Python imports the codec `idna`, and a forked child should import nothing
    flags = socket.AI_PASSIVE | (socket.AI_NUMERICHOST if wanted.literal else 0)
    try:
        found: list[Any] = socket.getaddrinfo(host, wanted.port, type=_TYPES[listener.kind], flags=flags)
    except OSError as error:  # gaierror is one
        reason = _missing_zone(wanted) or error.strerror
        raise StartError(f'listener "{listener.name}": {wanted}: {reason}') from None
    return BindTarget(tuple(dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in found)), (-1, -1))


def bind(
    listener: Listener, target: BindTarget, fitting: Mapping[sockets.Address, socket.socket] | None = None
) -> tuple[list[socket.socket], list[Skipped]]:
    """Return a listening socket for each address of `target`, and the addresses that this machine does not have.

    A literal address must bind; a name or "*" must bind at least one. Port 0 picks one free port for all addresses.
    `fitting` holds open sockets by the addresses that they are bound to, to be used for these addresses.
    """
    for attempt in range(_PORT_TRIES):
        try:
            if listener.parsed:
                return _bind_all(listener, listener.parsed, target, fitting or {})
            return [_listening(unix.bind(listener, *target.owner), listener)], []
        except OSError as error:
            # The port that the kernel chose for the first address may be taken on the second.
            if error.errno == errno.EADDRINUSE and listener.ephemeral and attempt + 1 < _PORT_TRIES:
                continue
            reason = f'listener "{listener.name}": {listener.address}: {_why(error, listener)}'
            raise StartError(reason, errno=error.errno) from None
    raise AssertionError  # the last attempt returns or raises


def adopt(listener: Listener, inherited: list[socket.socket]) -> list[socket.socket]:
    """Return `inherited`, made like the sockets of `bind`; raise ConfigError where one is not what `listener` wants."""
    for sock in inherited:
        if (sock.family, sock.type) not in _KINDS[listener.kind]:
            kind = f"{socket.AddressFamily(sock.family).name} {socket.SocketKind(sock.type).name}"  # as in socket(2)
            raise ConfigError(
                f'listener "{listener.name}": a {kind} socket was passed for it, and it is {listener.kind}'
            )
        if sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ConfigError(f'listener "{listener.name}": a socket was passed for it that does not listen')
        try:
            tune(sock, listener)
        except OSError as error:
            raise ConfigError(
                f'listener "{listener.name}": the socket that was passed for it does not take its options: '
                f"{error.strerror}; see SocketProtocol= of the socket unit, which echod knows empty and as mptcp"
            ) from None
        sock.setblocking(False)
    return inherited


def collides(sock: socket.socket, listener: Listener, target: BindTarget) -> bool:
    """Tell whether `sock`, which is bound, keeps `listener` from binding an address of `target`."""
    if (sock.family, sock.type) not in _KINDS[listener.kind]:
        return False
    if not listener.parsed:
        return unix.text(sock.getsockname()) == listener.address
    takes_both = sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    host, port = sock.getsockname()[:2]
    return any(
        port == other_port and (host == other or {host, other} & {_ANY4, _ANY6})
        for family, (other, other_port, *_) in target.addresses
        if family == sock.family or takes_both or (family == socket.AF_INET6 and not listener.ipv6_only)
    )


def tune(sock: socket.socket, listener: Listener) -> None:
    """Set what can be set at any time; accepted sockets inherit it."""
    if sock.family in sockets.FAMILIES:
        _mark(sock, listener)
    if sock.type == socket.SOCK_DGRAM:
        return
    if sock.proto != IPPROTO_MPTCP:  # which has no urgent data; its clients without multipath have: see `listener`
        # Urgent data is data: out of line, one byte of it would be lost.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    if sock.family not in sockets.FAMILIES:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, listener.nodelay)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, bool(listener.keepalive))
    if listener.keepalive:
        between = max(1, round(listener.keepalive / _PROBES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, min(round(listener.keepalive), _LONGEST_IDLE)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, min(between, _LONGEST_IDLE))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def _mark(sock: socket.socket, listener: Listener) -> None:
    datagrams = sock.type == socket.SOCK_DGRAM  # which tell the address that they were sent to
    if sock.family == socket.AF_INET6 and sock.proto != IPPROTO_MPTCP:  # which knows IP_TOS alone, for both families
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, listener.tos)
    if datagrams and sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    elif datagrams:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, listener.tos)  # for what an IPv6 socket sends as IPv4 too
    if datagrams:
        udp_options.set_path_mtu_discovery(sock, listener.udp.path_mtu_discovery)


def _bind_all(
    listener: Listener, wanted: address.Address, target: BindTarget, fitting: Mapping[sockets.Address, socket.socket]
) -> tuple[list[socket.socket], list[Skipped]]:
    skipped: list[Skipped] = []
    port = wanted.port
    with ExitStack() as undo:
        bound: list[socket.socket] = []
        for family, (host, _, *rest) in target.addresses:
            sockaddr = (host, port, *rest)
            if sockaddr in fitting:
                bound.append(fitting[sockaddr])
                continue
            try:
                sock = undo.enter_context(_listen(listener, family, sockaddr))
            except OSError as error:
                if wanted.literal or error.errno not in _NOT_HERE:
                    raise
                skipped.append(Skipped(sockaddr, family, sockets.error_name(error)))
                continue
            port = sock.getsockname()[1]
            bound.append(sock)
        if not bound:
            code = getattr(errno, skipped[-1].error)
            raise OSError(code, os.strerror(code))
        undo.pop_all()
    return bound, skipped


def _listen(listener: Listener, family: int, sockaddr: tuple[Any, ...]) -> socket.socket:
    sock = _socket(listener, family)
    try:
        # Connections of the last run in TIME_WAIT must not prevent a start; a listening socket still does. With UDP it
        # would let a second daemon take half of the datagrams.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, listener.kind == "tcp")
        if family == socket.AF_INET6:
            # By default 0.0.0.0 and [::] are two listeners, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, listener.ipv6_only)
        if listener.interface:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, listener.interface.encode())
        if listener.free_bind and family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        elif listener.free_bind:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind(sockaddr)
    except OSError:
        sock.close()
        raise
    return _listening(sock, listener)


def _socket(listener: Listener, family: int) -> socket.socket:
    if listener.mptcp:
        try:
            return socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP)
        except OSError as error:
            if error.errno not in _NO_MPTCP:
                raise
    return socket.socket(family, _TYPES[listener.kind])


def _listening(sock: socket.socket, listener: Listener) -> socket.socket:
    try:
        # The buffers before the first connect: a window is scaled by what there is then (tcp(7)).
        _set_buffer(sock, listener.receive_buffer, socket.SO_RCVBUF, _SO_RCVBUFFORCE)
        _set_buffer(sock, listener.send_buffer, socket.SO_SNDBUF, _SO_SNDBUFFORCE)
        tune(sock, listener)
        sock.setblocking(False)
        if sock.type == socket.SOCK_STREAM:
            sock.listen(listener.backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _set_buffer(sock: socket.socket, size: int, option: int, force: int) -> None:
    """Set the size of a buffer, 0 for the kernel's choice; above its limit where CAP_NET_ADMIN allows (socket(7))."""
    if not size:
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, size)  # the kernel clamps it, and says nothing


def _missing_zone(wanted: address.Address) -> str:
    """Return what is wrong with the interface that the zone of a link-local address names, "" for nothing."""
    zone = wanted.host.partition("%")[2]
    try:
        if zone and not zone.isdigit():
            socket.if_nametoindex(zone)
    except OSError:
        return f'there is no interface "{zone}"; make it first, since not even free_bind can do without its index'
    return ""


def _is_tentative(wanted: address.Address) -> bool:
    """Tell whether the kernel has not yet found an IPv6 address to be no duplicate (RFC 4862 §5.4)."""
    if not isinstance(wanted.ip, ipaddress.IPv6Address):
        return False
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()  # address, index, length, scope, flags, name
    except OSError:
        return False
    return any(
        address == wanted.ip.packed.hex() and int(flags, 16) & _IFA_F_TENTATIVE
        for address, _, _, _, flags, _ in map(str.split, lines)
    )


def _why(error: OSError, listener: Listener) -> str:
    find = f"ss -l{listener.kind[0]}np 'sport = :{listener.parsed.port}'" if listener.parsed else "ss -lxp"
    hints = {
        errno.EADDRINUSE: f"see who has it: {find}",
        errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE" if listener.parsed else "",
        errno.EADDRNOTAVAIL: (
            "it is tentative: duplicate address detection has not finished; try again, or set free_bind = true"
            if listener.parsed and _is_tentative(listener.parsed)
            else "no interface of this machine has it"
        ),
        errno.EAFNOSUPPORT: (
            "this machine has no such addresses, or RestrictAddressFamilies= keeps them from this service: then a "
            f"socket unit must pass the socket, with FileDescriptorName={listener.name}"
        ),
        errno.ENODEV: f'interface = "{listener.interface}"',
        errno.EPERM: "interface needs CAP_NET_RAW here" if listener.interface else "",
    }
    hint = hints.get(error.errno or 0)
    return f"{error.strerror or error} ({hint})" if hint else str(error.strerror or error)
