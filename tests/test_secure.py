"""Federations whose server sees no single update, against numpy's whole numbers and against the plain federation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedbone.encryption.lanes import Lanes
from fedbone.encryption.paillier import CipherWorkers
from fedbone.encryption.paillier_keys import insecure_test_key
from fedbone.encryption.secure_sum import Collector, Contributor
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital
from fedbone.federation.rounds import RoundRules, run_rounds
from fedbone.federation.secure import SecureRun, SecureSums, exact_lanes
from fedbone.federation.strategies import CoordinateMedian, FedAdam, FedAvgM, Strategy
from fedbone.privacy.dp import GaussianNoise
from fedbone.vectors import sha256
from tests.fake_hospitals import HEAD_ROWS, PROFILE, START, FakeHospital, three
from tests.helpers import dot_hospital, tiny_profile

LANES = Lanes(0.05, 4)
LEVELS = 2**15 - 1
REPEATED = SecureSums(LANES, repeats=1)


class InTheClear:
    """The reference: whole levels, added by numpy, hidden from nobody."""

    lanes = LANES

    def begin(self, names, parameters, asked):
        return self

    def mean(self, asked, updates):
        levels = [np.rint(np.clip(u.astype(np.float64), -0.05, 0.05) * (LEVELS / 0.05)) for u in updates.values()]
        return sum(levels) * (0.05 / LEVELS / len(levels)), {}


def four() -> list[FakeHospital]:
    return [*three(), FakeHospital("d")]


@pytest.fixture(scope="module")
def workers():
    with CipherWorkers(insecure_test_key()) as ours:
        yield ours


STRATEGIES = {
    "FedAvg": Strategy(server=FedAvgM(0.0)),
    "FedAvgM": Strategy(),
    "FedAdam": Strategy(server=FedAdam()),
    "FedProx": Strategy(proximal_mu=0.1, joint_rows=False),
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_every_strategy_gives_the_bytes_of_quantised_averaging(strategy) -> None:
    plain = run_rounds(four(), PROFILE, strategy=strategy, secure=InTheClear())
    masked = run_rounds(four(), PROFILE, strategy=strategy, secure=SecureSums(LANES))
    assert [r.vector_sha256 for r in masked.history] == [r.vector_sha256 for r in plain.history]
    assert np.array_equal(masked.vector, plain.vector)
    assert not np.array_equal(masked.vector, run_rounds(four(), PROFILE, strategy=strategy).vector)


def test_hospitals_that_train_under_paillier_come_to_the_same_bytes(workers) -> None:
    def hospitals() -> list[Hospital]:
        return [Hospital(dot_hospital(name, seed=i), tiny_profile()) for i, name in enumerate("abc")]

    encrypted = run_rounds(hospitals(), tiny_profile(), secure=SecureSums(LANES, workers, recompute=True))
    plain = run_rounds(hospitals(), tiny_profile(), secure=InTheClear())
    assert [r.vector_sha256 for r in encrypted.history] == [r.vector_sha256 for r in plain.history]


def test_a_quantised_round_is_near_the_plain_one() -> None:
    profile = replace(PROFILE, rounds=1)
    plain, masked = (run_rounds(four(), profile, secure=s).vector for s in (None, SecureSums(LANES)))
    body = slice(min(map(min, HEAD_ROWS)))  # a head row's factor of up to 4 is on its rounding too
    assert np.abs(masked - plain)[body].max() <= LANES.step / 2 + 1e-7
    assert np.linalg.norm(masked - plain) < 1e-4 * np.linalg.norm(plain)


def test_exact_lanes_give_the_bytes_of_the_plain_federation(workers) -> None:
    for sums in (SecureSums(exact_lanes(4)), SecureSums(exact_lanes(4), workers)):
        profile = replace(PROFILE, rounds=1 if sums.workers else 4)
        assert np.array_equal(
            run_rounds(four(), profile, secure=sums).vector, run_rounds(four(), profile).vector
        )


def test_real_training_with_fedbn_goes_through_secure_sums() -> None:
    profile = tiny_profile(norm="batch")
    strategy = Strategy(local_norm=True)

    def hospitals() -> list[Hospital]:
        return [Hospital(dot_hospital(name, seed=i), profile, local_norm=True) for i, name in enumerate("abc")]

    plain = run_rounds(hospitals(), profile, strategy=strategy)
    exact = run_rounds(hospitals(), profile, strategy=strategy, secure=SecureSums(exact_lanes(3)))
    assert np.array_equal(exact.vector, plain.vector)


def test_hospitals_that_do_not_take_part_are_not_in_the_sum() -> None:
    def hospitals() -> list[FakeHospital]:
        return [*three(a={1: "raise"}), FakeHospital("d"), FakeHospital("e", faults={2: "nan"})]

    rules = RoundRules(min_hospitals=3)
    masked = run_rounds(hospitals(), PROFILE, rules=rules, secure=SecureSums(Lanes(0.05, 5)))
    assert np.array_equal(masked.vector, run_rounds(hospitals(), PROFILE, rules=rules, secure=InTheClear()).vector)
    assert [row.status for row in masked.history[2].hospitals.values()] == [*["took part"] * 4, "refused"]


def drop(monkeypatch, *names: str, round_index: int = 1) -> list[tuple[int, int]]:
    """These hospitals leave after their offer, in a round's first attempt; (round, attempt) of all that are begun."""
    upload, begun = Contributor.upload, []

    def failing(self, update, offers, progress=None):
        here = self._last.round, self._last.attempt
        begun.extend([here] if here not in begun else [])
        if self.name in names and here == (round_index, 0):
            raise OSError("its line went dead")
        return upload(self, update, offers, progress)

    monkeypatch.setattr(Contributor, "upload", failing)
    return begun


