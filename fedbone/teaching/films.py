"""The films that notebooks 02, 03 and 05 work on: the workbook's own hospitals, or the reader's (FEDBONE_DATA)."""

from __future__ import annotations

from fedbone.config import Profile, own_data
from fedbone.imaging.dataset import HospitalData
from fedbone.imaging.folder import load_hospitals
from fedbone.imaging.hospitals import training_hospitals
from fedbone.progress import Bar


def workbook_hospitals(profile: Profile, seed: int = 0) -> list[HospitalData]:
    """All hospitals with their training and test films; prints which films of the reader's had to be left out.

    The workbook's own films are generated once per profile and then read from build/cache.
    """
    own = own_data()
    if own is None:
        with Bar("generating films", "film") as bar:
            return training_hospitals(profile.size_px, seed, progress=bar)
    with Bar("reading films", "film") as bar:
        hospitals, problems = load_hospitals(own, profile.own_size_px, seed, progress=bar)
    for problem in problems:
        print(f"left out: {problem}")
    return hospitals
