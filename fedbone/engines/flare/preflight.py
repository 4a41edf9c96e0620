"""Why a party cannot start, said in a line: FLARE would try in silence, and for ever."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fedbone.engines.flare.kit import Kit
from fedbone.errors import UserError

WAIT_S = 2.0  # for the server's answer, at each step


def preflight(kit: Kit) -> UserError | None:
    """What stands between a hospital and its server, by a TLS handshake with the kit's certificate; None: nothing."""
    where = f"{kit.host}:{kit.port}"
    startup = kit.folder / "startup"
    if problem := _certificate_problem(startup / "client.crt", datetime.now(UTC)):
        return problem
    try:
        context = ssl.create_default_context(cafile=startup / "rootCA.pem")
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    except OSError as error:  # also ssl.SSLError
        return UserError(startup, f"certificate and key cannot be used ({error.strerror})", "Copy the kit again")
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((kit.host, kit.port), timeout=WAIT_S) as connection:
            connection.settimeout(WAIT_S)
            with context.wrap_socket(connection, server_hostname=kit.host) as secured:
                # under TLS 1.3 a server refuses a certificate after the handshake; else gRPC's first frame comes
                if not secured.recv(1):
                    return _refused(where)
    except ssl.SSLCertVerificationError as error:
        problem = f"the server's certificate is not that of this deployment ({error.verify_message})"
        return UserError(where, problem, "Check host and port, the machine's clock, and that the kits belong together")
    except TimeoutError:
        return UserError(where, f"no answer within {WAIT_S:g} s", "Check the server's address, and firewalls between")
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError) as error:
        if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return UserError(where, "what listens there does not speak TLS", "Check host and port")
        return _refused(where)
    except OSError as error:
        remedy = "Start the server's kit, or check its address; trying again until then"
        return UserError(where, f"the server cannot be reached ({error.strerror})", remedy)
    return None


def port_problem(kit: Kit) -> UserError | None:
    """Why the server cannot listen; None: it can. gRPC itself would share the port with another gRPC server."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have just ended do not count
        try:
            probe.bind(("", kit.port))
        except OSError as error:
            remedy = "End the other process, or make kits with another --port"
            return UserError(f"port {kit.port}", f"the server cannot listen there ({error.strerror})", remedy)
    return None


def _refused(where: str) -> UserError:
    remedy = "Check that both kits are of the same deployment, and the server's clock"
    return UserError(where, "the server broke off the TLS handshake: it does not take this kit's certificate", remedy)


def _certificate_problem(path: Path, now: datetime) -> UserError | None:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return UserError(path, f"the certificate cannot be read ({type(error).__name__})", "Copy the kit again")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        problem = f"the certificate ended on {ends:%Y-%m-%d %H:%M} UTC"
        return UserError(path, problem, "Ask the administrator for a new kit")
    if now < begins:
        problem = f"the certificate begins on {begins:%Y-%m-%d %H:%M} UTC, and this machine says {now:%Y-%m-%d %H:%M}"
        return UserError(path, problem, "Set this machine's clock")
    return None
