"""Provisioning: one kit for the server, each hospital and the administrator, with a certificate authority of their own.

FLARE's lighter makes certificates and start-up files; the keys for logins, sums, audit logs and vaults are added here.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nvflare.lighter.constants import CtxKey
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import serialize_cert, serialize_pri_key

from fedbone.custody.identity import LoginKey, Registry
from fedbone.custody.vault import KEY_BYTES, create_key
from fedbone.encryption.paillier_keys import generate
from fedbone.encryption.signing import SigningKey
from fedbone.engines.flare.admission import FIRST_POLICY, POLICY
from fedbone.engines.flare.describe import Described
from fedbone.engines.flare.jobs import ADMINISTRATOR, WATCHDOG
from fedbone.engines.flare.kit import ADMIN, DEPLOYMENT, DIRECTORY, NAME, SERVER, Kit
from fedbone.engines.flare.site_policy import authorization, hospital_resources, log_config, server_resources
from fedbone.errors import UserError
from fedbone.files import write_atomic, write_json, write_secret
from fedbone.imaging.dataset import HospitalData

LOOPBACK = ("localhost", "127.0.0.1")
VALID_DAYS = 360  # of the authority and every certificate, as FLARE has it
ORGANISATION = "fedbone"  # FLARE's rights may depend on it; ours do not
AUTHORITY, OFFICERS = "authority", "officers"
AUTHORITY_NOTE = f"""The private key of this deployment's certificate authority (rootCA.key).

Whoever has it can make certificates that server and hospitals trust. No party needs it to work: move this folder to a
place without a network, and fetch it only to make a certificate. All certificates end {VALID_DAYS} days after they were
made; make new kits before.
"""
OFFICERS_NOTE = """One key for each hospital's data officer, who signs the consent to the use of the films with it.

Give each officer the key, and keep none here: a hospital's computer must not hold the key that it asks consent of.
"""
BUDGET = {"dp_delta": 1e-5, "epsilon_limit": 8.0}  # for a trial; each hospital's staff decide, in privacy_budget.json


def create_kits(out: Path, hospitals: dict[str, tuple[Path, HospitalData]], host: str, port: int | None) -> Path:
    """``create_kits_of`` for films at hand: by hospital, their folder and what is in it."""
    return create_kits_of(out, {name: Described.of(of, place) for name, (place, of) in hospitals.items()}, host, port)


def create_kits_of(out: Path, hospitals: dict[str, Described], host: str, port: int | None) -> Path:
    """Write the kits of a new deployment into the new folder ``out``, whole or not at all; its path.

    hospitals: by name, what is known of each; host: the server's name, as the hospitals reach it;
    port: None for a free one of this machine. Raises UserError for names and hosts that cannot be, and when there is
    something at ``out``.
    """
    _require_names(hospitals)
    if port is not None and not 0 < port < 65536:
        raise UserError(f"port {port}", "there is no such port", "Give one between 1 and 65535, or none")
    out = Path(out).absolute()
    with _new_folder(out) as folder:
        port = port or free_port()
        project = f"fedbone-{uuid.uuid4().hex[:8]}"
        _provision(folder, _project(project, host, port, hospitals))
        kits = {name: Kit(folder / name, "hospital", name, project, host, port, tuple(hospitals), of.data)
                for name, of in hospitals.items()}  # fmt: skip
        server = Kit(folder / SERVER, "server", SERVER, project, host, port, tuple(hospitals), None)
        for kit in (server, *kits.values()):
            _write_own(kit)
        _write_server(server)
        _write_hospitals(server, kits)
        _write_officers(folder / OFFICERS, kits.values())
        _write_about(server, kits, hospitals)
        public = {"project": project, "host": host, "port": port, "hospitals": list(hospitals)}
        write_json(folder / DEPLOYMENT, public)
        shutil.copyfile(server.own / DIRECTORY, folder / DIRECTORY)  # for whoever submits runs from elsewhere
    return out


def free_port() -> int:
    """A TCP port that nobody listens at on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _require_names(hospitals: dict) -> None:
    for name in hospitals:
        if not NAME.fullmatch(name) or name in (SERVER, ADMIN, AUTHORITY, OFFICERS):
            problem = "a hospital's name must have 1 to 40 small letters, digits, - and _, and begin with a letter"
            raise UserError(name, problem, "Give other names with --names, in order of the folders")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that gets its name when all went well."""
    if os.path.lexists(out):
        raise UserError(out, "there is something already, and kits are never overwritten", "Choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield folder
        _close_to_others(folder)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _close_to_others(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        os.chmod(place, 0o700)
        for name in names:
            os.chmod(os.path.join(place, name), 0o600)


def _project(name: str, host: str, port: int, hospitals: dict) -> Project:
    try:
        also = [alias for alias in LOOPBACK if alias != host]
        server = {"fed_learn_port": port, "admin_port": port, "default_host": host, "host_names": also}
        people = [(ADMINISTRATOR, "project_admin"), (WATCHDOG, "lead")]
        return Project(name, "", participants=[
            Participant("server", SERVER, ORGANISATION, server),
            *(Participant("client", hospital, ORGANISATION) for hospital in hospitals),
            *(Participant("admin", user, ORGANISATION, {"role": role}) for user, role in people),
        ])  # fmt: skip
    except ValueError as error:
        raise UserError(host, f"it is no name of a machine ({error})", "Give its DNS name or IPv4 address") from None


def _provision(folder: Path, project: Project) -> None:
    """FLARE's part of all kits, by the party's name, and the authority's key."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        static = StaticFileBuilder(config_folder="config", scheme="grpc")
        builders = [WorkspaceBuilder(), static, CertBuilder(VALID_DAYS)]
        made = Provisioner(work, builders).provision(project, logger=logging.getLogger(__name__))
        if made.get(CtxKey.BUILD_ERROR):
            raise RuntimeError(f"FLARE could not make the kits: {'; '.join(made.get_errors())}")
        for party in Path(made.get_result_location()).iterdir():
            _trim(party)
            party.rename(folder / {ADMINISTRATOR: ADMIN}.get(party.name, party.name))
        (folder / SERVER / "fedbone").mkdir()
        (folder / WATCHDOG).rename(folder / SERVER / "fedbone" / "watchdog")
        _keep_authority(folder / AUTHORITY, made)


