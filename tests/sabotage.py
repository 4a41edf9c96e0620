"""The sabotage lab: one switch for each mistake, and the test that turns red. ``python -m tests.sabotage NAME``.

A mistake is planted in a copy of fedbone and tests in a temporary folder; the repository stays as it is. The audit of
seven mistakes in noise, which notebook 07 runs in memory, is ``fedbone.teaching.sabotage``.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from fedbone import config
from fedbone.errors import UserError
from fedbone.teaching import testing


class Mistake(NamedTuple):
    """changes: (line as it is, line with the mistake) of ``file``; each stands there once. test: what turns red."""

    chapter: str
    sentence: str
    file: str
    changes: tuple[tuple[str, str], ...]
    test: str


MISTAKES = {
    "divided-twice": Mistake(
        "00",
        "The shares have divided already, and the server divides by the number of hospitals again.",
        "fedbone/federation/strategies.py",
        (("return self._sum * (1 / UNITS)", "return self._sum * (1 / UNITS) / len(self._weights)"),),
        "tests/test_strategies.py::test_the_mean_is_numpys_average_and_keeps_equal_updates",
    ),
    "wrong-polarity": Mistake(
        "01",
        "MONOCHROME1 is read as if its smallest value were black: bone comes out dark.",
        "fedbone/imaging/polarity.py",
        (('inverted = photometric == "MONOCHROME1" or shape == "INVERSE"', 'inverted = shape == "INVERSE"'),),
        "tests/test_dicom.py::test_bone_is_bright_in_every_polarity",
    ),
    "both-sides": Mistake(
        "02",
        "Films are dealt to training and test one by one: a patient with two films may stand on both sides.",
        "fedbone/imaging/folder.py",
        (
            (
                "train = ~np.isin(names, _draw_test(place, names, seed))",
                "train = np.random.default_rng(seed).permutation(len(names)) >= round(TEST_SHARE * len(names))",
            ),
        ),
        "tests/test_folder.py::test_patient_from_dicom_or_by_file_or_refused",
    ),
    "labels-stay": Mistake(
        "02",
        "The film turns and its labels do not.",
        "fedbone/model/training.py",
        (
            (
                "moved[:, :2] = keypoints[:, :2] @ matrix[:, :2].T + matrix[:, 2]",
                "moved[:, :2] = keypoints[:, :2]",
            ),
        ),
        "tests/test_training.py::test_a_dot_and_its_keypoint_turn_together",
    ),
    "half-pixel": Mistake(
        "03",
        "Heatmap pixels are multiplied by the stride, and the half pixel at each end is forgotten.",
        "fedbone/model/decoding.py",
        (("return (xy + 0.5) * stride - 0.5", "return xy * stride"),),
        "tests/test_decoding.py::test_a_dot_painted_in_the_film_lands_where_the_map_says",
    ),
    "shared-memory": Mistake(
        "03",
        "The model's parameters are the caller's vector: training changes both, and the difference is zero.",
        "fedbone/vectors.py",
        (
            (
                "piece = np.array(vector[start : start + p.numel()], dtype=np.float32)",
                "piece = vector[start : start + p.numel()]",
            ),
            ("p.copy_(torch.from_numpy(piece).view(p.shape))", "p.data = torch.from_numpy(piece).view(p.shape)"),
        ),
        "tests/test_vectors.py::test_training_never_reaches_the_callers_vector",
    ),
    "released-counts": Mistake(
        "04",
        "The hospital passes on whatever a job wrote beside the agreed numbers, a count of patients for one.",
        "fedbone/engines/release.py",
        (
            ("or set(values) != set(self.names):", "or not set(values) >= set(self.names):"),
            ("for name in self.names}\n        return", "for name in values}\n        return"),
        ),
        "tests/test_release.py::test_other_numbers_are_refused",
    ),
    "head-rows": Mistake(
        "05",
        "A joint's row is averaged over all hospitals, also over those that do not label it and sent zero.",
        "fedbone/federation/strategies.py",
        (
            (
                "share = np.asarray(labelled, dtype=np.float64).T @ weights",
                "share = np.ones(np.shape(labelled)[1]) * np.sum(weights)",
            ),
        ),
        "tests/test_strategies.py::test_a_joint_is_averaged_over_the_hospitals_that_label_it",
    ),
    "no-clip": Mistake(
        "06",
        "Nothing is shortened: one hospital may move the mean by any length, and no noise covers it.",
        "fedbone/privacy/dp.py",
        (("factor = min(1.0, clip_norm / norm) if norm > 0 else 1.0", "factor = 1.0"),),
        "tests/test_dp.py::test_the_clipped_norm_never_exceeds_the_bound",
    ),
    "fixed-seed": Mistake(
        "07",
        "The noise comes from a seed that stands in the source: whoever reads it subtracts the noise.",
        "fedbone/privacy/dp.py",
        (
            (
                "rng = self.rng or np.random.Generator(np.random.PCG64(secrets.randbits(256)))",
                "rng = self.rng or np.random.default_rng(0)",
            ),
        ),
        "tests/test_dp.py::test_two_runs_get_different_noise_unless_a_test_gives_the_generator",
    ),
    "reused-obfuscator": Mistake(
        "08",
        "All plaintexts of an update share one random factor: equal plaintexts look equal.",
        "fedbone/encryption/paillier.py",
        (
            (
                "self._table.powers([secrets.token_bytes(self._exponent_bytes) for _ in plaintexts])",
                "self._table.powers([secrets.token_bytes(self._exponent_bytes)]) * len(plaintexts)",
            ),
        ),
        "tests/test_paillier.py::test_one_vector_encrypted_twice_differs_in_every_ciphertext",
    ),
    "alg-none": Mistake(
        "09",
        "The token says which algorithm signed it, and may say: none.",
        "fedbone/custody/identity.py",
        (
            ('if header.get("alg") != "ES256":', 'if header.get("alg") not in ("ES256", "none"):'),
            (
                'payload = PyJWS(["ES256"]).decode_complete(token, public_key(key), ["ES256"])["payload"]',
                'payload = PyJWS().decode_complete(token, options={"verify_signature": False})["payload"]',
            ),
        ),
        "tests/test_identity.py::test_alg_none_and_other_algorithms",
    ),
    "edited-line": Mistake(
        "09",
        "The check of the audit log counts its lines and does not follow the chain: an edited line passes.",
        "fedbone/custody/audit_fault.py",
        (('fits = (entry["n"], entry["previous"]) == (at.n, at.previous)', 'fits = entry["n"] == at.n'),),
        "tests/test_audit_log.py::test_any_changed_byte_is_found_in_its_line",
    ),
    "films-resampled": Mistake(
        "10",
        "The interval resamples films in place of patients, and looks narrower than it is.",
        "fedbone/model/metrics.py",
        (
            (
                "np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)",
                "np.unique(np.arange(len(table)), return_inverse=True)",
            ),
        ),
        "tests/test_metrics.py::test_films_of_one_patient_are_resampled_together",
    ),
}


def planted(mistake: Mistake, source: str) -> str:
    """``source`` with the mistake. Raises UserError where a line is not there exactly once."""
    for right, wrong in mistake.changes:
        if source.count(right) != 1:
            problem = f"it holds {right!r} {source.count(right)} times, not once"
            raise UserError(mistake.file, problem, "Adapt the mistake in tests/sabotage.py to the source")
        source = source.replace(right, wrong)
    return source


def run(mistake: Mistake, folder: Path) -> tuple[bool, bool, str]:
    """Whether the test is green without and with the mistake, in a copy in ``folder``; and what pytest said at last.

    Raises UserError when pytest could not run the test at all, and as ``planted``.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("fedbone", "tests"):
        shutil.copytree(config.REPOSITORY / name, folder / name, ignore=ignore)
    shutil.copy(config.REPOSITORY / "pyproject.toml", folder)
    before, said = _green(mistake.test, folder)
    path = folder / mistake.file
    path.write_text(planted(mistake, path.read_text(encoding="utf-8")), encoding="utf-8")
    after, said = _green(mistake.test, folder)
    return before, after, said


