"""TLS without a socket: handshakes, both streams, both ends of each, and peers that do what they should not."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from echod.core.hello import LONGEST_HELLO
from echod.core.tls import BATCH, LONGEST_TEXT, RECORD, SIP, STALL, WIRE, Facts, Tls
from tests.core.peers import (
    ALERT,
    CA_PEM,
    CLIENT,
    CLOSE_NOTIFY,
    DATA,
    HANDSHAKE,
    NAME,
    STRANGER,
    VERSIONS,
    Client,
    client_context,
    deliver,
    forged,
    introduce,
    issued,
    old_forged,
    pair,
    server_context,
)

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

CONTEXT = server_context()

PATTERN = bytes(range(251)) * 4200
"""More than a MiB, of which a byte in the wrong place shows."""

OVERHEAD = 5 + 1 + 16
"""Bytes that a record of TLS 1.3 has beyond its plain text (RFC 8446 §5.2)."""

each_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Where a client leaves the keys for who forges its records."""
    return tmp_path / "keys"


def held(tls: Tls) -> int:
    """Return how many bytes a filter holds, but for those within OpenSSL that are no plain text yet."""
    assert not tls._produced.pending
    return len(tls._wire) + tls._incoming.pending + tls._tls.pending() + len(tls.outgoing)


def drain(tls: Tls, limit: int = 1 << 20) -> bytes:
    """Read for as long as anything comes."""
    plain = b""
    while piece := tls.read(limit):
        assert len(piece) <= limit
        plain += piece
    return plain


def serve(tls: Tls, wire: bytes, limit: int = 1 << 20) -> bytes:
    """Echo what `wire` says, as its sender expects of echod, and return what goes back."""
    answer = b""
    for start in range(0, len(wire), WIRE):
        tls.receive(wire[start : start + WIRE])
        while True:
            plain = tls.read(limit)
            while plain:
                plain = plain[tls.write(plain) :]
                answer += deliver(tls)
            answer += deliver(tls)
            if not tls.pending:
                break
    return answer


def over(client: Client, tls: Tls) -> bool:
    """Deliver what is outgoing, and tell whether it has ended the client's stream in good order."""
    client.hear(deliver(tls))
    client.listen()
    return client.ended


# -- the handshake ----------------------------------------------------------------------------------------------------


def test_a_fresh_filter_waits_for_the_peer() -> None:
    """The client speaks first: nothing is known, nothing to be sent, and nothing can be written."""
    tls = Tls(CONTEXT)

    assert (False, False, None, b"") == (tls.established, tls.peer_closed, tls.failure, bytes(tls.outgoing))
    assert (True, False, False) == (tls.wants_read, tls.pending, tls.truncated)
    assert (b"", 0) == (tls.read(10), tls.write(b"early"))
    assert Facts(None, None, None, None, False, None, None) == tls.facts


@each_version
def test_a_handshake_and_an_echo(version: str) -> None:
    """Once the handshake is complete it is known what was agreed upon, and what is said comes back."""
    tls, client = pair(CONTEXT, Client(client_context(version=version)))

    facts = tls.facts
    assert (NAME, version, None, False) == (facts.server_name, facts.version, facts.alpn, facts.resumed)
    assert (None, None) == (facts.client_subject, facts.client_sha256)
    assert client.tls.cipher()[0] == facts.cipher  # type: ignore[index]
    assert client.tls.compression() is None
    assert not tls._hello

    client.hear(serve(tls, client.say(PATTERN)))
    assert PATTERN == client.listen()
    assert (False, True) == (tls.pending, tls.wants_read)


@each_version
def test_bytes_come_as_they_like(version: str) -> None:
    """A handshake that comes byte by byte is one all the same."""
    tls, client = Tls(CONTEXT), Client(client_context(version=version))
    while not (client.established and tls.established):
        for byte in client.speak():
            assert tls.wants_read
            tls.receive(bytes([byte]))
        client.hear(deliver(tls))

    assert NAME == tls.facts.server_name
    assert b"hello" == drain_after(tls, client.say(b"hello"))


def drain_after(tls: Tls, wire: bytes) -> bytes:
    """Receive, and read for as long as anything comes."""
    tls.receive(wire)
    return drain(tls)


