"""A kit: the folder that one party of a deployment gets, and works in."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedbone.errors import UserError
from fedbone.files import write_json

if TYPE_CHECKING:  # a party's supervisor needs none of them, and lives for months
    from fedbone.custody.audit_log import AuditLog
    from fedbone.custody.identity import IdentityCheck, LoginKey
    from fedbone.custody.vault import Vault
    from fedbone.encryption.paillier_keys import PrivateKey, PublicKey
    from fedbone.encryption.signing import SigningKey

SERVER, ADMIN = "server", "administrator"  # the folders beside those of the hospitals
NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
DEPLOYMENT, DIRECTORY = "deployment.json", "directory.json"
BUDGET = {"patients": int, "dp_delta": float, "epsilon_limit": float}  # what a hospital spends on DP-SGD at most
SETTINGS = {"role": str, "name": str, "project": str, "host": str, "port": int, "hospitals": list}
REMEDY = "Name a party's folder in what `python -m fedbone deploy init` wrote, or copy it again"


@dataclass(frozen=True)
class Kit:
    """One party's settings; ``folder`` is FLARE's workspace, ``own`` in it is ours. Keys are read when used."""

    folder: Path
    role: str  # server | hospital
    name: str
    project: str
    host: str
    port: int
    hospitals: tuple[str, ...]
    data: Path | None  # the hospital's films; None until it has named them

    @classmethod
    def load(cls, folder: Path) -> Kit:
        """The kit in ``folder``. Raises UserError for what is not a kit, naming the file."""
        folder = Path(folder).resolve()
        path = folder / "fedbone" / "settings.json"
        values = read_json(path)
        expected = {**SETTINGS, "data": str} if values.get("role") == "hospital" else SETTINGS
        if {name: type(value) for name, value in values.items()} != expected:
            raise UserError(path, f"it has not the settings {', '.join(expected)}", REMEDY)
        kit = cls(folder, **{**values, "hospitals": tuple(values["hospitals"]), "data": _path(values)})
        kit._require_sense(path)
        return kit

    def _require_sense(self, path: Path) -> None:
        names = (self.name, *self.hospitals)
        if not self.hospitals or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
            raise UserError(path, "a name is not 1 to 40 small letters, digits, - and _", REMEDY)
        if self.role not in ("server", "hospital") or (self.name in self.hospitals) != (self.role == "hospital"):
            raise UserError(path, f"a {self.role} {self.name!r} has no part in this deployment", REMEDY)
        if not 0 < self.port < 65536:
            raise UserError(path, f"{self.port} is no port", REMEDY)

    def write_settings(self) -> Path:
        """Write what ``load`` reads."""
        values = {name: getattr(self, name) for name in SETTINGS}
        if self.role == "hospital":
            values["data"] = str(self.data or "")
        return write_json(self.own / "settings.json", values)

    @property
    def own(self) -> Path:
        """The part of the folder that is not FLARE's."""
        return self.folder / "fedbone"

    def run_folder(self, run: str) -> Path:
        """Where this party keeps what a run must find again after a restart."""
        return self.own / "runs" / run

    def films(self) -> Path:
        """The folder of the hospital's films. Raises UserError when the kit does not name it."""
        if self.data is None:
            remedy = "At a hospital, run `python -m fedbone deploy films` with its kit"
            raise UserError(self.folder, f"the kit of {self.name} has no films", remedy)
        return self.data

    def directory(self) -> dict[str, dict]:
        """What everybody knows of each hospital: its labels, its joints and its public signing key (hex)."""
        return read_directory(self.own, self.hospitals)

    def signing_keys(self) -> dict[str, bytes]:
        """The hospitals' public signing keys (32 bytes each)."""
        return {name: bytes.fromhex(entry["signing_key"]) for name, entry in self.directory().items()}

    def audit(self) -> AuditLog:
        """This party's audit log."""
        from fedbone.custody.audit_log import AuditLog
        from fedbone.encryption.signing import SigningKey

        return AuditLog(self.own / "audit.jsonl", SigningKey.load(self.own / "audit.key"), self.name)

    def audit_public(self) -> bytes:
        """(32) bytes: what the heads of the audit log are checked with."""
        return _public(self.own / "audit.pub")

    def consent_public(self) -> bytes:
        """(32) bytes: the key of the officer who signs for the use of a hospital's films."""
        return _public(self.own / "consent.pub")

    def vault(self) -> Vault:
        """This party's vault."""
        from fedbone.custody.vault import Vault

        return Vault.from_key_file(self.own / "vault.key")

    def identity_check(self) -> IdentityCheck:
        """What the server checks logins and updates with."""
        from fedbone.custody.identity import IdentityCheck, Registry

        return IdentityCheck(Registry(self.own / "registry.json"), self.project, self.own / "used_ids.json")

    def login_key(self) -> LoginKey:
        """The key that a hospital logs in with and signs updates with."""
        from fedbone.custody.identity import LoginKey

        return LoginKey.load(self.own / "login.key")

    def signing_key(self) -> SigningKey:
        """The key that a hospital signs its part of an encrypted sum with."""
        from fedbone.encryption.signing import SigningKey

        return SigningKey.load(self.own / "signing.key")

    def sum_key(self) -> PrivateKey | PublicKey:
        """The Paillier key of encrypted sums: the hospitals hold the private one, the server the public one."""
        from fedbone.encryption.paillier_keys import PrivateKey, PublicKey

        if self.role == "hospital":
            return PrivateKey.load(self.own / "sum.key")
        return PublicKey.from_json((self.own / "sum.pub").read_text())

    def privacy_budget(self) -> dict[str, float]:
        """How many patients a hospital says it has, and what DP-SGD may spend on them: see ``BUDGET``."""
        path = self.own / "privacy_budget.json"
        values = read_json(path)
        if {name: type(value) for name, value in values.items()} != BUDGET:
            remedy = "`python -m fedbone deploy films` counts the patients; its staff write the others"
            raise UserError(path, f"it does not hold {', '.join(BUDGET)}", remedy)
        return values


