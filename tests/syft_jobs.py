"""Jobs for syft hospitals that need neither torch nor syft, and everything of them that the coordinator could find."""

from __future__ import annotations

import base64
import binascii
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedbone.engines.owner import Owner
from fedbone.engines.release import Numbers, Policy
from fedbone.engines.review import Submission
from fedbone.engines.syft_workers import UPDATE, Datasites, update_policy
from fedbone.federation.rounds import initial_vector
from tests.helpers import JOINTS, dot_hospital, tiny_profile

PROFILE = tiny_profile()
VECTOR = initial_vector(PROFILE, len(JOINTS), 0)
TRAINING: Policy = update_policy(len(VECTOR), len(JOINTS))
COUNTS: Policy = {"count.json": Numbers(("films",))}
MARK = "A-WORD-OF-THE-HOSPITAL"  # in no job's source, which the coordinator wrote itself
SAYS_MARK = "MARK = '-'.join('A WORD OF THE HOSPITAL'.split())\n"
COUNT = "import json\njson.dump({'films': 4}, open('outputs/count.json', 'w'))\n"
LEAVES_A_TRACE = "open('outputs/ran', 'w').close()\nprint('it ran')\n"
UPDATES = f"""
import pathlib, sys, time
import numpy as np
from safetensors.numpy import save_file
update = {{'delta': np.full({len(VECTOR)}, 1e-3, np.float32), 'labelled_joints': np.ones({len(JOINTS)}, bool)}}
outputs = pathlib.Path('outputs')
"""
SAVES = f"save_file(update, outputs / '{UPDATE}', {{'note': MARK}})\n"
OTHER_FILES = "left other files than allowed"
# a line of a job that says MARK wherever it can -> what its owner tells the coordinator
FAULTS = {
    "raises": ("raise ValueError(MARK)", "raised an error"),
    "ends with an exit code": (SAVES + "raise SystemExit(3)", "raised an error"),
    "crashes": (SAVES + "import ctypes\nctypes.string_at(0)", "was killed"),
    "hangs": (SAVES + "time.sleep(1000)", "took longer than allowed"),
    "prints 100 MB": (SAVES + "for _ in range(100):\n    print(MARK * 50_000)", "printed more than allowed"),
    "nan": ("update['delta'][7] = np.nan\n" + SAVES, f"{UPDATE}: delta holds NaN or infinity"),
    "wrong shape": (
        "update['delta'] = update['delta'][1:]\n" + SAVES,
        f"{UPDATE}: delta is not float32 of shape ({len(VECTOR)},)",
    ),
    "wrong dtype": (
        "update['delta'] = update['delta'].astype(np.int32)\n" + SAVES,
        f"{UPDATE}: delta is not float32 of shape ({len(VECTOR)},)",
    ),
    "array more": (
        "update[MARK] = update['delta'][:9].copy()\n" + SAVES,
        f"{UPDATE}: it does not hold exactly the arrays delta, labelled_joints",
    ),
    "no such file": (f"(outputs / '{UPDATE}').write_text(MARK)", f"{UPDATE}: it is no safetensors file"),
    "file more": (SAVES + "(outputs / MARK).write_text(MARK)", OTHER_FILES),
    "file missing": ("", OTHER_FILES),
    "folder": (f"(outputs / '{UPDATE}' / MARK).mkdir(parents=True)", OTHER_FILES),
    "folder more": (SAVES + "(outputs / MARK).mkdir()", OTHER_FILES),
}
BEGINS = SAYS_MARK + UPDATES + "print(MARK, flush=True)\n"
FAULTS = {name: (BEGINS + line, words) for name, (line, words) in FAULTS.items()}
GOOD = SAYS_MARK + UPDATES + SAVES


def datasites(*names: str) -> Datasites:
    """Owners of four films each; the third bright dot is everywhere."""
    return Datasites([dot_hospital(name, seed=seed, count=4) for seed, name in enumerate(names)])


def received(sites: Datasites, hospital: str, main: str, **inputs: str) -> Submission:
    """A job that arrived, as its owner reads it."""
    files = {"main.py": main, **{f"inputs/{name}.txt": text for name, text in inputs.items()}}
    name = sites.coordinator.submit(hospital, "job", files)
    assert name in sites.owners[hospital].receive()
    return sites.owners[hospital].review(name)


def approved(
    sites: Datasites, hospital: str, main: str, policy: Policy = COUNTS, repeats: int = 0, **inputs: str
) -> str:
    """A job that may run."""
    submission = received(sites, hospital, main, **inputs)
    sites.owners[hospital].approve(submission, "read", policy, repeats)
    return submission.name


def ran(owner: Owner) -> bool:
    """Whether any process of a job was ever started: syft writes what it returned, and a job here leaves a trace."""
    left = {path.name for path in owner.client.syftbox_folder.rglob("*")}
    return bool(left & {"returncode.txt", "stdout.txt", "ran"})


def readable(sites: Datasites) -> bytes:
    """All that the coordinator has and all that is or was on the drive, unpacked."""
    own = [path for path in sites.path.rglob("*") if path.relative_to(sites.path).parts[0].startswith("coordinator")]
    contents = [path.read_bytes() for path in own if path.is_file()]
    contents += [file.content for file in sites.store.files.values()]
    names = [str(path) for path in own] + [file.name for file in sites.store.files.values()]
    return b"\0".join([*(part for content in contents for part in _unpacked(content)), *map(str.encode, names)])


def _unpacked(content: bytes) -> Iterator[bytes]:
    """``content``, the members of an archive, the texts of a JSON message and what is base64 in them."""
    yield content
    if content.startswith(b"\x1f\x8b"):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in filter(tarfile.TarInfo.isfile, archive):
                yield from _unpacked(archive.extractfile(member).read())
    elif content[:1] in (b"{", b"["):
        try:
            message = json.loads(content)
        except ValueError:
            return
        for text in _texts(message):
            yield text.encode()
            try:
                yield from _unpacked(base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError):
                continue


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def private_strings(sites: Datasites, hospital: str) -> list[bytes]:
    """Pieces of the private file: a row of each film, the places of its joints, the patients' pseudonyms."""
    with np.load(private_file(sites, hospital)) as file:
        rows, places = (file["images"][:, 10], file["keypoints"])
        return [part.tobytes() for part in (*rows, *places, file["patients"])]


def private_file(sites: Datasites, hospital: str) -> Path:
    """Where the hospital's films lie."""
    (path,) = (sites.owners[hospital].client.syftbox_folder).glob("*/private/syft_datasets/films/films.npz")
    return path