def test_a_hello_cut_at_each_byte() -> None:
    """Until its last byte a ClientHello is waited for, and a peer that leaves then has cut no stream."""
    hello = Client().speak()
    for length in range(len(hello)):
        tls = Tls(CONTEXT)
        tls.receive(hello[:length])

        assert (None, b"", True) == (tls.failure, bytes(tls.outgoing), tls.wants_read)

        tls.receive_eof()

        assert (False, False, False) == (tls.established, tls.truncated, tls.wants_read)
        assert (b"", b"", None) == (tls.read(10), bytes(tls.outgoing), tls.facts.server_name)


@each_version
def test_what_follows_the_handshake_at_once_waits(version: str) -> None:
    """Data that comes in one piece with the end of the handshake is not lost."""
    tls, client = Tls(CONTEXT), Client(client_context(version=version))
    wire = b""
    while not client.established:
        tls.receive(wire)
        client.hear(deliver(tls))
        wire = client.speak()
    tls.receive(wire + client.say(b"hello"))

    assert (True, True, False) == (tls.established, tls.pending, tls.wants_read)
    assert b"hello" == drain(tls)


@pytest.mark.parametrize(
    ("wire", "failure", "alert"),
    [
        (b"GET / HTTP/1.1\r\nHost: echo.example\r\n\r\n", "http request", None),
        (b"CONNECT echo.example:7 HTTP/1.1\r\n\r\n", "https proxy request", None),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "wrong version number", None),
        (bytes(100), "wrong version number", None),
        (b"\x80\x2e\1\0\2" + bytes(100), "record length mismatch", 50),
        (b"\x16\3\1\xff\xff" + bytes(WIRE), "packet length too long", 22),
        (b"\x16\3\1\0\0" * 100, "record too small", 10),
        (b"\x17\3\3\0\1x", "unexpected message", 10),
        (b"\x15\3\1\0\2\2\x28", "unexpected message", 10),
        (b"\x16\3\1\0\4\1\xff\xff\xff", "excessive message size", 47),
    ],
    ids=[
        "HTTP",
        "CONNECT",
        "SSH",
        "zeros",
        "SSL 2.0",
        "long record",
        "empty records",
        "data",
        "alert",
        "long message",
    ],
)
def test_what_is_no_hello_is_refused(wire: bytes, failure: str, alert: int | None) -> None:
    """Who does not speak TLS is told so where TLS has a word for it; then nothing is heard any more."""
    tls = Tls(CONTEXT)
    tls.receive(wire)

    assert (failure, alert) == (tls.failure, told(tls))
    assert (False, False, False) == (tls.established, tls.wants_read, tls.pending)

    assert (0, 0) == (len(tls._wire), tls._incoming.pending)

    before = bytes(tls.outgoing)
    tls.receive(Client().speak())
    assert b"" == tls.read(10)
    tls.close()
    assert (failure, before) == (tls.failure, bytes(tls.outgoing))


def told(tls: Tls) -> int | None:
    """Return the number of the fatal alert that is outgoing (RFC 8446 §6), before any keys are agreed upon."""
    if not tls.outgoing:
        return None

    assert (ALERT, 7, 2) == (tls.outgoing[0], len(tls.outgoing), tls.outgoing[5])
    return tls.outgoing[6]


@pytest.mark.parametrize(
    ("minor", "failure", "alert"),
    [(0, "version too low", 40), (1, "unsupported protocol", 70), (2, "unsupported protocol", 70)],
    ids=["SSL 3.0", "TLS 1.0", "TLS 1.1"],
)
def test_old_versions_are_refused(minor: int, failure: str, alert: int) -> None:
    """A client that knows nothing newer than TLS 1.1 is told that, and whom it wanted is known."""
    hello = bytearray(Client(client_context(version="1.2")).speak())
    hello[10] = minor  # of the version of the message, after the heads of record and message
    tls = Tls(CONTEXT)
    tls.receive(hello)

    assert (failure, alert) == (tls.failure, told(tls))
    assert b"" == tls.read(10)
    assert (NAME, None) == (tls.facts.server_name, tls.facts.version)


