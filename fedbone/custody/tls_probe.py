"""What a server accepts, found out by handshakes rather than read in its settings.

With TLS 1.3 a client has finished before the server has looked at its certificate (RFC 8446, section 4.4.2.4 and
appendix E.1.2), so a connection counts as accepted only once the server has sent something. A server of gRPC does so at
once: HTTP/2 begins with its SETTINGS frame (RFC 9113, section 3.4).
"""

from __future__ import annotations

import socket
import ssl
import tempfile
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import TLSVersion

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedbone.custody.compliance import Evidence
from fedbone.errors import UserError

TIMEOUT_S = 10.0
OLD, NEW = (TLSVersion.TLSv1, TLSVersion.TLSv1_1), (TLSVersion.TLSv1_2, TLSVersion.TLSv1_3)
# what a gRPC client sends first, over TLS or not: the preface and an empty SETTINGS frame (RFC 9113, section 3.4)
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
TLS_ALERT = b"\x15\x03"  # how a TLS server answers what is not TLS, if it answers (RFC 8446, section 5.1)
Address = tuple[str, int]


@dataclass(frozen=True)
class Handshake:
    """One try. Not accepted: ``by_server`` says whether the server ended it; otherwise this client did."""

    accepted: bool
    version: str
    cipher: str
    reason: str
    by_server: bool


@dataclass(frozen=True)
class Credentials:
    """PEM files of one party: the deployment's authority, and the party's own certificate and key."""

    authority: Path
    certificate: Path
    key: Path


def handshake(
    address: Address,
    *,
    authority: Path,
    certificate: Path | None = None,
    key: Path | None = None,
    minimum: TLSVersion,
    maximum: TLSVersion,
    security_level: int | None = None,
    name: str | None = None,
) -> Handshake:
    """Connect once, checking the server's certificate against ``authority`` and ``name`` (or the address's host).

    security_level: OpenSSL's; 0 lets this client offer what its own policy forbids, so that a refusal is the server's.
    Raises UserError where nothing can be concluded: nobody answers, or this Python cannot offer such a connection.
    """
    context = _context(authority, certificate, key, minimum, maximum, security_level)
    with _connection(address) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=name or address[0]) as secured:
                version, cipher = secured.version(), secured.cipher()[0]
                if secured.recv(1):
                    return Handshake(True, version, cipher, "", False)
                return Handshake(False, version, cipher, "the server closed the connection", True)
        except TimeoutError:
            raise _silent(address) from None
        except ssl.SSLEOFError:
            return Handshake(False, "", "", "the server closed the connection", True)
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", None) or error.reason or type(error).__name__
            return Handshake(False, "", "", reason, "ALERT" in (error.reason or ""))
        except OSError as error:
            return Handshake(False, "", "", f"the server broke the connection ({error.strerror})", True)


