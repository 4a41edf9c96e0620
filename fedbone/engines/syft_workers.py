"""Hospitals as PySyft datasites: private films with a mock twin, code that is read before it runs, results released.

The transport is syft's in-memory stand-in for Google Drive: all parties are in this process, under one account. What is
real here: approval, the job's own process and sandbox, the check of what leaves it.
"""

from __future__ import annotations

import base64
import inspect
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load
from syft.sync.connections.drive.gdrive_transport import GDriveConnection
from syft.sync.connections.drive.mock_drive_service import MockDriveBackingStore, MockDriveService
from syft_rds import SyftRDSClient, SyftRDSClientConfig

from fedbone.config import Profile
from fedbone.engines import training_job
from fedbone.engines.coordinator import DATASET, Coordinator
from fedbone.engines.owner import Owner, quiet
from fedbone.engines.release import Arrays, Policy
from fedbone.errors import UserError
from fedbone.federation.hospital import RoundTask, Update
from fedbone.imaging.dataset import FilmSet, HospitalData

UPDATE = "update.safetensors"
COORDINATOR = "coordinator@example.org"
MOCK_FILMS = 8
DELIVERED = ("msgv2_", "syfteventsmessage", "rolling_state_", "incremental_checkpoint_")  # messages and their backups


def _client(email: str, folder: Path, store: MockDriveBackingStore, *, owner: bool) -> SyftRDSClient:
    """A syft client on the shared in-memory drive, wired as syft does it for its own pair of test clients.

    The two private names of syft-rds 0.6.1 are here and nowhere else: its public way makes one owner only.
    """
    config = SyftRDSClientConfig._base_config_for_testing(
        email=email,
        syftbox_folder=folder,
        has_do_role=owner,
        has_ds_role=not owner,
        use_in_memory_cache=False,
        check_versions=True,
    )
    client = SyftRDSClient.from_config(config)
    client.sync_engine._add_connection(GDriveConnection.from_service(email, MockDriveService(store, email)))
    client.peer_manager.write_own_version()
    return client


def _email(hospital: str) -> str:
    return f"{re.sub(r'[^a-z0-9_]+', '-', hospital.lower())}@example.org"


def mock_films(films: FilmSet, seed: int = 0) -> FilmSet:
    """MOCK_FILMS invented films of the form of ``films``: noise, with joints at random places.

    Nothing comes from a patient. Size, number of joints and which are labelled are those of ``films``, and public.
    """
    rng = np.random.default_rng(seed)
    keypoints = np.zeros((MOCK_FILMS, *films.keypoints.shape[1:]), np.float32)
    places = rng.uniform(0, films.images.shape[-1] - 1, (MOCK_FILMS, int(films.labelled.sum()), 2))
    keypoints[:, films.labelled] = np.concatenate([places, np.full((*places.shape[:2], 1), 2)], axis=-1)
    images = rng.integers(0, 256, (MOCK_FILMS, *films.images.shape[1:]), np.uint8)
    return FilmSet(images, keypoints, np.ones((MOCK_FILMS, 2), np.float32), ("mock",) * MOCK_FILMS)


