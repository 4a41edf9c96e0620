"""What a server accepts: asked of a real gRPC server with mutual TLS, and of servers that fail in every way."""

import ipaddress
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from ssl import TLSVersion

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedbone.custody import tls_probe
from fedbone.custody.tls_probe import (
    Credentials,
    Handshake,
    foreign_certificate_refused,
    foreign_credentials,
    handshake,
    no_certificate_refused,
    plain_text_refused,
    server_certificate_checked,
    tls_versions,
)
from fedbone.errors import UserError

PEM = serialization.Encoding.PEM
ANY = {"minimum": TLSVersion.TLSv1_2, "maximum": TLSVersion.TLSv1_3}


class Authority:
    """Certificates of one authority, in a folder."""

    def __init__(self, folder, name="the deployment's authority"):
        self.folder, self.name, self.key = folder, name, ec.generate_private_key(ec.SECP256R1())
        folder.mkdir()
        self.path = folder / "authority.pem"
        self.path.write_bytes(self._certificate(name, self.key.public_key(), x509.BasicConstraints(True, None)))

    def _certificate(self, name, public, extension):
        now = datetime.now(UTC)
        subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (name, self.name))
        builder = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        return builder.add_extension(extension, False).sign(self.key, hashes.SHA256()).public_bytes(PEM)

    def issue(self, name, hosts=("localhost", "127.0.0.1")) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        paths = Credentials(self.path, self.folder / f"{name}.pem", self.folder / f"{name}.key")
        paths.certificate.write_bytes(self._certificate(name, key.public_key(), x509.SubjectAlternativeName(names)))
        form = (PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        paths.key.write_bytes(key.private_bytes(*form))
        return paths


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("a folder") / "authority")


@pytest.fixture(scope="module")
def server(authority):
    return authority.issue("server")


@pytest.fixture(scope="module")
def own(authority):
    return authority.issue("hospital_a")


@contextmanager
def grpc_server(server: Credentials | None, demands_certificate=True):
    """The address of a gRPC server; without ``server`` it speaks plain text."""
    running = grpc.server(ThreadPoolExecutor(2))
    if server is None:
        port = running.add_insecure_port("127.0.0.1:0")
    else:
        authority, certificate, key = (path.read_bytes() for path in asdict(server).values())
        pairs = [(key, certificate)]
        credentials = grpc.ssl_server_credentials(
            pairs, authority if demands_certificate else None, demands_certificate
        )
        port = running.add_secure_port("127.0.0.1:0", credentials)
    running.start()
    try:
        yield ("127.0.0.1", port)
    finally:
        running.stop(0).wait()


@pytest.fixture(scope="module")
def address(server):
    with grpc_server(server) as found:
        yield found


@contextmanager
def ssl_server(server: Credentials, trusted=None, versions=(TLSVersion.TLSv1_2, TLSVersion.TLSv1_3), greet=True):
    """A server of Python's ssl at SECLEVEL 0 that greets with a byte; (address, subjects of certificates it was shown).

    trusted: the authorities of client certificates, which are demanded then.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = versions
    if trusted is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(trusted)
    listener, shown, done = socket.create_server(("127.0.0.1", 0)), [], threading.Event()

    def serve_one(raw):
        with raw:
            try:
                with context.wrap_socket(raw, server_side=True) as secured:
                    shown.append((secured.getpeercert() or {}).get("subject"))
                    if greet:
                        secured.sendall(b"!")
                        secured.recv(1)
                    else:
                        done.wait(10)
            except OSError:
                pass  # the client's to notice

    def serve():
        while not done.is_set():
            try:
                serve_one(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname(), shown
    finally:
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@contextmanager
def answering(answer: bytes | None):
    """A server that answers the first bytes with ``answer`` and closes; None: it says nothing."""
    listener, done = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve():
        with listener.accept()[0] as connection:
            connection.recv(1024)
            if answer is None:
                done.wait(10)
            else:
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        done.set()
        thread.join(10)
        listener.close()


def once(address, own, version, level=0, **changes) -> Handshake:
    return handshake(address, **asdict(own) | changes, minimum=version, maximum=version, security_level=level)


# a real gRPC server with mutual TLS


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_its_own_parties_are_accepted_in_each_version(address, own, version):
    result = once(address, own, TLSVersion[version], None)
    assert (result.accepted, result.reason) == (True, "")
    assert result.version == version.replace("_", ".")
    assert "AES" in result.cipher or "CHACHA" in result.cipher


def test_the_host_may_be_a_name(address, own):
    assert handshake(("localhost", address[1]), **asdict(own), **ANY).accepted


def test_every_question_is_answered_well_by_grpc(address, own):
    versions = tls_versions(address, own)
    assert set(versions.details) == {"TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"}
    assert versions.details["TLSv1_1"].startswith("refused: ")
    assert "GCM" in versions.details["TLSv1_3"]
    assert "alert" in plain_text_refused(address).text or "closed" in plain_text_refused(address).text
    for evidence in (no_certificate_refused(address, own), foreign_certificate_refused(address, own)):
        assert set(evidence.details) == {"TLSv1_2", "TLSv1_3"}
        assert all(found.startswith("refused: ") for found in evidence.details.values())
    details = server_certificate_checked(address, own).details
    assert details["TLS"] == "TLSv1.3"
    assert "mismatch" in details["with another host name"]


# old versions: the refusal must be the server's


needs_tls_1_1 = pytest.mark.skipif(not ssl.HAS_TLSv1_1, reason="this OpenSSL was built without TLS 1.1")


@needs_tls_1_1
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_positive_control_the_same_client_speaks_old_tls_where_the_server_does(server, own, version, address):
    old = TLSVersion[version]
    with ssl_server(server, versions=(old, old)) as (at, _):
        result = once(at, own, old)
    assert (result.accepted, result.version) == (True, version.replace("_", "."))
    refused = once(address, own, old)
    assert (refused.accepted, refused.by_server) == (False, True)


@needs_tls_1_1
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_server_that_still_accepts_tls_1_1_is_reported(server, own):
    versions = (TLSVersion.TLSv1_1, TLSVersion.TLSv1_3)
    with (
        ssl_server(server, own.authority, versions) as (at, _),
        pytest.raises(UserError, match="TLSv1_1 was accepted"),
    ):
        tls_versions(at, own)


@needs_tls_1_1
def test_a_refusal_by_this_client_is_not_taken_for_the_servers(address, own):
    """Python's usual ciphers have none for TLS 1.1: nothing reaches the server."""
    result = once(address, own, TLSVersion.TLSv1_1, None)
    assert (result.accepted, result.by_server) == (False, False)
    with pytest.raises(UserError, match="was not tried: this client ended"):
        tls_probe._require_refused(address, "TLSv1_1", result)


