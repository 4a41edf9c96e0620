"""Probes of the compliance check against the deployment of a KITS folder, which has to run on this machine.

What is tried with a copy of the server's registry is said to be: the running deployment notes nothing of it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedbone.custody import tls_probe
from fedbone.custody.compliance import Evidence
from fedbone.custody.identity import IdentityCheck, login_token, sign_update
from fedbone.custody.registry import LoginKey, Registry
from fedbone.custody.tls_probe import Credentials
from fedbone.engines.flare import disk_probes, record_probes, round_probes
from fedbone.engines.flare.intrusion import forged_registration
from fedbone.engines.flare.kit import Kit, load_parties
from fedbone.engines.flare.policy_probe import of_running_parties
from fedbone.errors import UserError

COPY = "Tried with this installation's code, on copies of the server's registry and its used token ids"
REASON = "lost laptop (a trial, on a copy)"
HOUR_S = 3600.0


def probes_of(kits: Path, *, intrude: bool = False, also: Sequence[Path] = ()) -> dict[str, Callable[[], Evidence]]:
    """By name, what ``run_checks`` asks. Raises UserError for a folder that is not of ``deploy init``.

    intrude: also try to register at the running server with a forged login key; also: more folders to search for models
    in clear.
    """
    kits = Path(kits).resolve()
    parties = load_parties(kits)
    server, hospital = parties[:2]
    address, own = (server.host, server.port), credentials(hospital)

    def on_copies(probe: Callable[..., Evidence], **options: bool) -> Callable[[], Evidence]:
        return partial(of_running_parties, parties, partial(probe, server, hospital, **options))

    return {
        "tls_versions": partial(tls_probe.tls_versions, address, own),
        "plain_text_refused": partial(tls_probe.plain_text_refused, address),
        "server_certificate": partial(tls_probe.server_certificate_checked, address, own),
        "no_certificate_refused": partial(tls_probe.no_certificate_refused, address, own),
        "foreign_certificate_refused": partial(tls_probe.foreign_certificate_refused, address, own),
        "login_forged_refused": on_copies(login_forged_refused, intrude=intrude),
        "login_replayed_refused": on_copies(login_replayed_refused),
        "update_edited_refused": on_copies(update_edited_refused),
        "revoked_key_refused": on_copies(revoked_key_refused),
        "storage_sealed": partial(disk_probes.storage_sealed, kits, parties, also),
        "key_files_private": partial(disk_probes.key_files_private, kits, parties),
        "server_holds_no_private_key": partial(disk_probes.server_holds_no_private_key, parties),
        "audit_chain": partial(record_probes.audit_chain, parties),
        "audit_complete": partial(record_probes.audit_complete, parties),
        "consent": partial(record_probes.consent, parties),
        "privacy_budget": partial(record_probes.privacy_budget, parties),
        "minimum_hospitals": partial(round_probes.minimum_hospitals, parties),
        "images_never_sent": partial(round_probes.images_never_sent, parties),
    }


def credentials(hospital: Kit) -> Credentials:
    """What a hospital's kit has for TLS."""
    startup = hospital.folder / "startup"
    return Credentials(startup / "rootCA.pem", startup / "client.crt", startup / "client.key")


def login_forged_refused(server: Kit, hospital: Kit, *, intrude: bool) -> Evidence:
    """No login without a token, by a strange key or after its time. Raises UserError for one that was accepted."""
    site, key, stranger = hospital.name, hospital.login_key(), LoginKey.create(hospital.name)
    tokens = {
        "no token": None,
        "signed with another key": login_token(stranger, server.project),
        "expired": login_token(key, server.project, now=time.time() - HOUR_S),
        "for another deployment": login_token(key, f"{server.project}-other"),
    }
    with _scratch(server) as check:
        found = {what: _refusal(f"login {what}", check.login, token, site) for what, token in tokens.items()}
        _require_accepted(lambda: check.login(login_token(key, server.project), site))
    text = f"{COPY}: {len(found)} false logins were refused, and a genuine one was accepted."
    if not intrude:
        return Evidence(f"{text} Not tried over the network (--intrude does).", found)
    found["over the network"] = forged_registration(server, hospital)
    over = "So was one over the network, with the hospital's certificate and a forged login key: no hospital got in."
    return Evidence(f"{text} {over}", found)


