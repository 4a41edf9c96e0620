"""The owner of a hospital's data: reads a job, approves or rejects it, runs it, looks at its outputs, releases them.

syft approves a job by its name and runs whatever is in its folder by then; and a job runs as the owner, who may read
every file. Here an approval is for a digest that is compared once more just before the run, a job runs confined
(``fedbone.engines.job_host``), and its outputs are checked and written anew before anybody else may see them.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from syft_job.job import JobInfo
from syft_rds import SyftRDSClient

from fedbone.config import REPOSITORY
from fedbone.engines.job_host import JobRules, ending, log_file, write_rules
from fedbone.engines.release import NotReleased, Policy, released
from fedbone.engines.review import FORM, Submission, read_submission
from fedbone.errors import UserError

REFUSAL = "refusal.json"  # released in place of outputs
PERMISSIONS = "syft.pub.yaml"  # in a folder that syft shares
DONE, FAILED, REFUSED = "done", "failed", "refused"
STOP_S = 5.0  # for a supervisor to end its job
RUN_SCRIPT = f"""#!/bin/bash
# The same for every job: the hospital's own supervisor starts code/main.py. It inherits none of our variables.
set -eu
exec env -i PATH=/usr/bin:/bin SYFTBOX_FOLDER="$SYFTBOX_FOLDER" SYFTBOX_EMAIL="$SYFTBOX_EMAIL" SYFT_IS_IN_JOB=true \\
    PYTHONPATH={shlex.quote(str(REPOSITORY))} {shlex.quote(sys.executable)} -P -s -m fedbone.engines.job_host