def test_a_server_without_tls_1_2_is_reported(server, own):
    versions = (TLSVersion.TLSv1_3, TLSVersion.TLSv1_3)
    with ssl_server(server, versions=versions) as (at, _), pytest.raises(UserError, match="TLSv1_2 is not accepted"):
        tls_versions(at, own)


def test_what_this_python_cannot_offer(own, monkeypatch):
    def refuse(self, ciphers):
        raise ssl.SSLError("no cipher can be selected")

    monkeypatch.setattr(ssl.SSLContext, "set_ciphers", refuse)
    with pytest.raises(UserError, match="cannot offer"):
        once(("127.0.0.1", 1), own, TLSVersion.TLSv1_2)


# who is let in


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_client_without_certificate_is_refused_though_tls_1_3_seems_to_succeed(address, own, version):
    result = once(address, own, TLSVersion[version], None, certificate=None, key=None)
    assert (result.accepted, result.by_server) == (False, True)
    assert bool(result.version) is (version == "TLSv1_3"), "with 1.3 the client was done before the server looked"


@pytest.mark.parametrize("check", [no_certificate_refused, foreign_certificate_refused])
def test_a_server_that_demands_no_certificate_is_reported(server, own, check):
    with grpc_server(server, demands_certificate=False) as at, pytest.raises(UserError, match="was accepted"):
        check(at, own)


def test_positive_control_the_foreign_certificate_is_shown_and_would_do(server, own, tmp_path):
    """A server that trusts the foreign authority lets it in, under the party's own name."""
    foreign = foreign_credentials(own, tmp_path)
    with ssl_server(server, trusted=foreign.authority) as (at, shown):
        assert handshake(at, **asdict(foreign) | {"authority": own.authority}, **ANY).accepted
    assert shown == [((("commonName", "hospital_a"),),)]
    names = [x509.load_pem_x509_certificate(path.read_bytes()) for path in (foreign.certificate, own.certificate)]
    assert names[0].issuer == names[1].issuer


@pytest.mark.parametrize("check", [no_certificate_refused, foreign_certificate_refused])
def test_a_server_that_refuses_everybody_proves_nothing(address, own, check, tmp_path):
    stranger = foreign_credentials(own, tmp_path)
    alien = Credentials(own.authority, stranger.certificate, stranger.key)
    with pytest.raises(UserError, match=r"own certificate is not accepted.*would prove nothing"):
        check(address, alien)


@pytest.mark.parametrize("up", [(True, False, False, False), (False, False, False, True)], ids=["down", "up"])
def test_a_server_that_goes_down_or_comes_up_in_between_proves_nothing(address, own, monkeypatch, up):
    """Handshakes in their order: our own, two strangers', our own."""
    answers = iter([Handshake(accepted, "TLSv1.3", "AES", "closed", not accepted) for accepted in up])
    monkeypatch.setattr(tls_probe, "handshake", lambda *_, **__: next(answers))
    with pytest.raises(UserError, match="own certificate is not accepted"):
        no_certificate_refused(address, own)