def server_kit(folder: Path) -> Kit:
    """The server's kit: ``folder`` itself, or in what ``deploy init`` wrote. Raises UserError for another party's."""
    kit = Kit.load(folder / SERVER if (folder / DEPLOYMENT).exists() else folder)
    if kit.role != "server":
        raise UserError(folder, f"it is the kit of {kit.name}", "Give the server's folder, on its own machine")
    return kit


def hospital_kit(folder: Path) -> Kit:
    """A hospital's kit. Raises UserError for the server's."""
    kit = Kit.load(folder)
    if kit.role != "hospital":
        raise UserError(folder, "it is no hospital's kit", "Give a hospital's folder, on its own machine")
    return kit


def read_json(path: Path) -> dict:
    """The JSON object in ``path``. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(path, f"it cannot be read ({error.strerror})", REMEDY) from None
    except (ValueError, RecursionError):
        raise UserError(path, "it is not JSON", REMEDY) from None
    if not isinstance(content, dict):
        raise UserError(path, "it is not a JSON object", REMEDY)
    return content


def read_directory(folder: Path, hospitals: tuple[str, ...]) -> dict[str, dict]:
    """By hospital, its labels, its joints and its public signing key (hex): ``directory.json`` in ``folder``."""
    path = Path(folder) / DIRECTORY
    entries = read_json(path).get("hospitals")
    if not isinstance(entries, dict) or tuple(entries) != hospitals:
        raise UserError(path, "it does not list the hospitals of this deployment", REMEDY)
    return entries


def names_of(kits: Path) -> tuple[str, ...]:
    """The hospitals of a folder that ``deploy init`` wrote. Raises UserError for another."""
    names = read_json(Path(kits) / DEPLOYMENT).get("hospitals")
    if not isinstance(names, list) or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise UserError(Path(kits) / DEPLOYMENT, "it does not list the hospitals", REMEDY)
    return tuple(names)


def load_parties(kits: Path) -> list[Kit]:
    """Server and hospitals of a folder that ``deploy init`` wrote, the server first. Raises UserError for another."""
    return [Kit.load(Path(kits) / name) for name in (SERVER, *names_of(kits))]


def _path(values: dict) -> Path | None:
    return Path(values["data"]) if values.get("data") else None


def _public(path: Path) -> bytes:
    try:
        public = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        public = b""
    if len(public) != 32:
        raise UserError(path, "it is not a public key of 64 hexadecimal digits", REMEDY)
    return public