class Datasites:
    """One coordinator and the owners of the films, in a temporary folder of their own; a context manager.

    Each owner publishes the dataset "films": its training films, without the simulation's truth, and their mock twin.
    ``close`` removes the folder; so does the end of the process, unless it is killed. It grows by 12 MB a job of the
    CPU profile: syft keeps all files of all jobs. Raises ValueError for names that give the same address.
    """

    def __init__(self, hospitals: list[HospitalData]) -> None:
        if not hospitals:
            raise ValueError("Datasites need at least one hospital")
        if len({COORDINATOR, *(_email(data.name) for data in hospitals)}) <= len(hospitals):
            raise ValueError(f"these hospitals get no address each of their own: {[data.name for data in hospitals]}")
        self._folder = tempfile.TemporaryDirectory(prefix="fedbone-syft-")
        self.joints = hospitals[0].joints
        self.path, self.store = Path(self._folder.name).resolve(), MockDriveBackingStore()
        with quiet():
            client = _client(COORDINATOR, self.path / "coordinator", self.store, owner=False)
            self.owners = {data.name: self._owner(data, client) for data in hospitals}
            client.load_peers()
            client.sync()
        self.coordinator = Coordinator(client, {name: owner.email for name, owner in self.owners.items()})

    def _owner(self, data: HospitalData, coordinator: SyftRDSClient) -> Owner:
        email = _email(data.name)
        client = _client(email, self.path / email.split("@")[0], self.store, owner=True)
        coordinator.add_peer(client.email, sync=False)
        client.load_peers()
        client.approve_peer_request(COORDINATOR)
        with tempfile.TemporaryDirectory(dir=self.path) as folder:
            films = replace(data.train, truth=None)
            paths = [Path(folder) / part / f"{DATASET}.npz" for part in ("mock", "private")]
            for path, some in zip(paths, (mock_films(films), films), strict=True):
                path.parent.mkdir()
                np.savez(path, **some.to_arrays())
            client.create_dataset(DATASET, *paths, summary=f"films of {data.name}", users=[COORDINATOR])
        client.sync()
        return Owner(data.name, client, COORDINATOR)

    def __enter__(self) -> Datasites:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget_delivered(self, hospital: str) -> None:
        """Drop from the drive what ``hospital`` and the coordinator have both fetched: nothing reads it again.

        syft keeps every message for ever, 7 MB a job of the CPU profile, and this drive is memory.
        """
        email, files = self.owners[hospital].email, self.store.files
        for number, file in list(files.items()):
            folder = next((files[parent].name for parent in file.parents if parent in files), "")
            own = f"_to_{email}" in folder or f"#{email}" in folder or folder.startswith(f"{email}-")
            if own and file.name.startswith(DELIVERED):
                self.store.delete_file(number)

    def close(self) -> None:
        """Remove the folder with everything in it, also when an interrupt comes in the middle."""
        try:
            self._folder.cleanup()
        except KeyboardInterrupt:
            self._folder.cleanup()
            raise


def training_files(
    vector: np.ndarray, task: RoundTask, hospital: str, joints: Sequence[str], profile: Profile
) -> dict[str, str]:
    """The job of one round, for ``Coordinator.submit``: training_job.py, the model (P,) and the task."""
    words = {"hospital": hospital, "joints": list(joints), "profile": asdict(profile), "round": asdict(task)}
    return {
        "main.py": inspect.getsource(training_job),
        "inputs/vector.b64": base64.b64encode(vector.astype("<f4").tobytes()).decode(),  # syft carries text only
        "inputs/task.json": json.dumps(words),
    }


def update_policy(parameters: int, joints: int) -> Policy:
    """What a round of training may hand out: the delta (P,) and which joints are labelled (K,); no loss, no counts."""
    arrays = {"delta": ("float32", (parameters,)), "labelled_joints": ("bool", (joints,))}
    return {UPDATE: Arrays(arrays)}


class SyftHospital:
    """A hospital for ``run_rounds`` whose films the server never holds: each round is a job at its owner.

    Its owner must have approved the code of the job, with enough repeats, see ``Owner.approve``. Runs in this process
    (``processes=1``); the owner's timeout is its deadline.
    """

    def __init__(self, sites: Datasites, name: str, profile: Profile) -> None:
        if profile.device != "cpu":
            raise UserError(f"hospital {name}", "a confined job reaches no GPU", "Use the profile cpu")
        if profile.norm != "group":
            raise UserError(f"hospital {name}", f"norm={profile.norm!r} stays at a hospital", "Use norm='group'")
        self.name, self.profile, self.joints = name, profile, sites.joints
        self._sites, self._owner, self._coordinator = sites, sites.owners[name], sites.coordinator
        self.labelled = self._coordinator.mock(name).labelled

    def films_digest(self) -> str:
        """syft's number of the dataset, new with each ``Datasites``: only while that lives can a run be resumed."""
        return self._coordinator.dataset_id(self.name)

    def state(self) -> dict[str, np.ndarray]:
        """Nothing stays in the job between rounds."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Raises UserError for a state: this hospital cannot keep one (FedBN)."""
        if state:
            raise UserError(f"hospital {self.name}", "a syft job keeps nothing between rounds", "Use norm='group'")

    def released_loss(self, update: Update) -> None:
        """None: the owner's policy keeps it."""

    def local_update(self, global_vector: np.ndarray, task: RoundTask) -> Update:
        """As ``Hospital.local_update``, through a job. Raises UserError with what the owner lets the server know."""
        files = training_files(global_vector, task, self.name, self.joints, self.profile)
        name = self._coordinator.submit(self.name, f"round-{task.round}", files)
        self._owner.receive()
        self._owner.release(self._owner.run(name))
        arrays = load(self._coordinator.collect(self.name, name)[UPDATE])
        self._sites.forget_delivered(self.name)
        return Update(arrays["delta"], arrays["labelled_joints"], {})