def test_a_minimum_version_is_kept() -> None:
    """Where 1.3 is demanded a client that knows only 1.2 is refused."""
    tls, client = Tls(server_context(minimum_version="1.3")), Client(client_context(version="1.2"))
    tls.receive(client.speak())
    client.hear(deliver(tls))

    assert "unsupported protocol" == tls.failure
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        client.speak()


@each_version
@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        (["a", "b"], ["b", "a"], "a"),
        (["a", "b"], ["b"], "b"),
        (["a", "b"], None, None),
        ([], ["a"], None),
    ],
)
def test_alpn(version: str, ours: list[str], theirs: list[str] | None, chosen: str | None) -> None:
    """The first protocol of ours that the client offers is chosen; without one the handshake goes on."""
    context = client_context(version=version)
    if theirs:
        context.set_alpn_protocols(theirs)
    tls, client = Tls(server_context(alpn=ours), alpn(ours)), Client(context)
    introduce(tls, client)

    assert chosen == tls.facts.alpn == client.tls.selected_alpn_protocol()


def alpn(names: list[str]) -> frozenset[bytes]:
    """Return protocols as a filter takes them."""
    return frozenset(name.encode() for name in names)


@each_version
@pytest.mark.parametrize("step", [1, 100_000])
def test_alpn_without_overlap_is_a_fatal_alert(version: str, step: int) -> None:
    """RFC 7301 §3.2: the alert instead of a ServerHello, and nothing after it; the name is known all the same."""
    context = client_context(version=version)
    context.set_alpn_protocols(["c", "d"])
    tls, client = Tls(server_context(alpn=["a", "b"]), alpn(["a", "b"])), Client(context)
    spoken = client.speak()
    for start in range(0, len(spoken), step):
        tls.receive(spoken[start : start + step])

    assert b"\x15\x03\x03\x00\x02\x02\x78" == bytes(tls.outgoing)
    assert "no application protocol" == tls.failure
    assert not tls.established
    assert NAME == tls.facts.server_name
    client.hear(deliver(tls))
    with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        client.speak()


@pytest.mark.parametrize(
    ("name", "shown"), [(None, None), ("192.0.2.7", None), ("a\n\x1b[31m", "a\\n\\x1b[31m"), ("xn--9ca", "xn--9ca")]
)
def test_the_name_that_a_client_asks_for(name: str | None, shown: str | None) -> None:
    """A client may ask for whom it likes, and gets echod."""
    tls, _ = pair(CONTEXT, Client(name=name))

    assert shown == tls.facts.server_name


def test_a_name_that_is_no_text() -> None:
    """A name beyond ASCII ends nothing, and is shown escaped."""
    tls = Tls(CONTEXT)
    tls.receive(Client().speak().replace(NAME.encode(), NAME.encode().replace(b"e", b"\xe9")))

    assert (None, "\\xe9cho.\\xe9xampl\\xe9") == (tls.failure, tls.facts.server_name)
    assert tls.outgoing


def test_a_name_of_64_kib() -> None:
    """A hello that is blown up is refused in good order, and holds no more than its first bytes meanwhile."""
    name = b"\0" + (65000).to_bytes(2, "big") + b"n" * 65000
    extension = b"\0\0" + (len(name) + 2).to_bytes(2, "big") + len(name).to_bytes(2, "big") + name
    body = b"\3\3" + bytes(33) + b"\0\2\xc0\x2b\1\0" + len(extension).to_bytes(2, "big") + extension
    message = b"\1" + len(body).to_bytes(3, "big") + body
    tls = Tls(CONTEXT)
    for start in range(0, len(message), RECORD):
        piece = message[start : start + RECORD]
        tls.receive(b"\x16\3\1" + len(piece).to_bytes(2, "big") + piece)

        assert len(tls._hello) <= LONGEST_HELLO
        assert 0 == held(tls) - len(tls.outgoing)

    assert tls.failure
    assert bytes([ALERT]) == tls.outgoing[:1]
    assert tls.facts.server_name is None


# -- certificates of clients ------------------------------------------------------------------------------------------


@each_version
@pytest.mark.parametrize("required", [True, False])
def test_a_client_shows_its_certificate(version: str, required: bool) -> None:
    """A client with a certificate of the right CA is known by its name and the fingerprint."""
    context = server_context(client_ca=CA_PEM, client_required=required)
    tls, _ = pair(context, Client(client_context(CLIENT, version)))

    subject, fingerprint = tls.facts.client_subject, tls.facts.client_sha256
    assert subject
    assert r"O=Acme\, Inc." in subject
    assert fingerprint
    assert 64 == len(fingerprint)


