import importlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from nvflare.apis.fl_constant import AdminCommandNames, FLContextKey
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.fuel.sec.authz import Authorizer, AuthzContext, Person
from nvflare.security.security import COMMAND_CATEGORIES, FLAuthorizer

from fedbone.config import COARSEST_PX, REPOSITORY, SAMPLE
from fedbone.custody.identity import Registry
from fedbone.encryption.paillier_keys import PrivateKey, PublicKey, insecure_test_key
from fedbone.encryption.signing import SigningKey, verify
from fedbone.engines.flare import kits as module
from fedbone.engines.flare import site_policy
from fedbone.engines.flare.components import HospitalJobs, KitStorage, ServerJobs
from fedbone.engines.flare.kit import Kit, load_parties
from fedbone.errors import UserError
from fedbone.imaging.folder import load_hospitals
from tests.kits import JOINTS, films, make_kits

NAMES = ("north", "south", "far_west-2")
COMMON = """
    startup/rootCA.pem local/resources.json local/authorization.json local/log_config.json fedbone/settings.json
    fedbone/directory.json fedbone/audit.key fedbone/audit.pub fedbone/vault.key
""".split()
HOSPITAL = """
    startup/client.crt startup/client.key startup/fed_client.json fedbone/login.key fedbone/signing.key fedbone/sum.key
    fedbone/hospitals.key fedbone/consent.pub fedbone/privacy_budget.json fedbone/policy.json
""".split()
SERVER = """
    startup/server.crt startup/server.key startup/fed_server.json fedbone/sum.pub fedbone/registry.json
    fedbone/registry.json.lock fedbone/watchdog/startup/client.crt fedbone/watchdog/startup/client.key
    fedbone/watchdog/startup/fed_admin.json fedbone/watchdog/startup/rootCA.pem
""".split()
ADMINISTRATOR = "startup/client.crt startup/client.key startup/fed_admin.json startup/rootCA.pem".split()


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("with space") / "my kits", NAMES, "fl.example.org", 8123)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def public_of(key: Path) -> bytes:
    public = load_pem_private_key(key.read_bytes(), None).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_every_party_gets_its_files_and_no_others(kits):
    assert {path.name for path in kits.iterdir()} == {
        "server", "administrator", "authority", "officers", "deployment.json", "directory.json", *NAMES,
    }  # fmt: skip
    assert files(kits / "server") == {*COMMON, *SERVER}
    assert files(kits / "administrator") == {*ADMINISTRATOR}
    for name in NAMES:
        assert files(kits / name) == {*COMMON, *HOSPITAL}


def test_deployment_file_is_public_and_complete(kits):
    public = json.loads((kits / "deployment.json").read_bytes())
    assert re.fullmatch(r"fedbone-[0-9a-f]{8}", public.pop("project"))
    assert public == {"host": "fl.example.org", "port": 8123, "hospitals": list(NAMES)}


def test_no_other_account_can_look_into_a_kit(kits):
    assert kits.stat().st_mode & 0o777 == 0o700
    for path in kits.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_only_the_authority_folder_holds_the_authority_key(kits):
    key = kits / "authority" / "rootCA.key"
    own = public_of(key)
    body = "".join(key.read_text().splitlines()[1:-1])
    secret = [body[start : start + 48] for start in range(0, len(body) - 48, 64)]
    root = certificate(kits / "authority" / "rootCA.pem").public_key()
    assert root.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == own
    for path in kits.rglob("*"):
        if path.is_file() and path != key:
            text = path.read_bytes().decode(errors="replace").replace("\n", "").replace("\\n", "")
            assert not any(part in text for part in secret[1:]), path
    assert not [path for path in kits.rglob("*") if path.name == "cert.json"], "FLARE's state holds every key"


def test_every_private_key_is_in_one_place_but_those_that_hospitals_share(kits):
    places: dict[bytes, list[str]] = {}
    for path in kits.rglob("*.key"):
        places.setdefault(path.read_bytes(), []).append(path.relative_to(kits).as_posix())
    shared = [sorted(where) for where in places.values() if len(where) > 1]
    assert sorted(shared) == sorted(
        sorted(f"{name}/fedbone/{key}.key" for name in NAMES) for key in ("hospitals", "sum")
    )


