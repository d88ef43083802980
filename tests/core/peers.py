"""The other end of a TLS connection: a client without a socket, and one that writes what no library would send."""

from __future__ import annotations

import hmac
import ssl
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from echod.core import certificate
from echod.core.tls import Tls

if TYPE_CHECKING:
    from pathlib import Path

NAME = "echo.example"

CA = trustme.CA(key_type=trustme.KeyType.ECDSA)
SERVER = CA.issue_cert(NAME, key_type=trustme.KeyType.ECDSA)
CLIENT = CA.issue_cert("client.example", organization_name="Acme, Inc.", key_type=trustme.KeyType.ECDSA)
STRANGER = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert("stranger.example", key_type=trustme.KeyType.ECDSA)

CA_PEM = CA.cert_pem.bytes().decode()

ALERT, HANDSHAKE, DATA = 21, 22, 23
"""Types of records (RFC 8446 §5.1)."""

CLOSE_NOTIFY = b"\x01\x00"

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def server_context(**options: Any) -> ssl.SSLContext:
    """Return a context of echod's, made as `options` say."""
    with SERVER.private_key_and_cert_chain_pem.tempfile() as path:
        return certificate.context(path, **options)


def client_context(identity: trustme.LeafCert | None = None, version: str | None = None) -> ssl.SSLContext:
    """Return a context for clients that trust echod's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    CA.configure_trust(context)
    context.check_hostname = False  # also those that ask for another name
    if identity:
        identity.configure_cert(context)
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


class Client:
    """A client: whether its handshake is complete, and whether echod has ended in good order."""

    def __init__(
        self, context: ssl.SSLContext | None = None, name: str | None = NAME, session: ssl.SSLSession | None = None
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or client_context()).wrap_bio(
            self._incoming, self._outgoing, server_hostname=name, session=session
        )
        self.established = False
        self.ended = False

    def speak(self) -> bytes:
        """Go on with the handshake, and return the wire to send."""
        if not self.established:
            with suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                self.established = True
        return self._outgoing.read()

    def hear(self, wire: bytes | bytearray) -> None:
        """Take wire from echod."""
        self._incoming.write(wire)

    def say(self, plain: bytes) -> bytes:
        """Return the wire for `plain`."""
        self.tls.write(plain)
        return self._outgoing.read()

    def listen(self) -> bytes:
        """Return all that has come from echod, up to where it ends for now or for good."""
        plain = b""
        with suppress(ssl.SSLWantReadError):
            while piece := self._read():
                plain += piece
            self.ended = True
        return plain

    def close(self) -> bytes:
        """Return the wire of close_notify."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()

    def _read(self) -> bytes:
        try:
            return self.tls.read(65536)
        except ssl.SSLZeroReturnError:  # in place of b"" where the client has ended, too
            return b""


def deliver(tls: Tls) -> bytes:
    """Have the kernel take everything, and return it."""
    wire = bytes(tls.outgoing)
    tls.sent(len(wire))
    return wire


def introduce(tls: Tls, client: Client) -> None:
    """Let the two complete their handshake."""
    while not (client.established and tls.established):
        spoken = client.speak()
        tls.receive(spoken)
        answer = deliver(tls)
        client.hear(answer)

        assert spoken or answer or client.established, f"nobody goes on: {tls.failure}"


def pair(context: ssl.SSLContext | None = None, client: Client | None = None) -> tuple[Tls, Client]:
    """Return the two ends of a connection that is established."""
    tls, client = Tls(context or server_context()), client or Client()
    introduce(tls, client)
    return tls, client