def test_after_a_drop_out_the_others_repeat_the_sum(monkeypatch) -> None:
    drop(monkeypatch, "b")
    rules = RoundRules(min_hospitals=3)
    masked = run_rounds(four(), PROFILE, rules=rules, secure=REPEATED)
    row = masked.history[1].hospitals["b"]
    assert (row.status, row.weight) == ("failed", 0)
    assert "its line went dead" in row.reason
    assert masked.history[1].hospitals["a"].weight == pytest.approx(1 / 3)
    without = [*three(b={1: "raise"}), FakeHospital("d")]
    rows = run_rounds(without, PROFILE, rules=rules, secure=InTheClear()).history
    assert masked.history[1].vector_sha256 == rows[1].vector_sha256


def test_who_dropped_out_keeps_the_state_of_the_round_before(monkeypatch) -> None:
    drop(monkeypatch, "b", round_index=3)
    outcome = run_rounds(four(), PROFILE, rules=RoundRules(min_hospitals=3), secure=REPEATED)
    assert {name: int(state["visits"][0]) for name, state in outcome.hospital_states.items()} == {
        "a": 4, "b": 3, "c": 4, "d": 4
    }  # fmt: skip


def test_a_drop_out_ends_a_run_that_needs_all_hospitals(monkeypatch) -> None:
    begun = drop(monkeypatch, "b")
    with pytest.raises(OSError, match="went dead") as caught:
        run_rounds(four(), PROFILE, secure=REPEATED)
    assert caught.value.__notes__ == ["hospital b, round 1: failed"]
    assert begun == [(0, 0), (1, 0)]  # no sum of the others, which would be of no use


def test_nothing_is_repeated_that_would_have_too_few_hospitals(monkeypatch) -> None:
    begun = drop(monkeypatch, "b")
    with pytest.raises(UserError, match=r"3 of the 4 hospitals it needs took part: b failed \(OSError: its line"):
        run_rounds(four(), PROFILE, rules=RoundRules(min_hospitals=4), secure=REPEATED)
    assert begun == [(0, 0), (1, 0)]


def test_two_hospitals_are_too_few(monkeypatch) -> None:
    drop(monkeypatch, "b")
    with pytest.raises(UserError, match="round 1: b dropped out, and 2 hospitals cannot hide each other"):
        run_rounds(three(), PROFILE, rules=RoundRules(min_hospitals=2), secure=REPEATED)
    available = {"available": lambda index, name: name != "b", "rules": RoundRules(min_hospitals=2)}
    with pytest.raises(UserError, match="round 0: 2 hospitals cannot hide each other"):
        run_rounds(three(), PROFILE, secure=REPEATED, **available)


def test_hospitals_that_do_not_repeat_end_the_round(monkeypatch) -> None:
    drop(monkeypatch, "b")
    with pytest.raises(UserError, match="round 1: b dropped out, and a sum was begun with a, b, c, d"):
        run_rounds(four(), PROFILE, rules=RoundRules(min_hospitals=3), secure=SecureSums(LANES))


def test_an_interruption_is_no_way_to_a_second_roster(tmp_path, monkeypatch) -> None:
    """Or whoever stops the run after the uploads, and goes on without one hospital, subtracts the two sums."""
    opened = SecureRun.mean

    def stop(self, asked, updates):
        mean = opened(self, asked, updates)
        if asked.round == 1:
            raise KeyboardInterrupt
        return mean

    options = {"rules": RoundRules(min_hospitals=3), "state": tmp_path / "state"}
    monkeypatch.setattr(SecureRun, "mean", stop)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(four(), PROFILE, secure=SecureSums(LANES), **options)
    monkeypatch.undo()
    without_d = {"available": lambda index, name: name != "d"}
    for _ in range(2):
        with pytest.raises(UserError, match="round 1: a sum was begun with a, b, c, d"):
            run_rounds(four(), PROFILE, secure=SecureSums(LANES), **without_d, **options)
    resumed = run_rounds(four(), PROFILE, secure=SecureSums(LANES), **options)  # the same four: the same sum
    assert np.array_equal(resumed.vector, run_rounds(four(), PROFILE, secure=SecureSums(LANES)).vector)