def test_server_holds_no_secret_of_a_hospital(kits):
    theirs = {path.read_bytes() for name in NAMES for path in (kits / name).rglob("*.key")}
    for path in (kits / "server").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content or secret.hex().encode() in content for secret in theirs), path


def test_kits_do_not_hold_the_officers_keys(kits):
    for name in NAMES:
        officer = SigningKey.load(kits / "officers" / f"{name}.key")
        assert Kit.load(kits / name).consent_public() == officer.public
        raw = (kits / "officers" / f"{name}.key").read_bytes()
        held = [path for path in (kits / name).rglob("*") if path.is_file() and raw in path.read_bytes()]
        assert not held


@pytest.mark.parametrize(
    ("party", "base", "subject"),
    [
        ("server", "server/startup/server", "server"),
        ("north", "north/startup/client", "north"),
        ("administrator", "administrator/startup/client", "admin@fedbone.org"),
        ("watchdog", "server/fedbone/watchdog/startup/client", "watchdog@fedbone.org"),
    ],
)
def test_certificates_are_the_authoritys_and_fit_their_keys(kits, party, base, subject):
    of, root = certificate(kits / f"{base}.crt"), certificate(kits / "authority" / "rootCA.pem")
    of.verify_directly_issued_by(root)
    assert of.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value == subject
    public = of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert public == public_of(kits / f"{base}.key")
    assert (kits / base).with_name("rootCA.pem").read_bytes() == (kits / "authority" / "rootCA.pem").read_bytes()
    now = datetime.now(UTC)
    assert of.not_valid_before_utc <= now < of.not_valid_after_utc <= now + timedelta(days=module.VALID_DAYS)
    assert of.not_valid_after_utc > now + timedelta(days=module.VALID_DAYS - 1)


def test_server_certificate_names_host_and_loopback(kits):
    names = certificate(kits / "server/startup/server.crt").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(address) for address in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_flare_files_name_the_server_and_demand_mutual_tls(kits):
    server = json.loads((kits / "server/startup/fed_server.json").read_bytes())["servers"][0]
    assert server["service"] == {"target": "fl.example.org:8123", "scheme": "grpc"}
    assert (server["admin_port"], server["connection_security"]) == (8123, "mtls")
    client = json.loads((kits / "north/startup/fed_client.json").read_bytes())
    assert client["servers"][0]["service"] == {"target": "fl.example.org:8123", "scheme": "grpc"}
    assert client["client"]["connection_security"] == "mtls"
    admin = json.loads((kits / "administrator/startup/fed_admin.json").read_bytes())["admin"]
    assert (admin["host"], admin["port"], admin["connection_security"]) == ("fl.example.org", 8123, "mtls")


def test_loopback_deployment_listens_at_loopback_alone(tmp_path):
    """FLARE binds to all addresses unless its own target is a loopback name."""
    from nvflare.private.fed.server.fed_server import _is_loopback_host

    kits = make_kits(tmp_path / "kits")
    target = json.loads((kits / "server/startup/fed_server.json").read_bytes())["servers"][0]["service"]["target"]
    host, port = target.split(":")
    assert _is_loopback_host(host)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(port)))  # chosen free, and left free


def test_keys_of_a_kit_work_together(kits):
    server, north = Kit.load(kits / "server"), Kit.load(kits / "north")
    registry = Registry(server.own / "registry.json")
    assert registry.entry(north.login_key().kid)["site"] == "north"
    assert all(registry.active(name) for name in NAMES)
    assert server.signing_keys() == north.signing_keys() == {n: Kit.load(kits / n).signing_key().public for n in NAMES}
    audit = SigningKey.load(north.own / "audit.key")
    assert verify(north.audit_public(), "test", b"entry", audit.sign("test", b"entry"))
    assert north.audit_public() != server.audit_public()
    assert north.privacy_budget() == {"patients": 4, "dp_delta": 1e-5, "epsilon_limit": 8.0}
    assert north.run_folder("first") == north.own / "runs" / "first"
    assert north.vault() is not None
    private = PrivateKey.load(north.own / "sum.key", least_bits=512)
    assert PublicKey.from_json((server.own / "sum.pub").read_text(), least_bits=512).id == private.public.id