class Forger:
    """Goes on where a client has ended its handshake, in TLS 1.3, and writes any record (RFC 8446 §5, §7)."""

    def __init__(self, keys: Path) -> None:
        secrets = dict(line.split()[::2] for line in keys.read_text().splitlines() if not line.startswith("#"))
        self._use(bytes.fromhex(secrets["CLIENT_TRAFFIC_SECRET_0"]))

    def record(self, kind: int, content: bytes) -> bytes:
        """Return a record of the type `kind`."""
        inner = content + bytes([kind])
        head = struct.pack("!BHH", DATA, 0x0303, len(inner) + 16)
        nonce = int.from_bytes(self._iv, "big") ^ self._number
        self._number += 1
        return head + AESGCM(self._key).encrypt(nonce.to_bytes(12, "big"), inner, head)

    def update(self, *, reply: bool) -> bytes:
        """Return a KeyUpdate (§4.6.3), and use the next keys from now on."""
        record = self.record(HANDSHAKE, bytes([24, 0, 0, 1, reply]))
        self._use(self._expand(b"traffic upd", 48))
        return record

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key, self._iv = self._expand(b"key", 32), self._expand(b"iv", 12)
        self._number = 0

    def _expand(self, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack("!HB", length, len(label)) + label + b"\0"
        return HKDFExpand(SHA384(), length, info).derive(self._secret)


class OldForger:
    """The same in TLS 1.2 with AES-256-GCM and SHA-384 (RFC 5246 §6.3, RFC 5288 §3)."""

    def __init__(self, keys: Path, server_random: bytes) -> None:
        _, client_random, master = keys.read_text().split()[-3:]
        seed = b"key expansion" + server_random + bytes.fromhex(client_random)
        block, chain = b"", seed
        while len(block) < 2 * (32 + 4):
            chain = hmac.digest(bytes.fromhex(master), chain if block else seed, "sha384")
            block += hmac.digest(bytes.fromhex(master), chain + seed, "sha384")
        self._key, self._salt = block[:32], block[64:68]
        self._number = 1  # Finished was 0

    def record(self, kind: int, content: bytes) -> bytes:
        """Return a record of the type `kind`."""
        number = self._number.to_bytes(8, "big")
        self._number += 1
        covered = number + struct.pack("!BHH", kind, 0x0303, len(content))
        sealed = number + AESGCM(self._key).encrypt(self._salt + number, content, covered)
        return struct.pack("!BHH", kind, 0x0303, len(sealed)) + sealed


def forged(keys: Path) -> tuple[Tls, Client, Forger]:
    """Return a connection of TLS 1.3 and who forges its client's records; `keys` is the path of a file to be made."""
    context = client_context(version="1.3")
    context.keylog_filename = str(keys)
    tls, client = pair(client=Client(context))
    return tls, client, Forger(keys)


def old_forged(keys: Path) -> tuple[Tls, Client, OldForger]:
    """Return the same of TLS 1.2."""
    context = client_context(version="1.2")
    context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    context.keylog_filename = str(keys)
    tls, client = Tls(server_context()), Client(context)
    tls.receive(client.speak())
    server_random = bytes(tls.outgoing[11:43])  # after the heads of record and message, and the version
    client.hear(deliver(tls))
    introduce(tls, client)
    return tls, client, OldForger(keys, server_random)


def issued(
    directory: Path,
    common_name: bytes = b"\x0c\x0ccommon-name!",
    alternative: bytes = b"alternative",
    units: int | None = None,
) -> Path:
    """Return the path of a client's certificate and key.

    The names are DER and IA5String, of no other length than these; no library writes what is not in order in them, so
    that they are put in place, and signed, afterwards. In place of a name, there may be some organizational `units`.
    """
    authority = x509.load_pem_x509_certificate(CA.cert_pem.bytes())
    signer = load_pem_private_key(CA.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.NameAttribute(NameOID.COMMON_NAME, "common-name!")
    unit = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "u" * 64)
    draft = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([name] if units is None else [unit] * units))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("alternative")]), critical=False)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(authority.not_valid_before_utc)
        .not_valid_after(authority.not_valid_after_utc)
        .sign(signer, SHA256())
    )
    content = draft.tbs_certificate_bytes
    content = content.replace(b"\x0c\x0ccommon-name!", common_name).replace(b"alternative", alternative)
    signature = b"\0" + signer.sign(content, ec.ECDSA(SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    inner = content + algorithm + b"\x03" + bytes([len(signature)]) + signature
    path = directory / "client.pem"
    path.write_text(
        ssl.DER_cert_to_PEM_cert(b"\x30\x82" + len(inner).to_bytes(2, "big") + inner)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    )
    return path