def _context(
    authority: Path,
    certificate: Path | None,
    key: Path | None,
    minimum: TLSVersion,
    maximum: TLSVersion,
    security_level: int | None,
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    context.set_alpn_protocols(["h2"])  # gRPC ends a connection without
    try:
        if security_level is not None:
            context.set_ciphers(f"DEFAULT:@SECLEVEL={security_level}")
        with warnings.catch_warnings():  # Python advises against the versions that the server should refuse
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version, context.maximum_version = minimum, maximum
    except (ssl.SSLError, ValueError) as error:
        problem = f"this Python cannot offer {minimum.name} to {maximum.name} ({ssl.OPENSSL_VERSION})"
        raise UserError("TLS", problem, "Probe the server from a machine whose OpenSSL still has it") from error
    try:
        context.load_verify_locations(authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one
        problem = f"the authority, certificate or key cannot be read ({error.strerror or type(error).__name__})"
        raise UserError(certificate or authority, problem, "Name the PEM files of this party's kit") from error
    return context


def _connection(address: Address) -> socket.socket:
    try:
        return socket.create_connection(address, TIMEOUT_S)
    except OSError as error:
        problem = f"no connection ({error.strerror or type(error).__name__}), so nothing was refused or accepted"
        raise _wrong(address, problem, "Start the server, and check host, port and fire wall") from None


def _silent(address: Address) -> UserError:
    problem = f"no answer within {TIMEOUT_S:g} s: neither accepted nor refused"
    return _wrong(address, problem, "Check that a gRPC server listens there, and try again")


def tls_versions(address: Address, own: Credentials) -> Evidence:
    """TLS 1.2 and 1.3 are accepted; 1.0 and 1.1 are not, by the server. Raises UserError otherwise."""
    found = {v.name: handshake(address, **asdict(own), minimum=v, maximum=v) for v in NEW}
    for version, result in found.items():
        if not result.accepted:
            problem = f"{version} is not accepted ({result.reason})"
            raise _wrong(address, problem, "Let the server accept TLS 1.2 and 1.3")
    old = {v.name: handshake(address, **asdict(own), minimum=v, maximum=v, security_level=0) for v in OLD}
    for version, result in old.items():
        _require_refused(address, version, result)
    details = {v: f"{r.cipher}" if r.accepted else f"refused: {r.reason}" for v, r in (found | old).items()}
    return Evidence("The server accepted TLS 1.2 and 1.3 and refused 1.0 and 1.1.", details)


def plain_text_refused(address: Address) -> Evidence:
    """The server does not answer HTTP/2 without TLS. Raises UserError when it does."""
    with _connection(address) as raw:
        try:
            raw.sendall(HTTP2_PREFACE)
            answer = raw.recv(64)
        except TimeoutError:
            raise _silent(address) from None
        except ConnectionError:
            answer = b""
    if answer and not answer.startswith(TLS_ALERT):
        problem = f"it answered a connection without TLS with {len(answer)} bytes"
        raise _wrong(address, problem, "Start the server with its certificate, on this port only")
    said = "a TLS alert" if answer else "a closed connection"
    return Evidence(f"HTTP/2 without TLS was answered with {said}.", {"bytes of plain text received": 0})


def no_certificate_refused(address: Address, own: Credentials) -> Evidence:
    """Who shows no certificate is refused, in both versions of TLS. Raises UserError otherwise."""
    return _strangers(address, own, "no certificate", {"authority": own.authority})


def foreign_certificate_refused(address: Address, own: Credentials) -> Evidence:
    """A certificate with the same names from another authority of the same name is refused. Raises UserError if not."""
    with tempfile.TemporaryDirectory() as folder:
        foreign = foreign_credentials(own, Path(folder))
        shown = asdict(foreign) | {"authority": own.authority}
        return _strangers(address, own, "a foreign authority's certificate", shown)


def server_certificate_checked(address: Address, own: Credentials) -> Evidence:
    """The server's certificate is of our authority and for its host; a client that checks would notice another."""
    good = _require_accepted(address, own)
    both = {"minimum": NEW[0], "maximum": NEW[1]}
    with tempfile.TemporaryDirectory() as folder:
        other = foreign_credentials(own, Path(folder)).authority
        wrong_authority = handshake(address, **(asdict(own) | {"authority": other}), **both)
    wrong_name = handshake(address, **asdict(own), **both, name="another-host.invalid")
    for what, result in (("authority", wrong_authority), ("host name", wrong_name)):
        if result.accepted or result.by_server:
            raise _wrong(address, f"another {what} was not noticed", "Check the certificate, and this Python's ssl")
    text = "The server's certificate is signed by the deployment's authority and names its host."
    details = {"with another authority": wrong_authority.reason, "with another host name": wrong_name.reason}
    return Evidence(text, {"TLS": good.version, **details})


def foreign_credentials(own: Credentials, folder: Path) -> Credentials:
    """PEM files in ``folder``: an authority of the deployment's name, and a certificate by it with the party's name."""
    real = x509.load_pem_x509_certificate(Path(own.certificate).read_bytes())
    issuer, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    paths = Credentials(*(folder / name for name in ("authority.pem", "certificate.pem", "key.pem")))
    _write_certificate(paths.authority, real.issuer, issuer, real.issuer, issuer)
    _write_certificate(paths.certificate, real.subject, key, real.issuer, issuer)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths.key.write_bytes(key.private_bytes(*form))
    return paths


def _write_certificate(
    path: Path,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> None:
    now, is_authority = datetime.now(UTC), key is issuer_key
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    certificate = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
    path.write_bytes(certificate.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _strangers(address: Address, own: Credentials, who: str, shown: dict[str, Path]) -> Evidence:
    """Refused with what they show; our own certificate is accepted before and after, so that nothing was down."""
    _require_accepted(address, own)
    results = {v.name: handshake(address, **shown, minimum=v, maximum=v) for v in NEW}
    for version, result in results.items():
        _require_refused(address, f"{version} with {who}", result)
    _require_accepted(address, own)
    details = {version: f"refused: {result.reason}" for version, result in results.items()}
    return Evidence(f"With {who} the server refused; with the party's own it accepted, before and after.", details)


def _require_accepted(address: Address, own: Credentials) -> Handshake:
    result = handshake(address, **asdict(own), minimum=NEW[0], maximum=NEW[1])
    if not result.accepted:
        problem = f"the party's own certificate is not accepted ({result.reason}), so a refusal would prove nothing"
        raise _wrong(address, problem, "Check authority, certificate, key and host name")
    return result


def _require_refused(address: Address, what: str, result: Handshake) -> None:
    if result.accepted:
        raise _wrong(address, f"{what} was accepted", "Let the server refuse it")
    if not result.by_server:
        problem = f"{what} was not tried: this client ended the connection itself ({result.reason})"
        raise _wrong(address, problem, "Probe the server from a machine whose OpenSSL can do it")


def _wrong(address: Address, problem: str, remedy: str) -> UserError:
    return UserError("{}:{}".format(*address), problem, remedy)
