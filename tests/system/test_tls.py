"""TLS as clients speak it: openssl(1), Python's, HAProxy in front; certificates that change, and those who stall."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.core.headers import binary
from tests.core.peers import Client
from tests.system.clients import KIB, MIB, connect, free_port, read_exactly
from tests.system.daemon import SCALE, StartFailedError, wait_until
from tests.system.test_proxy import front, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Size
    from tests.system.clients import Address
    from tests.system.daemon import Daemon, Starter

NAME = "echo.example"
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
ECDSA = trustme.KeyType.ECDSA

each_version = pytest.mark.parametrize("version", list(VERSIONS))


class Identity:
    """An authority, the files of a server's certificate, and clients who trust it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA(key_type=ECDSA)
        self.ca_file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.renew()

    def renew(self, ca: trustme.CA | None = None) -> str:
        """Write another certificate and its key; return the certificate's fingerprint."""
        issued = (ca or self.ca).issue_cert(NAME, key_type=ECDSA)
        key = self.directory / "key.pem"
        key.write_bytes(issued.private_key_pem.bytes())
        key.chmod(0o640)
        (self.directory / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
        return hashlib.sha256(der).hexdigest()

    def listener(self, **keys: Any) -> list[dict[str, Any]]:
        """Describe a listener that speaks TLS with it; `keys` are others of `[listener.tls]`."""
        files = {"certificate": f"{self.directory}/chain.pem", "key": f"{self.directory}/key.pem"}
        return [{"name": "echo", "address": "127.0.0.1:0", "tls": {"enabled": True, **files, **keys}}]

    def client(self, version: str = "", certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """Return how a client speaks."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        context.set_alpn_protocols(["h2", "echo"])
        if version:
            context.minimum_version = context.maximum_version = VERSIONS[version]
        if certificate:
            certificate.configure_cert(context)
        return context


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    """Make an authority and a certificate."""
    return Identity(tmp_path)


@contextlib.contextmanager
def speak(address: Address, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Connect, and complete the handshake."""
    with connect(address) as raw, context.wrap_socket(raw, server_hostname=NAME) as client:
        yield client


def ask(client: ssl.SSLSocket, content: bytes = b"hello") -> None:
    """Expect an echo."""
    client.sendall(content)
    assert content == read_exactly(client, len(content))


def shown(address: Address, context: ssl.SSLContext) -> str:
    """Return the fingerprint of the certificate that the server shows."""
    with speak(address, context) as client:
        ask(client)
        der = client.getpeercert(binary_form=True)
        assert der
        return hashlib.sha256(der).hexdigest()


@each_version
def test_openssl(start: Starter, identity: Identity, version: str) -> None:
    """What openssl(1) sends comes back, and the record has what the two have agreed on."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    daemon = start(listeners=identity.listener(alpn=["echo"]))
    host, port = daemon.address()[:2]
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-servername", NAME, "-alpn", "h2,echo", "-quiet"]
    command += ["-CAfile", str(identity.ca_file), "-verify_return_error", f"-tls{version.replace('.', '_')}"]
    content = b"".join(b"line %d\n" % number for number in range(10_000))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdin
        assert client.stdout
        client.stdin.write(content)
        client.stdin.flush()
        answer = client.stdout.read(len(content))
        client.terminate()
    record = daemon.wait_for("connection.closed")

    assert content == answer
    assert (NAME, version, "echo", len(content)) == (
        record["tls.client.server_name"],
        record["tls.protocol.version"],
        record["tls.next_protocol"],
        record["echod.io.transmit"],
    )


@each_version
def test_python(start: Starter, identity: Identity, version: str, size: Size) -> None:
    """Megabytes come back, and after close_notify the rest and close_notify: an end that both have agreed on."""
    daemon = start(listeners=identity.listener())
    content = bytes(range(256)) * (size(1, 64) * MIB // 256)
    with speak(daemon.address(), identity.client(version)) as client:
        for position in range(0, len(content), 64 * KIB):
            ask(client, content[position : position + 64 * KIB])
        client.unwrap().close()
    record = daemon.wait_for("connection.closed")

    assert ("peer_closed", len(content), len(content)) == (
        record["echod.close.reason"],
        record["echod.io.receive"],
        record["echod.io.transmit"],
    )


@each_version
def test_openssl_says_when_it_ends(start: Starter, identity: Identity, version: str) -> None:
    """The close_notify of openssl(1), which leaves at the end of its input, is an end and nothing that was cut."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    daemon = start(listeners=identity.listener())
    host, port = daemon.address()[:2]
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", f"-tls{version.replace('.', '_')}"]
    subprocess.run(command, input=b"hello", capture_output=True, timeout=10, check=True)
    record = daemon.wait_for("connection.closed")

    assert ("peer_closed", 5) == (record["echod.close.reason"], record["echod.io.receive"])


class Talker(Client):
    """A client that may go on reading after its close_notify, which Python's sockets cannot."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(context, NAME)
        self.raw = raw
        while not self.established:
            raw.sendall(self.speak())
            if not self.established:
                self.hear(raw.recv(64 * KIB))

    def rest(self) -> bytes:
        """Read up to the other side's close_notify."""
        plain = self.listen()
        while not self.ended:
            wire = self.raw.recv(64 * KIB)
            assert wire, "the stream was cut"
            self.hear(wire)
            plain += self.listen()
        return plain


@each_version
def test_alpn_without_overlap_ends_the_handshake(start: Starter, identity: Identity, version: str) -> None:
    """OpenSSL's client is told no_application_protocol (RFC 7301 §3.2), the log says so; without ALPN it is served."""
    daemon = start(listeners=identity.listener(alpn=["echo"]))
    host, port = daemon.address()
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", f"-tls{version.replace('.', '_')}"]
    refused = subprocess.run(
        [*command, "-alpn", "h2,http/1.1"], input=b"", capture_output=True, check=False, timeout=10 * SCALE
    )
    served = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=10 * SCALE)
    closed = daemon.wait_for("connection.closed", {"echod.close.reason": "handshake_failed"})

    assert refused.returncode
    assert b"alert no application protocol" in refused.stderr.lower() or b"SSL alert number 120" in refused.stderr
    assert "no application protocol" == closed["error.type"]
    assert 0 == served.returncode
    assert b"No ALPN negotiated" in served.stdout


@each_version
def test_a_half_close(start: Starter, identity: Identity, version: str) -> None:
    """Who has said close_notify before it reads gets everything that is held, then close_notify, then FIN."""
    daemon = start(listeners=identity.listener())
    content = bytes(range(256)) * (128 * KIB // 256)
    with connect(daemon.address()) as raw:
        client = Talker(raw, identity.client(version))
        raw.sendall(client.say(content) + client.close())
        assert content == client.rest()
        assert b"" == raw.recv(1)
    record = daemon.wait_for("connection.closed")

    assert ("peer_closed", len(content)) == (record["echod.close.reason"], record["echod.io.transmit"])


@each_version
def test_a_bare_fin(start: Starter, identity: Identity, version: str) -> None:
    """Without close_notify the stream may have been cut: all comes back, and the record says so."""
    daemon = start(listeners=identity.listener())
    with connect(daemon.address()) as raw:
        client = Talker(raw, identity.client(version))
        raw.sendall(client.say(b"hello"))
        raw.shutdown(socket.SHUT_WR)
        assert b"hello" == client.rest()
    record = daemon.wait_for("connection.closed")

    assert ("tls_truncated", 5) == (record["echod.close.reason"], record["echod.io.transmit"])


@each_version
def test_a_slow_reader(start: Starter, identity: Identity, version: str, size: Size) -> None:
    """Megabytes that are sent before anything is read come back whole, and are not held by the daemon meanwhile."""
    daemon = start(listeners=identity.listener(), limits={"buffer": "64KiB", "idle_timeout": "5s"})
    content = bytes(range(251)) * (size(16, 64) * MIB // 251)
    with connect(daemon.address()) as raw:
        client = Talker(raw, identity.client(version))
        before = daemon.memory()
        grown: list[int] = []
        wire = client.say(content) + client.close()
        writer = threading.Thread(target=raw.sendall, args=(wire,))
        writer.start()
        got = bytearray()
        while not client.ended:
            if len(got) >= len(grown) * 4 * MIB:
                time.sleep(0.2)  # the reader is slow, so that all on the way fills up
                grown.append(daemon.memory() - before)
            piece = raw.recv(64 * KIB)
            assert piece, f"the stream was cut after {len(got)} bytes"
            client.hear(piece)
            got += client.listen()
        writer.join(10)

    print(f"{max(grown) / KIB:.0f} KiB more for {len(content) / MIB:.0f} MiB")  # noqa: T201
    assert content == got
    assert max(grown) <= 4 * MIB


def test_a_server_name_is_shown_and_no_more(start: Starter, identity: Identity) -> None:
    """A name with control characters and bytes of no encoding is one line of JSON, in which all of them are escaped."""
    daemon = start(listeners=identity.listener())
    hello = Client(identity.client(), NAME).speak()
    hostile = b'\x1b[2J\n"\xff\x00}xy\r'
    assert len(NAME) == len(hostile)
    with connect(daemon.address()) as raw:
        raw.sendall(hello.replace(NAME.encode(), hostile))
    record = daemon.wait_for("connection.closed")

    assert record["echod.close.reason"] in {"handshake_failed", "peer_reset"}
    assert record["tls.client.server_name"].isprintable()
    assert "[2J" in record["tls.client.server_name"]


def test_a_client_certificate(start: Starter, identity: Identity) -> None:
    """Who shows one of the authority's is named in the record; who has none is refused."""
    daemon = start(listeners=identity.listener(client_ca=str(identity.ca_file)))
    certificate = identity.ca.issue_cert("client.example", organization_name="Acme, Inc.", key_type=ECDSA)
    with speak(daemon.address(), identity.client(certificate=certificate)) as client:
        ask(client)
    record = daemon.wait_for("connection.closed")
    with pytest.raises((ssl.SSLError, ConnectionError)), speak(daemon.address(), identity.client()) as stranger:
        ask(stranger)
    refused = daemon.wait_for("connection.closed", count=2)

    assert "O=Acme\\, Inc." in record["tls.client.subject"]
    assert "handshake_failed" == refused["echod.close.reason"]
    assert "certificate" in refused["error.type"]


def test_a_unix_socket(start: Starter, identity: Identity, tmp_path: Path) -> None:
    """TLS on a path, as on an address."""
    path = tmp_path / "echo.sock"
    daemon = start(listeners=[identity.listener()[0] | {"kind": "unix", "address": str(path), "mode": "0666"}])
    context = identity.client()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(str(path))
        with context.wrap_socket(raw, server_hostname=NAME) as client:
            ask(client)
    record = daemon.wait_for("connection.closed")

    assert ("unix", NAME) == (record["network.transport"], record["tls.client.server_name"])


# -- certificates that change -----------------------------------------------------------------------------------------


def test_a_reload_renews_the_certificate(start: Starter, identity: Identity) -> None:
    """Who comes after it sees the new one; who is there already notices nothing."""
    daemon = start(workers=2, listeners=identity.listener())
    context = identity.client()
    before = shown(daemon.address(), context)
    with speak(daemon.address(), context) as old:
        ask(old)
        renewed = identity.renew()
        assert before == shown(daemon.address(), context)
        daemon.reload()
        ask(old)
    after = {shown(daemon.address(), context) for _ in range(8)}
    loaded = daemon.wait_for("certificate.loaded", count=2)

    assert before != renewed
    assert {renewed} == after
    assert "tls.server.not_after" in loaded


def bad_key(identity: Identity) -> str:
    """Let all read the key."""
    (identity.directory / "key.pem").chmod(0o644)
    return "listener[0].tls.key: {}/key.pem: holds the private key and is open to all (mode 0644): chmod o= it"


def bad_pair(identity: Identity) -> str:
    """Renew the certificate and forget the key."""
    key = (identity.directory / "key.pem").read_bytes()
    identity.renew()
    (identity.directory / "key.pem").write_bytes(key)
    return "listener[0].tls.certificate: {}/chain.pem: the private key does not belong to the first certificate"


def no_file(identity: Identity) -> str:
    """Remove the certificate."""
    (identity.directory / "chain.pem").unlink()
    return "listener[0].tls.certificate: {}/chain.pem: does not exist"


def line_of(daemon: Daemon, expected: str) -> int:
    """Return the line of the configuration that has the key which a sentence begins with."""
    key = expected.split(":", maxsplit=1)[0].rpartition(".")[2]
    lines = daemon.file.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.startswith(f"{key} ="))


@pytest.mark.parametrize("spoil", [bad_key, bad_pair, no_file])
def test_a_bad_certificate_changes_nothing(start: Starter, identity: Identity, spoil: Any) -> None:
    """The reload is refused, in one line that names key and file; the old certificate goes on."""
    daemon = start(listeners=identity.listener(), expect=["reload.refused"])
    context = identity.client()
    before = shown(daemon.address(), context)
    expected = spoil(identity).format(identity.directory)
    daemon.reload(ok=False)
    refused = daemon.wait_for("reload.refused")

    assert [f"{daemon.file}:{line_of(daemon, expected)}: {expected}"] == refused["echod.config.errors"]
    assert before == shown(daemon.address(), context)


def test_a_bad_certificate_ends_the_start(start: Starter, identity: Identity) -> None:
    """Before anything is bound, with the exit code of a configuration that is wrong."""
    expected = bad_pair(identity).format(identity.directory)
    with pytest.raises(StartFailedError) as caught:
        start(listeners=identity.listener())

    assert 78 == caught.value.code
    assert expected in str(caught.value)


# -- those who stall ---------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_who_stops_in_the_hello_is_cut(start: Starter, identity: Identity, size: Size) -> None:
    """A thousand clients stop after one byte: each is gone at the deadline, and a good one is served all the while."""
    count, timeout = size(200, 1000), 2.0
    daemon = start(workers=2, listeners=identity.listener(timeout=f"{timeout:.0f}s"))
    context = identity.client()
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(speak(daemon.address(), context))
        ask(good)
        began = time.monotonic()
        stalled = [stack.enter_context(connect(daemon.address())) for _ in range(count)]
        for client in stalled:
            client.send(b"\x16")
        opened = time.monotonic()
        waits: list[float] = []
        while len(daemon.records("connection.closed")) < count:
            asked = time.monotonic()
            ask(good)
            waits.append(time.monotonic() - asked)
            assert asked < opened + timeout + 5 * SCALE, "some are not cut"
        took = time.monotonic() - opened
    records = daemon.records("connection.closed")[:count]

    print(f"{count} cut {took:.2f} s after the last had come; the good one waited {max(waits) * 1e3:.0f} ms at most")  # noqa: T201
    assert {"handshake_timeout"} == {record["echod.close.reason"] for record in records}
    assert min(record["echod.connection.duration"] for record in records) >= timeout
    assert timeout - (opened - began) <= took <= timeout + 1 * SCALE
    assert max(waits) < 1.0 * SCALE


def test_who_never_reads_costs_little(start: Starter, identity: Identity) -> None:
    """Twenty clients that send and never read hold no more of the daemon's memory than the limit says, and a little."""
    daemon = start(listeners=identity.listener(), limits={"buffer": "64KiB"})
    context = identity.client()
    with contextlib.ExitStack() as stack:
        ask(stack.enter_context(speak(daemon.address(), context)), bytes(256 * KIB))
        before = daemon.memory()
        for _ in range(20):
            client = stack.enter_context(speak(daemon.address(), context))
            client.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                while True:
                    client.send(bytes(64 * KIB))
        grown = (daemon.memory() - before) / 20

    print(f"{grown / KIB:.0f} KiB each")  # noqa: T201
    assert grown <= 64 * KIB * 1.125 + (128 + 64 + 128) * KIB  # the buffer, wire in both directions, OpenSSL


# -- behind a proxy ----------------------------------------------------------------------------------------------------


def test_haproxy_in_front(start: Starter, identity: Identity, tmp_path: Path) -> None:
    """HAProxy passes TLS through and says first whose it is; its checks are no handshakes that failed."""
    proxy = {"enabled": True, "trusted": ["127.0.0.1/32"]}
    daemon = start(listeners=[identity.listener()[0] | {"proxy_protocol": proxy}])
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(front(port, f"127.0.0.1:{daemon.address()[1]} send-proxy-v2 check inter 100ms check-send-proxy"))
    with running("haproxy", "-db", "-f", str(config), address=("127.0.0.1", port)):
        with (
            socket.create_connection(("127.0.0.1", port), 5, source_address=("127.0.0.77", 0)) as raw,
            identity.client().wrap_socket(raw, server_hostname=NAME) as client,
        ):
            ask(client)
        record = daemon.wait_for("connection.closed", {"client.address": "127.0.0.77"})
        checked = daemon.wait_for("connection.closed", {"echod.io.receive": 0}, count=3)

    assert (NAME, 2, 5) == (
        record["tls.client.server_name"],
        record["echod.proxy.version"],
        record["echod.io.transmit"],
    )
    assert checked["echod.close.reason"] in {"peer_closed", "peer_reset"}


def test_a_header_and_then_tls(start: Starter, identity: Identity) -> None:
    """A header of version 2 says whose connection it is, and then comes TLS."""
    proxy = {"enabled": True, "trusted": ["127.0.0.1/32"]}
    daemon = start(listeners=[identity.listener()[0] | {"proxy_protocol": proxy}])
    block = socket.inet_aton("192.0.2.1") + socket.inet_aton("203.0.113.9") + bytes([0xDC, 4, 1, 0xBB])
    with connect(daemon.address()) as raw:
        raw.sendall(binary(block))
        client = Talker(raw, identity.client())
        raw.sendall(client.say(b"hello") + client.close())
        assert b"hello" == client.rest()
    record = daemon.wait_for("connection.closed")

    assert ("192.0.2.1", "127.0.0.1", NAME, 5) == (
        record["client.address"],
        record["network.peer.address"],
        record["tls.client.server_name"],
        record["echod.io.transmit"],
    )


def settled(daemon: Daemon) -> bool:
    """Tell whether nobody is left."""
    return bool(wait_until(lambda: daemon.active() == 0, 5, "no connection"))


def test_nothing_is_left_of_those_who_come_and_go(start: Starter, identity: Identity, size: Size) -> None:
    """Handshakes that complete, fail and break off leave no descriptor behind."""
    daemon = start(listeners=identity.listener())
    context = identity.client()
    ask_once = shown(daemon.address(), context)
    assert settled(daemon)
    before = daemon.descriptors()
    for number in range(size(60, 1000)):
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            if number % 3 == 0:
                assert ask_once == shown(daemon.address(), context)
            else:
                with connect(daemon.address()) as client:
                    client.send(b"\x16\x03\x01" if number % 3 == 1 else b"nonsense")

    # The last client may still wait to be accepted, and so not be counted.
    wait_until(lambda: before == daemon.descriptors(), 5, "as many descriptors as before")
    assert settled(daemon)