"""


@dataclass(frozen=True)
class Approval:
    """Why a job may run, what of its outputs may leave, and how many more jobs of the same code may run."""

    reason: str
    policy: Policy
    repeats: int = 0


@dataclass(frozen=True)
class Result:
    """How a job ended. problem: what the coordinator is told; log: its output, which stays here, as may ``outputs``."""

    name: str
    status: str
    problem: str
    log: str = field(repr=False)
    outputs: dict[str, bytes] = field(repr=False)


class Owner:
    """One hospital's data owner. timeout_s: wall seconds a job may take."""

    def __init__(self, name: str, client: SyftRDSClient, submitter: str, timeout_s: float = 300.0) -> None:
        self.name, self.client, self.submitter, self.timeout_s = name, client, submitter, timeout_s
        self._approved: dict[str, Approval] = {}  # by digest: may run once
        self._repeated: dict[str, Approval] = {}  # by code digest: may run with other inputs
        self._last: dict[str, Submission] = {}  # by title: what was approved last

    @property
    def email(self) -> str:
        return self.client.email

    def receive(self) -> list[str]:
        """Fetch what was submitted; the names of the jobs that wait for a decision, oldest first."""
        with quiet():
            self.client.sync()
            jobs = list(self.client.job_client.jobs)
        return [job.name for job in reversed(jobs) if job.status == "pending"]

    def review(self, name: str) -> Submission:
        """The job as it is at this moment. Raises UserError where it is not there, or holds more than plain files."""
        job = self._job(name)
        return read_submission(self.name, name, job.submitted_by, job.job_submission_path)

    def changes(self, submission: Submission) -> str:
        """The difference from the job of the same title that was approved last, see ``Submission.diff``."""
        return submission.diff(self._last.get(submission.title))

    def approve(self, submission: Submission, reason: str, policy: Policy, repeats: int = 0) -> None:
        """Approve this digest once, and ``repeats`` later jobs of the same code with other inputs.

        Whoever allows repeats lets the coordinator choose the inputs, also a model that is made to leak. The
        coordinator reads the reason. Raises UserError for a start script that is not RUN_SCRIPT, which would run the
        job outside the sandbox, and for a policy with other than plain file names.
        """
        if bad := [file for file in policy if file in ("", "..", REFUSAL, PERMISSIONS) or Path(file).name != file]:
            raise UserError(f"the policy for job {submission.name}", f"no job can hand out {bad}", "Name plain files")
        if submission.files.get("run.sh") != RUN_SCRIPT.encode():
            remedy = "Reject it; jobs are submitted with fedbone.engines.owner.RUN_SCRIPT"
            raise UserError(f"job {submission.name}", "its run.sh is not the one that starts the sandbox", remedy)
        self._last[submission.title] = submission
        self._approved[submission.digest] = Approval(reason, policy)
        self._repeated[submission.code_digest] = Approval(reason, policy, repeats)

    def reject(self, name: str, reason: str) -> None:
        """Refuse a job, and withdraw what was approved of its code; the coordinator reads the reason.

        Also one that ``review`` cannot read. Raises UserError where it does not wait.
        """
        job = self._waiting(name)
        with contextlib.suppress(UserError):
            submission = self.review(name)
            self._approved.pop(submission.digest, None)
            self._repeated.pop(submission.code_digest, None)
        with quiet():
            job.reject(reason)
            self.client.sync()

    def run(self, name: str) -> Result:
        """Run an approved job and check what it left; nothing is released yet.

        Whether it failed, how, and to the second how long it took is seen by the coordinator with the next ``receive``,
        released or not. Raises UserError, and runs nothing, unless the job waits and is now exactly what was approved.
        Once stopped by an interrupt, no process of the job is left.
        """
        job, submission = self._waiting(name), self.review(name)
        approval = self._approved.pop(submission.digest, None) or self._repeat(submission)
        outputs = {file: rule.most_bytes for file, rule in approval.policy.items()}
        box = self.client.syftbox_folder
        own = box / self.email
        write_rules(box, JobRules(outputs, (str(own / "public"), str(own / "private")), self.timeout_s))
        log_file(box).unlink(missing_ok=True)
        with quiet(), _nothing_left_running():
            job.approve(approval.reason)
            waiting = [other.name for other in self.client.job_client.jobs if other.name != name]
            self.client.job_runner.process_approved_jobs(
                stream_output=False, timeout=int(self.timeout_s) + 60, skip_job_names=waiting
            )
        return self._result(self._job(name), approval.policy)

    def release(self, result: Result) -> None:
        """Let the coordinator see the checked outputs, or why there are none."""
        folder = self._job(result.name).job_review_path / "outputs"
        told = result.outputs if result.status == DONE else {REFUSAL: json.dumps({"problem": result.problem}).encode()}
        for file, content in told.items():
            (folder / file).write_bytes(content)
        with quiet():
            self._job(result.name).share_outputs([self.submitter])
            self.client.sync()

    def _job(self, name: str) -> JobInfo:
        with quiet():
            found = [job for job in self.client.job_client.jobs if job.name == name]
        if not found:
            raise UserError(f"job {name}", f"it is not at {self.name}", "Call receive() first, and check the name")
        if len(found) > 1:  # syft reads two layouts of its inbox, and runs by name whichever is approved
            raise UserError(f"job {name}", "two jobs have this name", "Ask for another one, with a name of its own")
        return found[0]

    def _waiting(self, name: str) -> JobInfo:
        job = self._job(name)
        if job.status != "pending":
            raise UserError(f"job {name}", f"it waits no longer: it is {job.status}", "Ask for a new job")
        return job

    def _repeat(self, submission: Submission) -> Approval:
        """The approval of earlier code that covers this job too. Raises UserError where there is none."""
        approval = self._repeated.get(submission.code_digest)
        if approval is None or approval.repeats < 1:
            problem = f"it is not what {self.name} approved ({self._reason(submission)})"
            raise UserError(f"job {submission.name}", problem, "Review it again; nothing was run")
        self._repeated[submission.code_digest] = replace(approval, repeats=approval.repeats - 1)
        return approval

    def _reason(self, submission: Submission) -> str:
        """Why no approval covers it: the paths of the files that changed, and the software where it did."""
        before = self._last.get(submission.title)
        if before is None:
            return "nothing of this title was approved"
        paths = sorted({*before.files, *submission.files} - {FORM})
        changed = [path for path in paths if before.files.get(path) != submission.files.get(path)]
        changed += ["software"] if before.software != submission.software else []
        words = [f"changed: {', '.join(changed)}"] if changed else []
        if submission.code_digest in self._repeated:
            words.append("no more runs of this code are approved")
        return "; ".join(words)

    def _result(self, job: JobInfo, policy: Policy) -> Result:
        """What the run left, as far as the policy lets it out."""
        folder = job.job_review_path
        found = _taken(folder / "outputs", policy)
        log_path = log_file(self.client.syftbox_folder)
        log = log_path.read_text(encoding="utf-8") if log_path.exists() else ""
        code = folder / "returncode.txt"
        if not code.exists():
            return Result(job.name, FAILED, "could not be started or watched", log, {})
        if int(code.read_text()) != 0:
            return Result(job.name, FAILED, ending(int(code.read_text())), log, {})
        try:
            return Result(job.name, DONE, "", log, released(policy, found))
        except NotReleased as error:
            return Result(job.name, REFUSED, str(error), log, {})


def _taken(outputs: Path, policy: Policy) -> dict[str, bytes]:
    """The files of the policy; afterwards the folder holds none, so that no sync of syft sends unchecked ones away."""
    found = {name: (outputs / name).read_bytes() for name in policy if (outputs / name).is_file()}
    for path in outputs.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != PERMISSIONS:
            path.unlink()
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """syft prints a commentary on everything; its errors still rise."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _nothing_left_running() -> Iterator[None]:
    """End the processes that were started inside, should an interrupt come; the supervisor ends its job first."""
    me = psutil.Process()
    before = set(me.children())
    try:
        yield
    except BaseException:
        started = [child for child in me.children() if child not in before]
        for child in started:
            child.terminate()
        for child in psutil.wait_procs(started, timeout=STOP_S)[1]:
            child.kill()
        raise