def login_replayed_refused(server: Kit, hospital: Kit) -> Evidence:
    """A token lets in once, also after a restart. Raises UserError otherwise."""
    site, token = hospital.name, login_token(hospital.login_key(), server.project)
    with _scratch(server) as check:
        _require_accepted(lambda: check.login(token, site))
        found = {"again": _refusal("a used login token", check.login, token, site)}
        restarted = IdentityCheck(check.registry, check.audience, check.used)
        found["again, after a restart"] = _refusal("a used login token", restarted.login, token, site)
    return Evidence(f"{COPY}: a login token was accepted once, and refused twice. Not tried over the network.", found)


def update_edited_refused(server: Kit, hospital: Kit) -> Evidence:
    """An update's token holds for its bytes, run and round. Raises UserError for one that was accepted for others."""
    key, (run, index, body) = hospital.login_key(), ("a-run", 3, b"the bytes of an update")
    digest, edited = (hashlib.sha256(content).hexdigest() for content in (body, body + b"!"))
    cases = {
        "bytes changed": (run, index, edited),
        "for the next round": (run, index + 1, digest),
        "for another run": ("b-run", index, digest),
    }
    with _scratch(server) as check:

        def sent(*place: object) -> None:
            check.update(sign_update(key, server.project, run, index, digest), hospital.name, *place)

        found = {what: _refusal(f"an update, {what},", sent, *place) for what, place in cases.items()}
        stranger = sign_update(LoginKey.create(hospital.name), server.project, run, index, digest)
        found["signed by a stranger"] = _refusal(
            "an update of a stranger", check.update, stranger, hospital.name, run, index, digest
        )
        _require_accepted(lambda: sent(run, index, digest))
    text = f"{COPY}: {len(found)} altered updates were refused, and the unaltered one was accepted."
    return Evidence(f"{text} Not tried over the network.", found)


def revoked_key_refused(server: Kit, hospital: Kit) -> Evidence:
    """A key that is revoked lets in nobody from then on. Raises UserError when it does."""
    site, key = hospital.name, hospital.login_key()
    with _scratch(server) as check:
        _require_accepted(lambda: check.login(login_token(key, server.project), site))
        check.registry.revoke(key.kid, REASON)
        fresh = login_token(key, server.project)
        found = {"after revoking": _refusal("a login with a revoked key", check.login, fresh, site)}
        if check.registry.active(site):
            raise UserError(site, "its revoked key still counts as active", "Look at registry.json")
    text = f"{COPY}: a key was accepted, revoked, and refused by the same check, which was not made anew."
    return Evidence(f"{text} No key of the running server was revoked.", found)


@contextmanager
def _scratch(server: Kit) -> Iterator[IdentityCheck]:
    """The server's check on copies of its files."""
    check = server.identity_check()
    with tempfile.TemporaryDirectory(prefix="fedbone_check_") as folder:
        registry, used = Path(folder, "registry.json"), Path(folder, "used_ids.json")
        shutil.copy(check.registry.path, registry)
        if check.used.exists():
            shutil.copy(check.used, used)
        yield replace(check, registry=Registry(registry), used=used)


def _refusal(what: str, attempt: Callable[..., None], *arguments: object) -> str:
    """Why it was refused. Raises UserError when it was not."""
    try:
        attempt(*arguments)
    except UserError as error:
        return f"refused: {error.problem}"
    raise UserError(what, "it was accepted", "Stop the server, and find out why")


def _require_accepted(genuine: Callable[[], None]) -> None:
    """Otherwise a check that refuses everybody would look like a good one."""
    try:
        genuine()
    except UserError as error:
        problem = f"a genuine message is refused too ({error.problem}), so a refusal proves nothing"
        raise UserError(error.where, problem, "Mend that first, then check again") from None
