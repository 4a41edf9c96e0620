"""Python imports this at the start of each process of a deployment whose PYTHONPATH names this folder.

FEDBONE_TEST_FAULTS names a JSON file {hospital: {round: fault}}, read at each round. In it also: "slow_s", seconds that
every local update takes more; "late_s", how many more a late one takes; "full": the end of a folder's name, no file in
which can be written, as on a full disk. Nothing in fedbone knows of it.
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.util
import json
import os
import sys
import time

TARGETS = {
    "fedbone.federation.hospital": "plant_in_training",
    "fedbone.engines.flare.hospital_side": "plant_in_answer",
    "fedbone.engines.flare.executor": "plant_in_signing",
    "fedbone.files": "plant_in_files",
}


def faults() -> dict:
    with open(os.environ["FEDBONE_TEST_FAULTS"]) as file:
        return json.load(file)


class Planter(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in TARGETS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def planted(module):
            execute(module)
            globals()[TARGETS[name]](module)

        spec.loader.exec_module = planted
        return spec


def plant_in_training(module) -> None:
    import numpy as np

    real = module.Hospital.local_update

    def local_update(self, vector, task):
        time.sleep(faults().get("slow_s", 0))
        fault = faults().get(self.name, {}).get(str(task.round))
        if fault == "raise":
            raise OSError("its film store is away")
        if fault == "exit":
            os._exit(1)
        update = real(self, vector, task)
        delta = update.delta
        if fault == "nan":
            delta[5] = np.nan
        if fault == "short":
            delta = delta[:-1]
        if fault == "float64":
            delta = delta.astype(np.float64)
        if fault == "late":
            time.sleep(faults()["late_s"])
        return module.Update(delta, update.labelled_joints, update.report)

    module.Hospital.local_update = local_update


def plant_in_answer(module) -> None:
    real = module.HospitalSide.answer

    def answer(self, task, message):
        index, content = real(self, task, message)
        fault = faults().get(self.kit.name, {}).get(str(index))
        return index, content[:-1000] if fault == "cut" else content

    module.HospitalSide.answer = answer


def plant_in_files(module) -> None:
    """A disk may be full only when what was written is to reach it, so that a half-written file is there by then."""
    real = module.os.fsync

    class FullDisk:
        def __getattr__(self, name):
            return getattr(os, name)

        def fsync(self, handle):
            folder, full = os.path.dirname(os.readlink(f"/proc/self/fd/{handle}")), faults().get("full")
            if full and folder.endswith(full):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

    module.os = FullDisk()


def plant_in_signing(module) -> None:
    sign, old = module.sign_update, []

    def sign_update(key, audience, run, index, sha256):
        fault = faults().get(key.site, {}).get(str(index))
        if fault == "unsigned":
            return None
        if fault == "forged":
            key = type(key).create(key.site)
        if fault == "expired":
            return sign(key, audience, run, index, sha256, now=time.time() - 3600)
        if fault == "edited":
            sha256 = "0" * 64
        if fault == "replayed":
            return old[-1]
        old.append(sign(key, audience, run, index, sha256))
        return old[-1]

    module.sign_update = sign_update


if os.environ.get("FEDBONE_TEST_FAULTS"):
    sys.meta_path.insert(0, Planter())