def _green(test: str, folder: Path) -> tuple[bool, str]:
    command = testing.pytest("--tb=line", test)
    done = subprocess.run(
        command, cwd=folder, env=testing.environment(), capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode not in (0, 1):  # 1: a test failed; others: pytest found or ran none
        raise UserError(test, f"pytest ended with {done.returncode}: {done.stdout[-300:]}", "Mend the lab's table")
    return done.returncode == 0, done.stdout


def _changed(mistake: Mistake) -> str:
    source = (config.REPOSITORY / mistake.file).read_text(encoding="utf-8")
    pair = source.splitlines(), planted(mistake, source).splitlines()
    return "\n".join(difflib.unified_diff(*pair, mistake.file, mistake.file, n=1, lineterm=""))


def main(arguments: list[str]) -> int:
    """Show one mistake: the changed lines, its test green without them and red with them. Without a name: the list."""
    parser = argparse.ArgumentParser(prog="python -m tests.sabotage", description=main.__doc__)
    parser.add_argument("name", nargs="?", choices=MISTAKES, metavar="NAME")
    name = parser.parse_args(arguments).name
    if name is None:
        print("\n".join(f"{key:18s} {found.chapter}  {found.sentence}" for key, found in MISTAKES.items()))
        return 0
    mistake = MISTAKES[name]
    print(f"chapter {mistake.chapter}: {mistake.sentence}\n\n{_changed(mistake)}\n\n{mistake.test}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        before, after, said = run(mistake, Path(folder))
    print(f"without the mistake: {_colour(before)}\nwith the mistake:    {_colour(after)}\n\n{said.strip()[-1500:]}")
    return 0 if before and not after else 1


def _colour(green: bool) -> str:
    return "green" if green else "RED"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
