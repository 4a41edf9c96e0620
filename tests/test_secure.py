"""Federations whose server sees no single update, against numpy's whole numbers and against the plain federation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedbone.encryption.lanes import Lanes
from fedbone.encryption.paillier import CipherWorkers
from fedbone.encryption.paillier_keys import insecure_test_key
from fedbone.encryption.secure_sum import Contributor
from fedbone.errors import UserError
from fedbone.federation.hospital import Hospital
from fedbone.federation.rounds import RoundRules, run_rounds
from fedbone.federation.secure import SecureSums, exact_lanes
from fedbone.federation.strategies import CoordinateMedian, FedAdam, FedAvgM, Strategy
from fedbone.privacy.dp import GaussianNoise
from tests.fake_hospitals import HEAD_ROWS, PROFILE, FakeHospital, three
from tests.helpers import dot_hospital, tiny_profile

LANES = Lanes(0.05, 4)
LEVELS = 2**15 - 1


class InTheClear:
    """The reference: whole levels, added by numpy, hidden from nobody."""

    lanes = LANES

    def begin(self, names, parameters):
        return self

    def mean(self, index, updates):
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
        profile = replace(PROFILE, rounds=2 if sums.workers else 4)
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


def drop(monkeypatch, *names: str, round_index: int = 1) -> None:
    """These hospitals leave after their offer, in the first attempt of one round."""
    upload = Contributor.upload

    def failing(self, update, offers, progress=None):
        if self.name in names and (self._last.round, self._last.attempt) == (round_index, 0):
            raise OSError("the line went dead")
        return upload(self, update, offers, progress)

    monkeypatch.setattr(Contributor, "upload", failing)


def test_after_a_drop_out_the_others_repeat_the_sum(monkeypatch) -> None:
    drop(monkeypatch, "b")
    rules = RoundRules(min_hospitals=3)
    masked = run_rounds(four(), PROFILE, rules=rules, secure=SecureSums(LANES))
    row = masked.history[1].hospitals["b"]
    assert (row.status, row.weight) == ("failed", 0)
    assert "the line went dead" in row.reason
    assert masked.history[1].hospitals["a"].weight == pytest.approx(1 / 3)
    without = [*three(b={1: "raise"}), FakeHospital("d")]
    rows = run_rounds(without, PROFILE, rules=rules, secure=InTheClear()).history
    assert masked.history[1].vector_sha256 == rows[1].vector_sha256


def test_who_dropped_out_keeps_the_state_of_the_round_before(monkeypatch) -> None:
    drop(monkeypatch, "b", round_index=3)
    outcome = run_rounds(four(), PROFILE, rules=RoundRules(min_hospitals=3), secure=SecureSums(LANES))
    assert {name: int(state["visits"][0]) for name, state in outcome.hospital_states.items()} == {
        "a": 4, "b": 3, "c": 4, "d": 4
    }  # fmt: skip


def test_a_drop_out_ends_a_run_that_needs_all_hospitals(monkeypatch) -> None:
    drop(monkeypatch, "b")
    with pytest.raises(OSError, match="went dead") as caught:
        run_rounds(four(), PROFILE, secure=SecureSums(LANES))
    assert caught.value.__notes__ == ["hospital b, round 1: failed"]


def test_two_hospitals_are_too_few(monkeypatch) -> None:
    with pytest.raises(UserError, match="2 hospitals, and 3 hide each other"):
        run_rounds([FakeHospital("a"), FakeHospital("b")], PROFILE, secure=SecureSums(LANES))
    drop(monkeypatch, "b")
    with pytest.raises(UserError, match=r"2 hospitals, .*b dropped out \(the line went dead\)"):
        run_rounds(three(), PROFILE, rules=RoundRules(min_hospitals=2), secure=SecureSums(LANES))


def test_hospitals_that_do_not_repeat_end_the_round(monkeypatch) -> None:
    drop(monkeypatch, "b")
    with pytest.raises(UserError, match="round 1: b dropped out, and the hospitals repeat a sum 0 times"):
        run_rounds(four(), PROFILE, rules=RoundRules(min_hospitals=3), secure=SecureSums(LANES, repeats=0))


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
    run = SecureSums(LANES, workers).begin("abc", 10)
    with pytest.raises(UserError, match="only the public key"):
        run._server.open(run._server.add(None, b"\0" * (run._server.body_bytes - 1) + b"\2"))