def test_a_server_that_ends_the_connection_itself_says_nothing_about_its_certificate(address, own, monkeypatch):
    answers = iter([Handshake(True, "TLSv1.3", "AES", "", False), *[Handshake(False, "", "", "closed", True)] * 2])
    monkeypatch.setattr(tls_probe, "handshake", lambda *_, **__: next(answers))
    with pytest.raises(UserError, match="another authority was not noticed"):
        server_certificate_checked(address, own)


def test_the_foreign_keys_are_gone_afterwards(address, own, monkeypatch, tmp_path):
    monkeypatch.setattr(tls_probe.tempfile, "tempdir", str(tmp_path))
    foreign_certificate_refused(address, own)
    server_certificate_checked(address, own)
    assert not list(tmp_path.iterdir())


# who the server is


def test_a_server_of_another_authority_is_refused_by_the_client(own, tmp_path):
    """Also when the authority has the same name."""
    with grpc_server(Authority(tmp_path / "other").issue("server")) as at:
        result = handshake(at, **asdict(own), **ANY)
        assert (result.accepted, result.by_server) == (False, False)
        with pytest.raises(UserError, match="own certificate is not accepted"):
            server_certificate_checked(at, own)


def test_a_server_with_another_host_name_is_refused_by_the_client(authority, own):
    with grpc_server(authority.issue("elsewhere", ("example.org",))) as at:
        result = handshake(at, **asdict(own), **ANY)
        assert (result.accepted, result.by_server) == (False, False)
        assert "IP address mismatch" in result.reason
        assert handshake(at, **asdict(own), **ANY, name="example.org").accepted


@pytest.mark.parametrize("setting", ["check_hostname", "verify_mode"])
def test_a_client_that_does_not_check_is_noticed(address, own, monkeypatch, setting):
    real = tls_probe._context

    def careless(*args):
        context = real(*args)
        context.check_hostname = False
        if setting == "verify_mode":
            context.verify_mode = ssl.CERT_NONE
        return context

    monkeypatch.setattr(tls_probe, "_context", careless)
    with pytest.raises(UserError, match="was not noticed"):
        server_certificate_checked(address, own)


# plain text, silence, nobody there


def test_a_server_that_speaks_plain_text_is_reported():
    with grpc_server(None) as at, pytest.raises(UserError, match=r"without TLS with [0-9]+ bytes"):
        plain_text_refused(at)


def test_plain_http_is_plain_text_too():
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as at, pytest.raises(UserError, match="without TLS"):
        plain_text_refused(at)


@pytest.mark.parametrize(("answer", "said"), [(b"\x15\x03\x01\x00\x02\x02\x46", "alert"), (b"", "closed")])
def test_an_alert_or_a_closed_connection_is_a_refusal(answer, said):
    with answering(answer) as at:
        assert said in plain_text_refused(at).text


def test_silence_is_neither_accepted_nor_refused(server, own, monkeypatch):
    monkeypatch.setattr(tls_probe, "TIMEOUT_S", 0.3)
    with answering(None) as at, pytest.raises(UserError, match="neither accepted nor refused"):
        plain_text_refused(at)
    with ssl_server(server, greet=False) as (at, _), pytest.raises(UserError, match="neither accepted nor refused"):
        handshake(at, **asdict(own), **ANY)
    with answering(None) as at, pytest.raises(UserError, match="neither accepted nor refused"):
        handshake(at, **asdict(own), **ANY)


def test_plain_text_is_no_refusal_of_a_handshake(own):
    with grpc_server(None) as at:
        result = handshake(at, **asdict(own), **ANY)
    assert (result.accepted, result.by_server) == (False, False)


@pytest.mark.parametrize("check", [tls_versions, no_certificate_refused, server_certificate_checked])
def test_nobody_there_proves_nothing(own, check):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = taken.getsockname()
    with pytest.raises(UserError, match="no connection") as error:
        check(at, own)
    assert error.value.where == f"127.0.0.1:{at[1]}"
    with pytest.raises(UserError, match="no connection"):
        plain_text_refused(at)


def test_files_that_are_no_certificates_are_named(own, tmp_path):
    with pytest.raises(UserError, match="cannot be read") as error:
        handshake(("127.0.0.1", 1), **asdict(own) | {"certificate": tmp_path / "none.pem"}, **ANY)
    assert error.value.where == str(tmp_path / "none.pem")
    assert "PRIVATE" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        handshake(("127.0.0.1", 1), authority=own.key, **ANY)
