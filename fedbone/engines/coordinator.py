"""Who wants the training: sees mock films, submits jobs, and gets what the owners release."""

from __future__ import annotations

import json
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
from syft_datasets import Dataset
from syft_job.job import JobInfo
from syft_rds import SyftRDSClient

from fedbone.engines.owner import PERMISSIONS, REFUSAL, RUN_SCRIPT, quiet
from fedbone.errors import UserError
from fedbone.files import write_atomic
from fedbone.imaging.dataset import FilmSet

DATASET = "films"


class Coordinator:
    """Who wants the training: sees mock films, submits jobs, and gets what is released. emails: by hospital."""

    def __init__(self, client: SyftRDSClient, emails: dict[str, str]) -> None:
        self.client, self._emails, self._submitted = client, emails, count(1)

    def _email(self, hospital: str) -> str:
        if hospital not in self._emails:
            raise UserError(f"hospital {hospital}", "there is none of this name", f"One of {', '.join(self._emails)}")
        return self._emails[hospital]

    def mock(self, hospital: str) -> FilmSet:
        """The mock films that ``hospital`` published."""
        with np.load(self._dataset(hospital).mock_files[0]) as file:
            return FilmSet.from_arrays(file)

    def dataset_id(self, hospital: str) -> str:
        """syft's number of the dataset that ``hospital`` published."""
        return str(self._dataset(hospital).uid)

    def _dataset(self, hospital: str) -> Dataset:
        return self.client.dataset_manager.get(DATASET, datasite=self._email(hospital))

    def submit(self, hospital: str, title: str, files: dict[str, str], run_script: str = RUN_SCRIPT) -> str:
        """Send a job; the name by which both sides know it. files: path -> text, with a main.py.

        What it needs to read besides code lies in inputs/, what it wants to hand out goes to outputs/. Owners approve
        no other ``run_script``. Raises UserError without a main.py.
        """
        self._require_open()
        if "main.py" not in files:
            raise UserError(f"job {title}", "it has no main.py", "Give it one: that is what runs")
        name, email = f"{next(self._submitted):03d}-{title}", self._email(hospital)
        with tempfile.TemporaryDirectory(dir=self.client.syftbox_folder.parent) as folder, quiet():
            for path, text in files.items():
                write_atomic(Path(folder) / path, text.encode())
            job = self.client.job_client.submit_python_job(email, folder, name, entrypoint="main.py")
            (job / "run.sh").write_text(run_script)  # syft's own would build an environment from the network
            self.client.sync_engine.push_job_files(job)
        return name

    def resend(self, hospital: str, name: str, path: str, text: str) -> None:
        """Send another version of one file of a job: syft allows it at any time, also after the approval."""
        self._require_open()
        with quiet():
            job = self._job(hospital, name)
            write_atomic(job.job_submission_path / path, text.encode())
            self.client.sync_engine.push_job_files(job.job_submission_path)

    def collect(self, hospital: str, name: str) -> dict[str, bytes]:
        """The released outputs of a job. Raises UserError, saying why, where the owner released none."""
        self._require_open()
        with quiet():
            self.client.sync()
            job = self._job(hospital, name)
        folder = job.job_review_path / "outputs"
        outputs = {path.name: path.read_bytes() for path in folder.glob("*")} if folder.is_dir() else {}
        outputs.pop(PERMISSIONS, None)
        if job.status == "rejected":
            raise UserError(hospital, f"its owner rejected the job: {job.review_reason}", "Submit another job")
        if REFUSAL in outputs:
            problem = f"its job {json.loads(outputs[REFUSAL])['problem']}"
            raise UserError(hospital, problem, "Its owner has the log; change the job, or ask there")
        if not outputs:
            raise UserError(hospital, f"its job is {job.status}, and nothing is released", "Ask its owner")
        return outputs

    def _job(self, hospital: str, name: str) -> JobInfo:
        key = (self._email(hospital), name)
        for job in self.client.job_client.jobs:
            if (job.datasite_owner_email, job.name) == key:
                return job
        raise UserError(f"job {name}", f"none was submitted to {hospital}", "Check both names, and submit it again")

    def _require_open(self) -> None:
        if not self.client.syftbox_folder.exists():
            raise UserError("the hospitals' folder", "it is gone: close() was called", "Make the Datasites again")
