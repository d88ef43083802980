"""Binding: which sockets a listener gets, with which options, and what is said when it cannot have them."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.config import listeners as models
from echod.errors import ConfigError, StartError
from echod.net import binding
from echod.net.binding import Skipped
from echod.net.tcp import IPPROTO_MPTCP
from tests.net.binding import bind_resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

V4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
FOREIGN = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.77", 0))
FOREIGN_V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::77", 0, 0, 0))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what is entered, and hold that no descriptor is left over."""
    before = descriptors()
    with ExitStack() as entered:
        yield entered

    assert before == descriptors()


def descriptors() -> set[str]:
    """Return the numbers of all open descriptors, but for the one that reads them."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


@pytest.fixture
def bind(stack: ExitStack) -> Callable[[str], tuple[list[socket.socket], list[Skipped]]]:
    """Bind an address and close in the end what came of it."""

    def make(address: str) -> tuple[list[socket.socket], list[Skipped]]:
        bound, skipped = bind_resolved(models.Listener(address=address))
        for sock in bound:
            stack.enter_context(sock)
        return bound, skipped

    return make


def resolves_to(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
    """Let every name resolve to `answers`."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: list(answers))


def fails_to_bind(monkeypatch: pytest.MonkeyPatch, *codes: int) -> list[Any]:
    """Let the calls of bind fail with `codes`, 0 for not at all, in turn and for ever; return what is bound."""
    original = socket.socket.bind
    tried: list[Any] = []

    def bind(self: socket.socket, address: Any) -> None:
        code = codes[len(tried) % len(codes)]
        tried.append(address)
        if code:
            raise OSError(code, os.strerror(code))
        original(self, address)

    monkeypatch.setattr(socket.socket, "bind", bind)
    return tried