@each_version
def test_an_optional_certificate_may_be_missing(version: str) -> None:
    """A client without a certificate comes in where it is optional."""
    tls, _ = pair(server_context(client_ca=CA_PEM, client_required=False), Client(client_context(version=version)))

    assert (None, None) == (tls.facts.client_subject, tls.facts.client_sha256)


@each_version
def test_an_unwanted_certificate_stays_unknown(version: str) -> None:
    """A client is not asked for its certificate where none is wanted."""
    tls, _ = pair(CONTEXT, Client(client_context(CLIENT, version)))

    assert (None, None) == (tls.facts.client_subject, tls.facts.client_sha256)


@each_version
@pytest.mark.parametrize(
    ("identity", "required", "failure", "alert"),
    [
        (None, True, "peer did not return a certificate", "CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE"),
        (STRANGER, True, "certificate verify failed: unable to get local issuer certificate", "UNKNOWN_CA"),
        (STRANGER, False, "certificate verify failed: unable to get local issuer certificate", "UNKNOWN_CA"),
    ],
)
def test_a_client_that_may_not_come_in(
    version: str, identity: trustme.LeafCert | None, required: bool, failure: str, alert: str
) -> None:
    """A client without the certificate that it needs, or with one that nobody vouches for, is refused and told why."""
    tls = Tls(server_context(client_ca=CA_PEM, client_required=required))
    client = Client(client_context(identity, version))
    while not tls.failure:
        tls.receive(client.speak())
        client.hear(deliver(tls))
    with pytest.raises(ssl.SSLError, match=alert):
        client.listen() if client.established else client.speak()

    assert (failure, False) == (tls.failure, tls.established)
    assert (NAME, None, None) == (tls.facts.server_name, tls.facts.client_subject, tls.facts.client_sha256)


@pytest.mark.parametrize(
    ("placed", "subject", "named"),
    [
        (b"\x0c\x0csubject-here", "CN=subject-here", True),
        (b"\x0c\x0ca\n\x1b[31m,\xc3\xa9bc", r"CN=a\n\x1b[31m\,ébc", True),
        (b"\x03\x0c\0bits-in-it!", "CN=#626974732d696e2d697421", True),
        (b"\x0c\x0csubject-here", None, False),
    ],
    ids=["plain", "control characters", "bit string", "undecodable elsewhere"],
)
def test_a_certificate_with_odd_contents(tmp_path: Path, placed: bytes, subject: str | None, named: bool) -> None:
    """What a CA has let into a certificate is shown safely, or not at all; the fingerprint is always there."""
    context = client_context()
    context.load_cert_chain(issued(tmp_path, placed, b"alternative" if named else b"alternativ\xff"))
    tls, _ = pair(server_context(client_ca=CA_PEM), Client(context))

    assert subject == tls.facts.client_subject
    assert tls.facts.client_sha256


def test_a_long_subject_is_cut(tmp_path: Path) -> None:
    """A certificate can hold more than a record of the log should."""
    context = client_context()
    context.load_cert_chain(issued(tmp_path, units=9))
    tls, _ = pair(server_context(client_ca=CA_PEM), Client(context))

    assert ",".join(["OU=" + "u" * 64] * 9)[:LONGEST_TEXT] + "…" == tls.facts.client_subject


def test_a_certificate_without_a_subject(tmp_path: Path) -> None:
    """A certificate may be for nobody, but for another name in it, and then its fingerprint is all that is told."""
    context = client_context()
    context.load_cert_chain(issued(tmp_path, units=0))
    tls, _ = pair(server_context(client_ca=CA_PEM), Client(context))

    assert tls.facts.client_subject is None
    assert tls.facts.client_sha256


@each_version
def test_sessions_are_resumed(version: str) -> None:
    """Who comes back with a ticket is known as such, and keeps its name."""
    server, context = server_context(client_ca=CA_PEM), client_context(CLIENT, version)
    first, client = pair(server, Client(context))
    client.hear(serve(first, client.say(b"x")))
    client.listen()  # tickets of TLS 1.3 come after the handshake
    first.receive(client.close())
    first.read(1)
    first.close()
    again, _ = pair(server, Client(context, session=client.tls.session))

    assert (False, True) == (first.facts.resumed, again.facts.resumed)
    assert first.facts.client_sha256 == again.facts.client_sha256 is not None