def _trim(party: Path) -> None:
    """FLARE's start scripts and samples: `fedbone deploy start` starts a party, in one way."""
    for pattern in ("startup/*.sh", "startup/*.ipynb", "local/*.default", "local/*.sample", "**/readme.txt"):
        for path in party.glob(pattern):
            path.unlink()


def _keep_authority(folder: Path, made: ProvisionContext) -> None:
    # FLARE's own state would keep the private keys of all parties too
    write_secret(folder / "rootCA.key", serialize_pri_key(made[CtxKey.ROOT_PRI_KEY]))
    write_atomic(folder / "rootCA.pem", serialize_cert(made[CtxKey.ROOT_CERT]))
    write_atomic(folder / "README.txt", AUTHORITY_NOTE.encode())


def _write_own(kit: Kit) -> None:
    """What server and hospitals have alike."""
    kit.write_settings()
    resources = server_resources(len(kit.hospitals)) if kit.role == "server" else hospital_resources()
    write_json(kit.folder / "local" / "resources.json", resources)
    write_json(kit.folder / "local" / "authorization.json", authorization())
    write_json(kit.folder / "local" / "log_config.json", log_config())
    audit = SigningKey.create()
    audit.save(kit.own / "audit.key")
    write_atomic(kit.own / "audit.pub", f"{audit.public.hex()}\n".encode())
    create_key(kit.own / "vault.key")


def _write_server(kit: Kit) -> None:
    """FLARE listens at the host that its own entry names: at this machine's loopback alone, where that is the host."""
    path = kit.folder / "startup" / "fed_server.json"
    content = json.loads(path.read_bytes())
    content["servers"][0]["service"]["target"] = f"{kit.host}:{kit.port}"
    write_json(path, content)


def _write_hospitals(server: Kit, kits: dict[str, Kit]) -> None:
    """The keys of each hospital, those that all hospitals share, its first policy, and what the server may know."""
    registry, sums, models = Registry(server.own / "registry.json"), generate(), secrets.token_bytes(KEY_BYTES)
    write_atomic(server.own / "sum.pub", sums.public.to_json().encode())
    for name, kit in kits.items():
        login = LoginKey.create(name)
        login.save(kit.own / "login.key")
        registry.add(login.public_entry())
        SigningKey.create().save(kit.own / "signing.key")
        write_secret(kit.own / "hospitals.key", models)
        sums.save(kit.own / "sum.key")
        write_json(kit.own / POLICY, FIRST_POLICY)


def _write_officers(folder: Path, kits: Iterable[Kit]) -> None:
    write_atomic(folder / "README.txt", OFFICERS_NOTE.encode())
    for kit in kits:
        key = SigningKey.create()
        key.save(folder / f"{kit.name}.key")
        write_atomic(kit.own / "consent.pub", f"{key.public.hex()}\n".encode())


def _write_about(server: Kit, kits: dict[str, Kit], hospitals: dict[str, Described]) -> None:
    """What everybody knows of each hospital, and what it may spend on DP-SGD; `deploy films` adds its patients."""
    entries = {}
    for name, kit in kits.items():
        of = hospitals[name]
        entries[name] = {**of.entry(), "signing_key": kit.signing_key().public.hex()}
        counted = {} if of.patients is None else {"patients": of.patients}
        write_json(kit.own / "privacy_budget.json", {**counted, **BUDGET})
    for kit in (server, *kits.values()):
        write_json(kit.own / DIRECTORY, {"hospitals": entries})
