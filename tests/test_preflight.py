import socket
import ssl
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509

from fedbone.engines.flare import preflight as module
from fedbone.engines.flare.kit import Kit
from fedbone.engines.flare.preflight import port_problem, preflight
from tests.kits import make_kits

FIRST_FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # HTTP/2 SETTINGS, what a gRPC server says first


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two deployments")
    return make_kits(folder / "ours"), make_kits(folder / "theirs")


@contextmanager
def serving(answer):
    """A server on all addresses that calls ``answer`` with each connection; its port."""
    with socket.create_server(("", 0)) as listener:
        listener.settimeout(20)

        def serve():
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(20)
                    answer(connection)
            except OSError:  # what the client makes of it is tested
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive()


def tls(kits, trusted=None, first=FIRST_FRAME, maximum=ssl.TLSVersion.TLSv1_3):
    """What a server with the certificate of ``kits`` answers; it takes certificates of ``trusted``."""
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=(trusted or kits) / "server/startup/rootCA.pem"
    )
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = maximum
    context.load_cert_chain(kits / "server/startup/server.crt", kits / "server/startup/server.key")

    def answer(connection):
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.sendall(first)
            secured.recv(1)

    return answer


def asked(kits, port, **changes):
    return preflight(replace(Kit.load(kits / "north"), port=port, **changes))


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def test_nothing_to_say_of_its_own_server(both, maximum):
    ours, _ = both
    with serving(tls(ours, maximum=maximum)) as port:
        assert asked(ours, port) is None


def test_no_server(both):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken, and nobody listens
        problem = str(asked(both[0], taken.getsockname()[1]))
    assert "cannot be reached" in problem
    assert "refused" in problem


def test_unknown_host(both):
    problem = str(asked(both[0], 9, host="no-such-machine.invalid"))
    assert "no-such-machine.invalid:9" in problem
    assert "cannot be reached" in problem


def test_server_of_another_deployment(both):
    ours, theirs = both
    with serving(tls(theirs, trusted=ours)) as port:
        assert "not that of this deployment" in str(asked(ours, port))


def test_server_under_another_name(both):
    ours, _ = both
    with serving(tls(ours)) as port:
        assert "not that of this deployment" in str(asked(ours, port, host="127.0.0.2"))


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def test_server_that_does_not_take_the_certificate(both, maximum):
    """Under TLS 1.3 it says so after the handshake only."""
    ours, theirs = both
    with serving(tls(ours, trusted=theirs, maximum=maximum)) as port:
        assert "does not take this kit's certificate" in str(asked(ours, port))


def test_server_that_hangs_up(both):
    with serving(lambda connection: connection.recv(10)) as port:
        assert "does not take this kit's certificate" in str(asked(both[0], port))


def test_server_that_speaks_no_tls(both):
    with serving(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert "does not speak TLS" in str(asked(both[0], port))


@pytest.mark.parametrize("handshake", [False, True], ids=["before", "after the handshake"])
def test_silent_server(both, monkeypatch, handshake):
    ours, _ = both
    monkeypatch.setattr(module, "WAIT_S", 0.3)
    answer = tls(ours, first=b"") if handshake else lambda connection: (connection.recv(5000), connection.recv(5000))
    with serving(answer) as port:
        assert "no answer" in str(asked(ours, port))


@pytest.mark.parametrize(
    ("offset", "words"),
    [(-1, "clock"), (0, ""), (359, ""), (361, "ended on")],
    ids=["before", "first", "last", "after"],
)
def test_certificate_that_does_not_hold_today(both, monkeypatch, offset, words):
    kit = Kit.load(both[0] / "north")
    path = kit.folder / "startup/client.crt"
    made = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_before_utc
    problem = module._certificate_problem(path, made + timedelta(days=offset))
    assert (problem is None) == (not words)
    assert words in str(problem)


def test_expired_certificate_is_said_before_anything_else(both, monkeypatch):
    monkeypatch.setattr(module, "_certificate_problem", lambda *_: "expired")
    assert asked(both[0], 9) == "expired"


@pytest.mark.parametrize("name", ["client.crt", "client.key", "rootCA.pem"])
@pytest.mark.parametrize("content", [b"", None], ids=["empty", "missing"])
def test_damaged_kit(tmp_path, name, content):
    kit = Kit.load(make_kits(tmp_path / "kits") / "north")
    path = kit.folder / "startup" / name
    path.unlink() if content is None else path.write_bytes(content)
    assert "Copy the kit again" in str(preflight(kit))


def test_port_that_another_process_listens_at(both):
    kit = Kit.load(both[0] / "server")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gRPC does: it would share the port
        other.bind(("127.0.0.1", kit.port))
        other.listen()
        assert f"port {kit.port}" in str(port_problem(kit))
    assert port_problem(kit) is None


def test_connections_that_have_just_ended_do_not_take_the_port(both):
    kit = Kit.load(both[0] / "server")
    with socket.create_server(("127.0.0.1", kit.port)) as listener:
        client = socket.create_connection(("127.0.0.1", kit.port))
        connection, _ = listener.accept()
        connection.close()  # this side waits (TIME_WAIT)
        client.close()
    assert port_problem(kit) is None