# -- the streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, RECORD - 1, RECORD, RECORD + 1])
def test_small_limits(limit: int) -> None:
    """No more is read than there is room for; the rest is pending until it is read, readable socket or not."""
    tls, client = pair(CONTEXT)
    said = PATTERN[: 3 * RECORD if limit > 7 else 100]
    tls.receive(client.say(said))
    heard = b""
    while tls.pending:
        assert (b"", False) == (tls.read(0), tls.wants_read)
        plain = tls.read(limit)
        assert len(plain) <= limit
        heard += plain

    assert said == heard
    assert (b"", True) == (tls.read(limit), tls.wants_read)


def test_what_waits_outside_of_openssl_is_pending() -> None:
    """OpenSSL is given no more than a sip; where it has decoded that, what it was not given yet still waits."""
    tls, client = pair(CONTEXT)
    said = [bytes([number]) * (SIP // 4 - OVERHEAD) for number in range(8)]
    wire = b"".join(map(client.say, said))
    assert 2 * SIP == len(wire)
    tls.receive(wire)

    assert SIP == tls._incoming.pending
    assert said == [tls.read(SIP) for _ in said if tls.pending]
    assert (False, True) == (tls.pending, tls.wants_read)


def test_a_burst_for_a_paused_reader() -> None:
    """A MiB in one burst is echoed though little is taken at a time; no more is held than what was received at once."""
    tls, client = pair(CONTEXT)
    wire = client.say(PATTERN)
    most = 0
    while wire:
        tls.receive(wire[:WIRE])
        wire = wire[WIRE:]
        while not tls.wants_read:
            plain = tls.read(1000)
            most = max(most, held(tls))
            assert len(plain) == tls.write(plain)
            client.hear(deliver(tls))

    assert PATTERN == client.listen()
    assert most <= WIRE + RECORD


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_writing_takes_what_there_is_room_for(kind: type) -> None:
    """As much is taken at once as makes a batch, then nothing until some of it is sent."""
    tls, client = pair(CONTEXT)
    taken = tls.write(kind(PATTERN))

    assert BATCH == taken
    assert BATCH + BATCH // RECORD * OVERHEAD == len(tls.outgoing)
    assert 0 == tls.write(kind(PATTERN[taken:]))

    first = bytes(tls.outgoing[:RECORD])
    tls.sent(RECORD)
    assert RECORD == tls.write(kind(PATTERN[taken:]))

    client.hear(first + deliver(tls))
    assert PATTERN[: taken + RECORD] == client.listen()


def test_writing_nothing() -> None:
    """No bytes make no record."""
    tls, _ = pair(CONTEXT)

    assert (0, b"") == (tls.write(b""), bytes(tls.outgoing))


def test_records_without_content_are_skipped(keys: Path) -> None:
    """Empty records, which some send to hide how much they say (RFC 8446 §5.1), are none of anybody's business."""
    tls, _, forger = forged(keys)
    wire = b"".join(forger.record(DATA, b"") for _ in range(32))

    assert b"hello" == drain_after(tls, wire + forger.record(DATA, b"hello"))


def test_a_flood_of_empty_records_is_a_failure(keys: Path) -> None:
    """A hundred thousand of them are an attack, and cost no more than the first few."""
    tls, client, forger = forged(keys)
    wire = b"".join(forger.record(DATA, b"") for _ in range(33))
    tls.receive(wire + b"\0" * 100_000)

    assert (b"", "record too small", False) == (tls.read(10), tls.failure, tls.pending)
    client.hear(deliver(tls))
    with pytest.raises(ssl.SSLError, match="ALERT"):
        client.listen()


def test_keys_are_updated(keys: Path) -> None:
    """A peer may change its keys and ask us to change ours (RFC 8446 §4.6.3): the echo goes on under the new ones."""
    tls, client, forger = forged(keys)
    wire = forger.record(DATA, b"a") + forger.update(reply=False) + forger.record(DATA, b"b")
    wire += forger.update(reply=True) + forger.record(DATA, b"c")
    client.hear(serve(tls, wire))

    assert b"abc" == client.listen()


def test_half_a_key_update(keys: Path) -> None:
    """While the rest of a KeyUpdate is missing nothing can be written, and nobody spins; then the echo goes on."""
    tls, client, forger = forged(keys)
    tls.receive(forger.record(HANDSHAKE, b"\x18\0\0\1"))

    assert (b"", 0, b"") == (tls.read(10), tls.write(b"hello"), bytes(tls.outgoing))
    assert (False, True, None) == (tls.pending, tls.wants_read, tls.failure)

    tls.receive(forger.record(HANDSHAKE, b"\0"))
    assert (b"", 5) == (tls.read(10), tls.write(b"hello"))
    client.hear(deliver(tls))
    assert b"hello" == client.listen()


def test_replies_that_nobody_reads_are_bounded(keys: Path) -> None:
    """A peer that demands replies and does not take them is not heard until it does; then nothing is missing."""
    tls, _, forger = forged(keys)
    while tls.wants_read:
        tls.receive(b"".join(forger.update(reply=True) for _ in range(1000)))
        assert b"" == tls.read(10)

    assert STALL <= len(tls.outgoing) <= STALL + RECORD
    assert held(tls) <= STALL + RECORD + WIRE

    tls.receive(forger.record(DATA, b"still here"))
    assert (b"", True, False) == (tls.read(10), tls.pending, tls.wants_read)

    deliver(tls)
    assert b"still here" == drain(tls)
    assert (True, None) == (tls.wants_read, tls.failure)


def test_renegotiation_is_refused(keys: Path) -> None:
    """Who wants to renegotiate under TLS 1.2 gets no_renegotiation (RFC 5246 §7.2.2), and the echo goes on."""
    tls, client, forger = old_forged(keys)
    hello = Client(client_context(version="1.2")).speak()
    tls.receive(forger.record(HANDSHAKE, hello[5:]) + forger.record(DATA, b"hello"))

    assert b"hello" == drain(tls)
    client.hear(deliver(tls))
    with pytest.raises(ssl.SSLError, match="NO_RENEGOTIATION"):
        client.listen()


def test_a_record_full_of_renegotiations(keys: Path) -> None:
    """The replies that one record can demand have a bound, and the peer that demands them is not heard further."""
    tls, _, forger = old_forged(keys)
    while tls.wants_read:
        tls.receive(forger.record(HANDSHAKE, b"\1\0\0\0" * (RECORD // 4)))
        assert b"" == tls.read(10)

    assert STALL <= len(tls.outgoing) <= STALL + RECORD // 4 * 31  # an alert with AES-GCM

    deliver(tls)
    assert b"still here" == drain_after(tls, forger.record(DATA, b"still here"))


def test_what_came_before_a_broken_record_is_read(keys: Path) -> None:
    """A record that was changed on its way ends the connection with an alert, and takes nothing else with it."""
    tls, client, forger = forged(keys)
    good, bad = forger.record(DATA, b"right"), bytearray(forger.record(DATA, b"wrong"))
    bad[-1] ^= 1
    tls.receive(good + bad)

    assert (b"right", None) == (tls.read(10), tls.failure)
    assert (b"", "decryption failed or bad record mac") == (tls.read(10), tls.failure)
    assert (b"", 0, False, False) == (tls.read(10), tls.write(b"more"), tls.pending, tls.wants_read)
    assert "decryption failed or bad record mac" == tls.failure

    client.hear(deliver(tls))
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        client.listen()


@pytest.mark.parametrize(
    ("alert", "failure"), [(0, None), (48, "alert unknown ca"), (80, "alert internal error"), (90, None)]
)
def test_alerts_of_the_peer(keys: Path, alert: int, failure: str | None) -> None:
    """An alert is the end, but for close_notify, and user_canceled, which announces it (RFC 8446 §6.1)."""
    tls, _, forger = forged(keys)
    tls.receive(forger.record(ALERT, bytes([1 if failure is None else 2, alert])))

    assert (b"", failure, alert == 0) == (tls.read(10), tls.failure, tls.peer_closed)
    assert b"" == tls.outgoing


# -- the ends ---------------------------------------------------------------------------------------------------------


@each_version
def test_the_peer_ends_first(version: str) -> None:
    """After close_notify of the peer everything is still sent, then our own."""
    tls, client = pair(CONTEXT, Client(client_context(version=version)))
    tls.receive(client.say(b"last words") + client.close())
    plain = tls.read(100)

    assert (b"last words", False, True) == (plain, tls.peer_closed, tls.pending)
    assert (b"", True, False, False) == (tls.read(100), tls.peer_closed, tls.pending, tls.wants_read)

    assert len(plain) == tls.write(plain)
    tls.close()
    tls.receive_eof()
    assert (False, None) == (tls.truncated, tls.failure)

    client.hear(deliver(tls))
    assert (b"last words", True) == (client.listen(), client.ended)


def test_what_follows_close_notify_is_ignored(keys: Path) -> None:
    """What a peer says after its close_notify "MUST be ignored" (RFC 8446 §6.1), whether it is well formed or not."""
    tls, client, forger = forged(keys)
    tls.receive(forger.record(DATA, b"a") + forger.record(ALERT, CLOSE_NOTIFY) + forger.record(DATA, b"b") + b"\xff")

    assert (b"a", b"") == (tls.read(10), tls.read(10))

    tls.receive(forger.record(DATA, b"c"))
    assert (b"", 0, None) == (tls.read(10), held(tls), tls.failure)
    assert 4 == tls.write(b"echo")
    client.hear(deliver(tls))
    assert b"echo" == client.listen()
    tls.close()
    assert over(client, tls)


@each_version
def test_echod_ends_first(version: str) -> None:
    """What was written arrives before the end; nothing is heard, and nothing is written, afterwards."""
    tls, client = pair(CONTEXT, Client(client_context(version=version)))
    unread = client.say(b"unread")
    tls.receive(unread[:10])
    tls.write(b"farewell")
    tls.close()

    assert (0, b"") == (tls.write(b"more"), tls.read(10))
    assert (False, False, None) == (tls.wants_read, tls.pending, tls.failure)

    length = len(tls.outgoing)
    tls.receive(unread[10:])
    tls.close()
    tls.receive_eof()
    assert (length, False) == (len(tls.outgoing), tls.truncated)

    client.hear(deliver(tls))
    assert (b"farewell", True) == (client.listen(), client.ended)


@pytest.mark.parametrize("limit", [0, 3])
def test_echod_ends_with_input_unread(limit: int) -> None:
    """What was received and not read does not spoil the end."""
    tls, client = pair(CONTEXT)
    tls.receive(client.say(b"one") + client.say(b"two") + client.say(b"three"))
    tls.read(limit)
    tls.close()

    assert (0, None) == (held(tls) - len(tls.outgoing), tls.failure)
    assert over(client, tls)


def test_an_end_before_the_handshake_is_silent() -> None:
    """Nothing can be said before the handshake is complete, and nothing is heard of it any more."""
    tls, client = Tls(CONTEXT), Client()
    tls.receive(client.speak())
    client.hear(deliver(tls))
    tls.close()
    tls.receive(client.speak())

    assert (False, b"", None) == (tls.established, bytes(tls.outgoing), tls.failure)
    assert NAME == tls.facts.server_name


def test_a_stream_that_is_cut() -> None:
    """An end without close_notify is no end: it shows as soon as everything is read, and what was read stays valid."""
    tls, client = pair(CONTEXT)
    wire = client.say(b"whole") + client.say(b"partial")
    tls.receive(wire[:-1])
    tls.receive_eof()

    assert (False, False) == (tls.truncated, tls.wants_read)
    assert (b"whole", b"") == (tls.read(10), tls.read(10))
    assert (True, None) == (tls.truncated, tls.failure)

    assert 5 == tls.write(b"whole")
    tls.close()
    client.hear(deliver(tls))
    assert (b"whole", True) == (client.listen(), client.ended)


def test_a_stream_that_ends_in_good_order_is_not_cut() -> None:
    """After close_notify the end is none that would be worth a word."""
    tls, client = pair(CONTEXT)
    tls.receive(client.close())
    tls.receive_eof()

    assert (b"", False, True) == (tls.read(10), tls.truncated, tls.peer_closed)