def test_hospitals_that_may_repeat_go_on_without_who_left_in_an_interruption(tmp_path, monkeypatch) -> None:
    options = {"rules": RoundRules(min_hospitals=3), "state": tmp_path / "state"}
    drop(monkeypatch, "d")
    with pytest.raises(UserError, match="a sum was begun with"):
        run_rounds(four(), PROFILE, secure=SecureSums(LANES), **options)
    outcome = run_rounds(four(), PROFILE, secure=REPEATED, available=lambda index, name: name != "d", **options)
    assert [record.hospitals["d"].status for record in outcome.history] == ["took part", *["absent"] * 3]


@pytest.mark.parametrize(
    ("sums", "rules", "problem"),
    [
        ({"lanes": Lanes(0.05, 3)}, {}, "4 hospitals are asked each round, and these sums are of 3 to 3"),
        ({"lanes": LANES}, {"participation": 0.5}, "2 hospitals are asked each round"),
        ({"lanes": Lanes(0.05, 64), "recompute": True}, {}, "11 hospitals are asked each round, .* of 3 to 10"),
    ],
    ids=["narrow lanes", "half of them", "too many to recompute"],
)
def test_sums_that_cannot_work_are_refused_before_any_training(sums, rules, problem) -> None:
    hospitals = [FakeHospital(f"h{i}") for i in range(11)] if "11" in problem else four()
    with pytest.raises(UserError, match=problem):
        run_rounds(hospitals, PROFILE, rules=RoundRules(**rules), secure=SecureSums(**sums))
    assert {hospital.visits for hospital in hospitals} == {0}


def test_plans_that_cannot_work_are_refused(workers) -> None:
    with pytest.raises(ValueError, match="public key only"):
        SecureSums(LANES, CipherWorkers(workers.public))
    with pytest.raises(ValueError, match="repeats is -1"):
        SecureSums(LANES, repeats=-1)


def test_a_sum_that_the_server_changes_is_found_by_hospitals_that_recompute(monkeypatch) -> None:
    total = Collector.total
    monkeypatch.setattr(Collector, "total", lambda self: total(self)[:-4] + bytes(4))
    with pytest.raises(UserError, match="not the sum of the uploads"):
        run_rounds(four(), PROFILE, secure=SecureSums(LANES, recompute=True))


def test_every_round_s_offers_are_bound_to_its_model(monkeypatch) -> None:
    offer, models = Contributor.offer, []

    def noted(self, attempt):
        models.append(attempt.model)
        return offer(self, attempt)

    monkeypatch.setattr(Contributor, "offer", noted)
    history = run_rounds(four(), PROFILE, secure=SecureSums(LANES)).history
    assert models[::4] == [sha256(START), *(record.vector_sha256 for record in history[:-1])]


def test_what_needs_single_updates_is_refused() -> None:
    median = Strategy(combine=CoordinateMedian, joint_rows=False)
    with pytest.raises(ValueError, match="added, not sorted"):
        run_rounds(four(), PROFILE, strategy=median, secure=SecureSums(LANES))
    with pytest.raises(ValueError, match="without the server's noise"):
        run_rounds(four(), PROFILE, noise=GaussianNoise(1e-3, 1.0), secure=SecureSums(LANES))


def test_the_history_tells_no_hospital_s_update_norm() -> None:
    rows = run_rounds(four(), PROFILE, secure=SecureSums(LANES)).history[0].hospitals.values()
    assert {(row.status, row.update_norm) for row in rows} == {("took part", None)}
    assert all(row.loss is not None for row in rows)  # that is for each hospital's own policy


def test_an_interrupted_run_goes_on_with_the_same_bytes_and_lanes_only(tmp_path) -> None:
    state, whole = tmp_path / "state", run_rounds(four(), PROFILE, secure=SecureSums(LANES))

    def stop(record, _):
        if record.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rounds(four(), PROFILE, secure=SecureSums(LANES), state=state, on_round=stop)
    for other in (SecureSums(Lanes(0.06, 4)), None):
        with pytest.raises(UserError, match="levels"):
            run_rounds(four(), PROFILE, secure=other, state=state)
    resumed = run_rounds(four(), PROFILE, secure=SecureSums(LANES), state=state)
    assert np.array_equal(resumed.vector, whole.vector)


def test_progress_is_told_for_each_upload_and_the_sum(workers) -> None:
    heard: list[tuple[int, int, str]] = []
    sums = SecureSums(LANES, workers, on_step=lambda *step: heard.append(step))
    run_rounds(four(), replace(PROFILE, rounds=1), secure=sums)
    ended = [what for done, total, what in heard if done == total]
    assert ended == [*(f"{name} encrypts" for name in "abcd"), "the sum is opened"]


def test_the_server_s_side_holds_no_private_key(workers) -> None:
    run = SecureSums(LANES, workers).begin("abc", 10, 3)
    with pytest.raises(UserError, match="only the public key"):
        run._server.open(run._server.add(None, b"\0" * (run._server.body_bytes - 1) + b"\2"))