def test_directory_is_the_same_everywhere_and_says_who_labels_what(kits):
    entries = [Kit.load(kits / name).directory() for name in ("server", *NAMES)]
    assert all(entry == entries[0] for entry in entries)
    assert [entry["labels"] for entry in entries[0].values()] == [list(JOINTS[:n]) for n in (1, 2, 3)]
    assert all(entry["joints"] == list(JOINTS) for entry in entries[0].values())


def test_login_with_the_kits_key_is_accepted_and_anothers_is_not(kits, tmp_path):
    from fedbone.custody.identity import login_token

    moved = shutil.copytree(kits / "server", tmp_path / "server")
    server, north = Kit.load(moved), Kit.load(kits / "north")
    token = login_token(north.login_key(), north.project)
    server.identity_check().login(token, "north")
    with pytest.raises(UserError, match="login of south"):
        server.identity_check().login(login_token(north.login_key(), north.project), "south")


def test_kits_can_be_moved(tmp_path):
    made = make_kits(tmp_path / "first place")
    moved = made.rename(tmp_path / "second place")
    assert [kit.folder for kit in load_parties(moved)] == [moved / name for name in ("server", "north", "south")]
    assert Kit.load(moved / "north").data == tmp_path / "films" / "north"
    held = [path for path in moved.rglob("*") if path.is_file() and b"first place" in path.read_bytes()]
    assert not held, "the old place is written in a kit"


def test_a_kit_finds_the_films_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_kits(Path("kits"))
    assert Kit.load(Path("kits/north")).data == tmp_path / "films" / "north"
    assert Kit.load(Path("kits/north")).folder == tmp_path / "kits" / "north"


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "broken link"])
def test_kits_are_never_overwritten(tmp_path, kind):
    out = tmp_path / "kits"
    if kind == "broken link":
        out.symlink_to(tmp_path / "nowhere")
    elif kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        if kind == "folder":
            (out / "mine").write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="never overwritten"):
        make_kits(out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "kits")

    monkeypatch.setattr(module, "_write_about", fail)
    with pytest.raises(OSError, match="No space"):
        make_kits(tmp_path / "kits")
    assert not list(tmp_path.iterdir())