# -- bind -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "family", "host"),
    [
        ("127.0.0.1:0", socket.AF_INET, "127.0.0.1"),
        ("[::1]:0", socket.AF_INET6, "::1"),
        ("0.0.0.0:0", socket.AF_INET, "0.0.0.0"),
        ("[::]:0", socket.AF_INET6, "::"),
    ],
)
def test_bind_a_literal(bind: Any, address: str, family: int, host: str) -> None:
    """A literal address gives one listening, non-blocking socket that no other program inherits."""
    [sock], skipped = bind(address)

    assert (family, host, []) == (sock.family, sock.getsockname()[0], skipped)
    assert (0, False) == (sock.gettimeout(), sock.get_inheritable())

    with socket.create_connection((host, sock.getsockname()[1])) as client:
        assert sock.accept()[0].close() is None
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("level", "option"),
    [
        (socket.SOL_SOCKET, socket.SO_REUSEADDR),
        (socket.SOL_SOCKET, socket.SO_OOBINLINE),
        (socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_options_of_a_listening_socket(bind: Any, address: str, level: int, option: int) -> None:
    """What accepted sockets inherit is set on the one that listens."""
    [sock], _ = bind(address)

    assert sock.getsockopt(level, option)


def test_an_accepted_socket_takes_urgent_data_inline(bind: Any, stack: ExitStack) -> None:
    """Accepted sockets do inherit it: an urgent byte stands in the stream."""
    [sock], _ = bind("127.0.0.1:0")
    client = stack.enter_context(socket.create_connection(sock.getsockname()))
    sock.setblocking(True)
    server = stack.enter_context(sock.accept()[0])
    for content, flags in ((b"ab", 0), (b"X", socket.MSG_OOB), (b"cd", 0)):
        client.send(content, flags)
    client.shutdown(socket.SHUT_WR)
    got = b""
    while chunk := server.recv(10):
        got += chunk

    assert b"abXcd" == got


def test_no_reuseport(bind: Any) -> None:
    """A second instance must not share the port unnoticed."""
    [sock], _ = bind("127.0.0.1:0")

    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


def test_both_families_on_one_port(bind: Any) -> None:
    """0.0.0.0 and [::] are two listeners, whatever the machine thinks of dual stack."""
    [first], _ = bind("0.0.0.0:0")
    port = first.getsockname()[1]
    [second], _ = bind(f"[::]:{port}")

    assert (port, 1) == (second.getsockname()[1], second.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))


def test_a_name_binds_all_its_addresses(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name stands for each of its addresses, once; port 0 picks one port for all of them."""
    resolves_to(monkeypatch, V4, V6, V4)
    bound, skipped = bind("localhost:0")

    assert ["127.0.0.1", "::1"] == [sock.getsockname()[0] for sock in bound]
    assert (1, []) == (len({sock.getsockname()[1] for sock in bound}), skipped)


def test_a_name_with_a_port(bind: Any) -> None:
    """A name that this machine's resolver knows binds at the port that is asked for."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bound, _ = bind(f"localhost:{port}")

    assert {port} == {sock.getsockname()[1] for sock in bound}


@pytest.mark.parametrize(
    ("answers", "skipped"),
    [
        ([FOREIGN, V4], [Skipped(("203.0.113.77", 0), socket.AF_INET, "EADDRNOTAVAIL")]),
        ([FOREIGN_V6, V4], [Skipped(("2001:db8::77", 0, 0, 0), socket.AF_INET6, "EADDRNOTAVAIL")]),
    ],
)
def test_addresses_of_a_name_that_are_elsewhere(
    bind: Any, monkeypatch: pytest.MonkeyPatch, answers: list[Any], skipped: list[Skipped]
) -> None:
    """Of a name's addresses those that this machine does not have are left out, and reported."""
    resolves_to(monkeypatch, *answers)
    bound, found = bind("somewhere.test:0")

    assert (["127.0.0.1"], skipped) == ([sock.getsockname()[0] for sock in bound], found)


def test_a_skipped_address_is_told_with_the_port(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is skipped after another was bound is reported with the port that it would have had."""
    resolves_to(monkeypatch, V4, FOREIGN)
    [sock], [skipped] = bind("somewhere.test:0")

    assert ("203.0.113.77", sock.getsockname()[1]) == skipped.address


def test_a_family_that_the_kernel_lacks_is_skipped(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is an address of a family that is switched off."""
    original = socket.socket

    def make(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return original(family, kind)

    resolves_to(monkeypatch, V6, V4)
    monkeypatch.setattr(socket, "socket", make)
    bound, skipped = bind("localhost:0")

    assert (1, [Skipped(("::1", 0, 0, 0), socket.AF_INET6, "EAFNOSUPPORT")]) == (len(bound), skipped)


def test_wildcard_binds_each_family_on_one_port(bind: Any) -> None:
    """Each family has a socket for "*"; neither takes clients of the other."""
    (four, six), skipped = bind("*:0")

    assert skipped == []
    assert four.getsockname()[0] == "0.0.0.0"
    assert six.getsockname()[0] == "::"
    assert four.getsockname()[1] == six.getsockname()[1]
    assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@pytest.mark.parametrize("missing", [socket.AF_INET, socket.AF_INET6])
def test_wildcard_skips_a_family_that_the_machine_lacks(
    bind: Any, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """The other family is bound."""
    original = socket.socket

    def make(family: int, kind: int) -> socket.socket:
        if family == missing:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return original(family, kind)

    monkeypatch.setattr(socket, "socket", make)
    (sock,), (skipped,) = bind("*:0")

    assert sock.family != missing
    assert skipped.family == missing
    assert skipped.error == "EAFNOSUPPORT"


def test_port_0_is_tried_anew_when_the_second_address_lacks_it(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port that the kernel picks for the first address may be taken on the second: another is picked."""
    resolves_to(monkeypatch, V4, V6)
    tried = fails_to_bind(monkeypatch, 0, errno.EADDRINUSE, 0, 0)
    bound, _ = bind("localhost:0")

    assert ["127.0.0.1", "::1"] == [sock.getsockname()[0] for sock in bound]
    assert (4, 0) == (len(tried), tried[2][1])


# -- options ----------------------------------------------------------------------------------------------------------


OPTIONS = [
    ("nodelay", False, socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
    ("nodelay", True, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ("keepalive", "0s", socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0),
    ("keepalive", "30s", socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ("keepalive", "30s", socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    ("keepalive", "30s", socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    ("keepalive", "30s", socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    ("keepalive", "500ms", socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    ("keepalive", "1000h", socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 32767),
    ("receive_buffer", "64KiB", socket.SOL_SOCKET, socket.SO_RCVBUF, 131072),  # socket(7): the kernel doubles it
    ("send_buffer", "64KiB", socket.SOL_SOCKET, socket.SO_SNDBUF, 131072),
    ("tos", 184, socket.IPPROTO_IP, socket.IP_TOS, 184),
]


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: f"{case[0]}-{case[1]}-{case[3]}")
def test_options_reach_accepted_sockets(stack: ExitStack, case: tuple[str, Any, int, int, int]) -> None:
    """Each key sets its option, and a client that comes in has it too."""
    key, value, level, option, expected = case
    ([door], []) = bind_resolved(models.Listener.model_validate({"address": "127.0.0.1:0", key: value}))
    stack.enter_context(door)
    stack.enter_context(socket.create_connection(door.getsockname()))
    inside = stack.enter_context(door.accept()[0])

    assert expected == door.getsockopt(level, option)
    assert expected == inside.getsockopt(level, option)


def test_an_ipv6_address_may_take_ipv4_too(stack: ExitStack) -> None:
    """Only where that was asked for; the traffic class is that of IPv6, and what goes out as IPv4 is marked too."""
    for both in (False, True):
        ([door], []) = bind_resolved(models.Listener(address="[::]:0", ipv6_only=not both, tos=8))
        stack.enter_context(door)
        client = stack.enter_context(socket.socket())

        assert both is (client.connect_ex(("127.0.0.1", door.getsockname()[1])) == 0)
        assert 8 == door.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        assert 8 == door.getsockopt(socket.IPPROTO_IP, socket.IP_TOS)


@pytest.mark.parametrize("address", ["192.0.2.77:0", "[2001:db8::77]:0"])
def test_an_address_that_is_not_here_yet(stack: ExitStack, address: str) -> None:
    """It binds where that was asked for, and not else."""
    with pytest.raises(StartError, match="no interface of this machine has it"):
        bind_resolved(models.Listener(address=address))
    ([door], []) = bind_resolved(models.Listener(address=address, free_bind=True))
    stack.enter_context(door)

    assert door.getsockname()[0] == address.rpartition(":")[0].strip("[]")


def test_an_interface(stack: ExitStack) -> None:
    """A door for one interface only knows which one it is."""
    ([door], []) = bind_resolved(models.Listener(address="127.0.0.1:0", interface="lo"))
    stack.enter_context(door)

    assert b"lo\0" == door.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)


def test_an_interface_that_is_not_there() -> None:
    """It is named with its key."""
    with pytest.raises(StartError, match=r'No such device \(interface = "nowhere0"\)$'):
        bind_resolved(models.Listener(address="127.0.0.1:0", interface="nowhere0"))


def test_tuning_changes_a_socket_that_listens(stack: ExitStack) -> None:
    """What a reload may change is changed for those who come from then on, and back."""
    ([door], []) = bind_resolved(models.Listener(address="127.0.0.1:0"))
    stack.enter_context(door)
    binding.tune(door, models.Listener.model_validate({"nodelay": False, "keepalive": "9s", "tos": 16}))
    assert (0, 1, 9, 16) == tuned(door)
    binding.tune(door, models.Listener())

    assert (1, 0, 0) == (tuned(door)[0], tuned(door)[1], tuned(door)[3])


def tuned(sock: socket.socket) -> tuple[int, ...]:
    """Return what `tune` has set."""
    options = (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        (socket.IPPROTO_IP, socket.IP_TOS),
    )
    return tuple(sock.getsockopt(*option) for option in options)


# -- what is said -----------------------------------------------------------------------------------------------------


def reason(address: str) -> str:
    """Return why `address` cannot be bound."""
    with pytest.raises(StartError) as caught:
        bind_resolved(models.Listener(name="door", address=address))
    [line] = caught.value.lines
    return line


@pytest.mark.parametrize("address", ["127.0.0.1:7", "somewhere.test:7"])
def test_a_family_that_is_forbidden(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A sandbox that allows no such sockets is named, with the way to pass one."""

    def make(family: int, kind: int) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    resolves_to(monkeypatch, V4)
    monkeypatch.setattr(socket, "socket", make)

    assert (
        f'listener "door": {address}: Address family not supported by protocol (this machine has no such addresses, '
        "or RestrictAddressFamilies= keeps them from this service: then a socket unit must pass the socket, "
        "with FileDescriptorName=door)"
    ) == reason(address)


def test_in_use(stack: ExitStack) -> None:
    """A port that somebody has is refused with the command that tells who."""
    holder = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = holder.getsockname()[1]

    assert (
        f"listener \"door\": 127.0.0.1:{port}: Address already in use (see who has it: ss -ltnp 'sport = :{port}')"
        == reason(f"127.0.0.1:{port}")
    )


def test_in_use_on_one_of_a_names_addresses(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a port must get that port on every address that this machine has; nothing stays bound if not."""
    holder = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
    port = holder.getsockname()[1]
    resolves_to(monkeypatch, V4, V6)

    assert "Address already in use" in reason(f"localhost:{port}")


def test_permission(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that needs rights is refused with what they are called."""
    fails_to_bind(monkeypatch, errno.EACCES)

    assert (
        'listener "door": 127.0.0.1:7: Permission denied (ports below 1024 need root or CAP_NET_BIND_SERVICE)'
        == reason("127.0.0.1:7")
    )


@pytest.mark.parametrize("address", ["203.0.113.77:0", "[2001:db8::77]:0"])
def test_not_here(stack: ExitStack, address: str) -> None:
    """A literal address that this machine does not have is refused."""
    assert (
        f'listener "door": {address}: Cannot assign requested address (no interface of this machine has it)'
        == reason(address)
    )


def test_a_name_that_is_altogether_elsewhere(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a name none of whose addresses is here."""
    resolves_to(monkeypatch, FOREIGN, FOREIGN_V6)

    assert (
        'listener "door": away.test:7007: Cannot assign requested address (no interface of this machine has it)'
        == reason("away.test:7007")
    )


def test_other_errors_in_the_kernels_words(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else is said as the kernel says it, and no socket is left over."""
    fails_to_bind(monkeypatch, errno.ENOBUFS)

    assert 'listener "door": 127.0.0.1:0: No buffer space available' == reason("127.0.0.1:0")


def test_a_name_that_nobody_knows(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve is refused in the resolver's words."""

    def fail(*args: Any, **options: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    assert 'listener "door": nowhere.invalid:7: Name or service not known' == reason("nowhere.invalid:7")


def test_port_0_gives_up_in_the_end(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no port is free on all addresses, sixteen tries are enough."""
    resolves_to(monkeypatch, V4, V6)
    tried = fails_to_bind(monkeypatch, 0, errno.EADDRINUSE)

    assert "Address already in use" in reason("localhost:0")
    assert 32 == len(tried)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_inherited_mptcp_socket_takes_the_options_that_it_has(family: int, host: str) -> None:
    """A socket of a unit with SocketProtocol=mptcp works; what multipath TCP does not know is left out."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM, 262)
    except OSError as error:
        pytest.skip(f"this kernel has no multipath TCP: {error}")
    with sock:
        sock.bind((host, 0))
        sock.listen()
        listener = models.Listener.model_validate({"keepalive": "9s", "tos": 16})
        assert [sock] == binding.adopt(listener, [sock])
        assert (16, 9) == (
            sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        )


@pytest.mark.parametrize("number", [errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL])
def test_mptcp_falls_back_to_tcp(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A kernel that has none makes a TCP socket; any other error is one."""
    original = socket.socket

    def make(family: int, kind: int, protocol: int = 0) -> socket.socket:
        if protocol == IPPROTO_MPTCP:
            raise OSError(number, os.strerror(number))
        return original(family, kind, protocol)

    monkeypatch.setattr(socket, "socket", make)
    listener = models.Listener(address="127.0.0.1:0", mptcp=True)
    [sock], _ = bind_resolved(listener)
    stack.enter_context(sock)

    assert sock.proto != IPPROTO_MPTCP
    number = errno.EMFILE
    with pytest.raises(StartError):
        bind_resolved(listener)


def test_inherited_socket_that_takes_no_options_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an inherited socket refuses, the error names the listener and the key of the socket unit."""

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(binding, "tune", refuse)
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(ConfigError) as refused:
        binding.adopt(models.Listener(), [sock])

    assert 'listener "echo": the socket that was passed' in str(refused.value)
    assert "Operation not supported; see SocketProtocol= of the socket unit" in str(refused.value)