def test_a_failure_of_flare_is_no_silent_success(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no entropy")

    monkeypatch.setattr(module.CertBuilder, "get_pri_key_cert", fail)
    with pytest.raises(RuntimeError, match="no entropy"):
        make_kits(tmp_path / "kits")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["server", "administrator", "authority", "officers", "North", "9north", "a/b", "..", "", "a" * 41, "a b"]
)
def test_names_that_no_party_can_have_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="name"):
        make_kits(tmp_path / "kits", (name,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["two words", "::1", "a:80", "", "-x", "x/../y"])
def test_hosts_that_cannot_be_are_refused(tmp_path, host):
    with pytest.raises(UserError, match="no name of a machine"):
        make_kits(tmp_path / "kits", host=host)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_ports_that_do_not_exist_are_refused(tmp_path, port):
    with pytest.raises(UserError, match=f"port {port}"):
        make_kits(tmp_path / "kits", port=port)


GOOD = {"role": "hospital", "name": "north", "project": "fedbone-0", "host": "h", "port": 8002, "hospitals": ["north"]}
BROKEN = {
    "missing": None,
    "not JSON": b"{",
    "no object": b"[]",
    "not UTF-8": b"\xff\xfe\x00",
    "no data": json.dumps(GOOD).encode(),
    "another entry": json.dumps({**GOOD, "data": "/d", "more": 1}).encode(),
    "port is text": json.dumps({**GOOD, "data": "/d", "port": "8002"}).encode(),
    "port is true": json.dumps({**GOOD, "data": "/d", "port": True}).encode(),
    "port 0": json.dumps({**GOOD, "data": "/d", "port": 0}).encode(),
    "port 65536": json.dumps({**GOOD, "data": "/d", "port": 65536}).encode(),
    "not among the hospitals": json.dumps({**GOOD, "data": "/d", "name": "south"}).encode(),
    "no hospitals": json.dumps({**GOOD, "data": "/d", "hospitals": []}).encode(),
    "a server without hospitals": json.dumps({**GOOD, "role": "server", "name": "server", "hospitals": []}).encode(),
    "name with a space": json.dumps({**GOOD, "data": "/d", "name": "north x", "hospitals": ["north x"]}).encode(),
    "hospital is a number": json.dumps({**GOOD, "data": "/d", "hospitals": ["north", 3]}).encode(),
    "name with a slash": json.dumps({**GOOD, "data": "/d", "name": "../x", "hospitals": ["../x"]}).encode(),
    "another role": json.dumps({**GOOD, "role": "guest"}).encode(),
    "a server named as a hospital": json.dumps({**GOOD, "role": "server"}).encode(),
    "role is a list": json.dumps({**GOOD, "role": ["server"]}).encode(),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_not_a_kit_is_refused_by_name(tmp_path, content):
    (tmp_path / "fedbone").mkdir()
    path = tmp_path / "fedbone" / "settings.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        Kit.load(tmp_path)


@pytest.mark.parametrize("content", [None, b"{}", b'{"hospitals": ["../x"]}', b'{"hospitals": "north"}', b"null"])
def test_what_is_no_folder_of_kits_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "deployment.json").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "deployment.json"))):
        load_parties(tmp_path)


def test_settings_come_back_as_they_were(kits):
    north = Kit.load(kits / "north")
    assert (north.role, north.name, north.host, north.port) == ("hospital", "north", "fl.example.org", 8123)
    assert north.hospitals == NAMES
    assert Kit.load(north.write_settings().parents[1]) == north
    assert Kit.load(kits / "server").data is None


@pytest.mark.parametrize("name", ["audit", "consent"])
@pytest.mark.parametrize("content", ["", "ab" * 31, "zz" * 32, None])
def test_damaged_public_keys_are_refused(kits, tmp_path, name, content):
    kit = Kit.load(shutil.copytree(kits / "north", tmp_path / "north"))
    path = kit.own / f"{name}.pub"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=f"{name}.pub"):
        getattr(kit, f"{name}_public")()


@pytest.mark.parametrize("hospitals", [{}, {"south": {}}, []])
def test_directory_of_another_deployment_is_refused(kits, tmp_path, hospitals):
    kit = Kit.load(shutil.copytree(kits / "north", tmp_path / "north"))
    (kit.own / "directory.json").write_text(json.dumps({"hospitals": hospitals}))
    with pytest.raises(UserError, match=r"directory\.json"):
        kit.signing_keys()


@pytest.mark.parametrize("budget", [{}, {"patients": "4", "dp_delta": 1e-5, "epsilon_limit": 8.0}])
def test_damaged_privacy_budget_is_refused(kits, tmp_path, budget):
    kit = Kit.load(shutil.copytree(kits / "north", tmp_path / "north"))
    (kit.own / "privacy_budget.json").write_text(json.dumps(budget))
    with pytest.raises(UserError, match=r"privacy_budget\.json"):
        kit.privacy_budget()


COMMANDS = sorted({value for name, value in vars(AdminCommandNames).items() if name.isupper()})
ADMINISTRATOR_MAY = "submit_job abort_job delete_job list_jobs get_job_meta check_status admin_check_status shutdown"
WATCHDOG_MAY = "submit_job abort_job delete_job list_jobs get_job_meta check_status"
MAY = {"project_admin": ADMINISTRATOR_MAY, "lead": WATCHDOG_MAY, "org_admin": "", "member": ""}


@pytest.mark.parametrize("role", MAY)
def test_flare_grants_each_role_these_rights_and_no_others(kits, role):
    """FLARE's own authorizer, over all commands that it knows; the policy is the same at all parties."""
    for party in ("server", *NAMES):
        policy = json.loads((kits / party / "local/authorization.json").read_bytes())
        authorizer: Authorizer = FLAuthorizer("fedbone", policy)
        person = Person("someone@fedbone.org", "fedbone", role)
        rights = {*COMMANDS, *COMMAND_CATEGORIES, "byoc", "server-predeployed-flwr", "anything"}
        granted = {right for right in rights if authorizer.authorize(AuthzContext(right, person, person))[0]}
        assert granted == set(MAY[role].split())


@pytest.mark.parametrize("party", ["server", "north"])
def test_jobs_name_no_class_but_ours_and_are_checked(kits, party):
    resources = json.loads((kits / party / "local/resources.json").read_bytes())
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["class_allow_list"] == ["fedbone.engines.flare."]
    validator = {"server": "admission.ServerValidator", "north": "admission.HospitalValidator"}[party]
    assert resources["app_validator"] == {"path": f"fedbone.engines.flare.{validator}", "args": {}}
    parts = {part["id"]: part["path"] for part in resources["components"]}
    ours = {"login_gate": "security.LoginGate", "rejoin": "rejoin.Rejoin"}
    for name, path in (ours if party == "server" else {"login_sender": "security.LoginSender"}).items():
        assert parts[name] == f"fedbone.engines.flare.{path}"
    assert not [path for path in parts.values() if "log_" in path], "logs may hold what must not leave a hospital"


@pytest.mark.parametrize(
    "resources", [site_policy.server_resources(3), site_policy.hospital_resources()], ids=["s", "h"]
)
def test_every_named_part_exists(resources):
    for path in re.findall(r'"path": "([^"]+)"', json.dumps(resources)):
        name, _, part = path.rpartition(".")
        assert hasattr(importlib.import_module(name), part), path


def test_nothing_of_the_server_is_kept_outside_its_kit():
    texts = re.findall(r'"([^"]*)"', json.dumps(site_policy.server_resources(3)))
    assert [text for text in texts if text.startswith(("/", "~")) or ".." in text] == ["/"], "a root within a store"


def test_kit_storage_follows_the_kit(tmp_path, monkeypatch):
    (tmp_path / "a kit").mkdir()
    monkeypatch.chdir(tmp_path / "a kit")
    store = KitStorage("jobs/snapshots")
    store.create_object("/job", b"content", {"a": 1})
    assert (tmp_path / "a kit/jobs/snapshots/job/data").read_bytes() == b"content"
    assert files(tmp_path) == {"a kit/jobs/snapshots/job/data", "a kit/jobs/snapshots/job/meta"}


@pytest.mark.parametrize("launcher", [HospitalJobs, ServerJobs])
def test_job_command_survives_spaces_and_quotes(monkeypatch, launcher):
    monkeypatch.setattr(sys, "executable", "/my repository/it's/python")
    values = {
        JobProcessArgs.EXE_MODULE: ("-m", "some.module"),
        JobProcessArgs.WORKSPACE: ("-m", "."),
        JobProcessArgs.APP_ROOT: ("-r", "/my kits/$HOME; rm -rf x/app"),
        JobProcessArgs.STARTUP_DIR: ("-w", "./start up"),
        JobProcessArgs.JOB_ID: ("-n", 17),
        JobProcessArgs.AUTH_TOKEN: ("-t", "secret"),
        JobProcessArgs.OPTIONS: ("--set", " secure_train=true org=fedbone"),
    }
    context = SimpleNamespace(get_prop=lambda name: {FLContextKey.JOB_PROCESS_ARGS: values}[name])
    command = shlex.split(launcher().get_command({}, context))
    assert command[:4] == ["/my repository/it's/python", "-u", "-m", "some.module"]
    place = ["-r", "/my kits/$HOME; rm -rf x/app"] if launcher is ServerJobs else ["-w", "./start up"]
    assert " ".join(place) in " ".join(command)
    assert place[1] in command
    assert command[-3:] == ["--set", "secure_train=true", "org=fedbone"]
    assert "17" in command
    assert "secret" not in " ".join(command)


def test_jobs_start_as_flare_would_start_them(monkeypatch):
    """The same words as FLARE's own launchers, where nothing needs quotes."""
    from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
    from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

    names = [name for name in vars(JobProcessArgs) if name.isupper()]
    values = {getattr(JobProcessArgs, name): (f"--{name.lower()}", f"value_of_{name}") for name in names}
    context = SimpleNamespace(get_prop=lambda _: values)
    for ours, theirs in ((HospitalJobs, ClientProcessJobLauncher), (ServerJobs, ServerProcessJobLauncher)):
        words = shlex.split(ours().get_command({}, context))
        assert [word for word in words if word != "-u"] == theirs().get_command({}, context).split()


def test_log_config_is_taken_by_logging_and_small(kits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = json.loads((kits / "north/local/log_config.json").read_bytes())
    code = (
        "import json, logging.config, sys; logging.config.dictConfig(json.loads(sys.stdin.read())); logging.info('x')"
    )
    subprocess.run([sys.executable, "-c", code], input=json.dumps(config), text=True, check=True)
    sizes = [
        handler["maxBytes"] * handler["backupCount"] for handler in config["handlers"].values() if "maxBytes" in handler
    ]
    assert files(tmp_path) == {"log.txt", "error_log.txt"}
    assert sum(sizes) <= 20_000_000


def init(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fedbone", "deploy", "init", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.slow
def test_init_command_takes_the_sample(tmp_path):
    done = init("--hospitals", 3, "--out", tmp_path / "my kits")
    assert done.returncode == 0, done.stderr
    assert f"{module.VALID_DAYS} days" in done.stdout
    assert "authority" in done.stdout
    server, *hospitals = load_parties(tmp_path / "my kits")
    found, _ = load_hospitals(SAMPLE, COARSEST_PX)
    for kit, of in zip(hospitals, found, strict=True):
        entry = server.directory()[kit.name]
        assert (kit.name, kit.data) == (of.name, SAMPLE / of.name)
        assert np.array_equal(np.isin(of.joints, entry["labels"]), of.labelled)
        assert tuple(entry["joints"]) == of.joints
        assert kit.privacy_budget()["patients"] == len(set(of.train.patients))
        assert kit.sum_key().public.bits >= 3072
    assert server.sum_key().id == hospitals[0].sum_key().public.id
    again = init("--out", tmp_path / "my kits")
    assert again.returncode == 2
    assert "never overwritten" in again.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hospitals", "4"],
        ["--names", "a,b"],
        ["--names", "a,a,b"],
        ["--names", "a,b,c,d"],
        ["--hospitals", "2", "--names", "a,b,c"],
        ["--names", "a,B,c"],
    ],
    ids=" ".join,
)
def test_init_command_refuses_numbers_and_names_that_do_not_fit(tmp_path, arguments, monkeypatch, capsys):
    from fedbone.__main__ import main

    found = [films(f"hospital_{letter}", 1) for letter in "abc"]
    monkeypatch.setattr("fedbone.imaging.folder.load_hospitals", lambda *_, **__: (found, []))
    assert main(["deploy", "init", "--out", str(tmp_path / "kits"), *arguments]) == 2
    assert "name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_init_command_gives_names_in_order(tmp_path, monkeypatch):
    from fedbone.__main__ import main

    found = [films(f"hospital_{letter}", 1) for letter in "abc"]
    monkeypatch.setattr("fedbone.imaging.folder.load_hospitals", lambda *_, **__: (found, []))
    monkeypatch.setattr(module, "generate", insecure_test_key)
    out = tmp_path / "kits"
    assert main(["deploy", "init", "--out", str(out), "--names", "north,south", "--hospitals", "2", "--port", "9"]) == 0
    assert {kit.name: kit.data for kit in load_parties(out)[1:]} == {
        "north": SAMPLE / "hospital_a", "south": SAMPLE / "hospital_b",
    }  # fmt: skip
    assert {kit.port for kit in load_parties(out)} == {9}
