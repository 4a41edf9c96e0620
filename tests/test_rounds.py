"""Rounds in which hospitals are asked, drop out and come back, and runs that are interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbone.errors import UserError
from fedbone.federation.history import HospitalRow, RoundRecord, from_json, history_rows, to_json
from fedbone.federation.hospital import Hospital, RoundTask
from fedbone.federation.rounds import Outcome, RoundRules, asked_in, initial_vector, run_rounds
from fedbone.federation.strategies import CoordinateMedian, FedAdam, FedAvgM, Strategy, TrimmedMean
from fedbone.model.hrnet import build_for
from fedbone.privacy.dp import GaussianNoise
from fedbone.run_state import save_state
from fedbone.vectors import layout_of, sha256
from tests.fake_hospitals import HEAD_ROWS, PROFILE, START, FakeHospital, three
from tests.helpers import dot_hospital, tiny_profile

PLAIN = Strategy(server=FedAvgM(0.0), joint_rows=False)
TWO_OF_THREE = RoundRules(min_hospitals=2)
ONE_ROUND = replace(PROFILE, rounds=1)


def real_hospitals(profile, local_norm=False):
    data = [dot_hospital("a", (0,), 1), dot_hospital("b", (1,), 2), dot_hospital("c", (0, 2), 3)]
    return [Hospital(h, profile, local_norm) for h in data]


def fingerprint(outcome: Outcome) -> tuple:
    """Of all that a run leaves behind, to the byte."""
    states = {n: {k: a.tobytes() for k, a in s.items()} for n, s in sorted(outcome.hospital_states.items())}
    return sha256(outcome.vector), outcome.history, states


# --- who takes part


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 1), st.integers(1, 40), st.integers(0, 5), st.integers(0, 200))
def test_a_share_of_the_hospitals_is_asked(hospitals, share, least, seed, index):
    names, least = [f"h{i:02}" for i in range(hospitals)], min(least, hospitals)
    asked = asked_in(index, names, RoundRules(share, least), seed)
    assert asked == sorted(set(asked))
    assert set(asked) <= set(names)
    assert len(asked) == max(round(share * hospitals), least)
    assert asked == asked_in(index, names, RoundRules(share, least), seed)


def test_every_hospital_is_asked_equally_often():
    """4 of 10 in 2000 rounds: 800 times each, and three standard deviations are 66."""
    names = list("abcdefghij")
    asked = [name for index in range(2000) for name in asked_in(index, names, RoundRules(0.4), 0)]
    assert all(abs(asked.count(name) - 800) < 80 for name in names)
    assert asked_in(0, names, RoundRules(0.4), 0) != asked_in(0, names, RoundRules(0.4), 1)


def test_who_is_not_asked_does_not_train():
    rules = RoundRules(participation=0.67)
    outcome = run_rounds(three(), PROFILE, 1, rules=rules)
    for record in outcome.history:
        asked = asked_in(record.round, ["a", "b", "c"], rules, 1)
        assert len(asked) == 2
        assert {n: row.status for n, row in record.hospitals.items()} == {
            n: "took part" if n in asked else "not asked" for n in "abc"
        }
    visits = {name: int(state["visits"][0]) for name, state in outcome.hospital_states.items()}
    assert sum(visits.values()) == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"participation": 0.0}, "participation"),
        ({"participation": 1.1}, "participation"),
        ({"participation": float("nan")}, "participation"),
        ({"min_hospitals": 0}, "min_hospitals"),
        ({"deadline_s": 0.0}, "deadline_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
    ],
)
def test_rules_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        RoundRules(**changes)


def test_what_cannot_work_is_said_before_the_first_round():
    with pytest.raises(ValueError, match="processes > 1"):
        run_rounds(three(), PROFILE, rules=RoundRules(deadline_s=1.0))
    with pytest.raises(ValueError, match="min_hospitals is 4, and there are 3"):
        run_rounds(three(), PROFILE, rules=RoundRules(min_hospitals=4))
    with pytest.raises(ValueError, match="name of its own"):
        run_rounds([FakeHospital("a"), FakeHospital("a")], PROFILE)
    with pytest.raises(ValueError, match="noise is calibrated for a mean"):
        run_rounds(three(), PROFILE, strategy=replace(PLAIN, combine=CoordinateMedian), noise=GaussianNoise(0.1, 1.0))


# --- who drops out

FAULTS = {
    "raise": ("failed", "OSError: its disk is full"),
    "odd": ("failed", "OddError: its disk is odd"),
    "nan": ("refused", "its update holds NaN or infinity"),
    "short": ("refused", "the model needs float32"),
    "float64": ("refused", "its update is float64"),
    "huge": ("refused", "1e+30"),
    "other joints": ("refused", "other joints than it announced"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_round_goes_on_without_a_hospital_that_fails(fault):
    """As if it had been absent: the bytes are the same, and what stays in it is as before the round."""
    outcome = run_rounds(three(b={1: fault}), PROFILE, rules=TWO_OF_THREE)
    status, reason = FAULTS[fault]
    row = outcome.history[1].hospitals["b"]
    assert (row.status, row.weight, row.update_norm, row.loss) == (status, 0.0, None, None)
    assert reason in row.reason
    assert outcome.hospital_states["b"]["visits"] == [3]
    absent = run_rounds(three(), PROFILE, rules=TWO_OF_THREE, available=lambda index, name: (index, name) != (1, "b"))
    assert absent.history[1].hospitals["b"] == HospitalRow("absent", "it cannot be reached")
    assert [r.vector_sha256 for r in outcome.history] == [r.vector_sha256 for r in absent.history]
    assert outcome.history[1].vector_sha256 != run_rounds(three(), PROFILE).history[1].vector_sha256


def test_without_noise_the_weights_are_those_of_who_took_part():
    outcome = run_rounds(three(b={0: "raise"}), ONE_ROUND, strategy=PLAIN, rules=TWO_OF_THREE)
    a, _, c = three()
    expected = START + (a.delta(0, 1).astype(np.float64) + c.delta(0, 1)) / 2
    assert outcome.vector == pytest.approx(expected, abs=1e-7)
    row = outcome.history[0].hospitals["c"]
    assert (row.weight, row.loss) == (0.5, 1.0)
    assert row.update_norm == pytest.approx(np.linalg.norm(c.delta(0, 1).astype(np.float64)), rel=1e-5)


def test_a_median_is_that_of_who_took_part():
    strategy = replace(PLAIN, combine=CoordinateMedian)
    outcome = run_rounds(three(b={0: "raise"}), ONE_ROUND, strategy=strategy, rules=TWO_OF_THREE)
    a, _, c = three()
    assert outcome.vector == pytest.approx(START + np.median([a.delta(0, 1), c.delta(0, 1)], axis=0), abs=2e-7)
    assert outcome.history[0].hospitals["c"].weight == 0.5


def test_under_differential_privacy_the_denominator_and_the_factors_stay():
    """a and c alone: thirds all the same; joint 0 is labelled by two of three, joint 2 by one."""
    strategy, noise = Strategy(server=FedAvgM(0.0)), GaussianNoise(0.0)
    outcome = run_rounds(three(b={0: "raise"}), ONE_ROUND, strategy=strategy, rules=TWO_OF_THREE, noise=noise)
    a, _, c = three()
    expected = (a.delta(0, 1).astype(np.float64) + c.delta(0, 1)) / 3
    expected[HEAD_ROWS[0]] *= 3 / 2
    expected[HEAD_ROWS[2]] *= 3
    assert outcome.vector == pytest.approx(START + expected, abs=1e-7)
    row = outcome.history[0].hospitals["c"]
    assert (row.weight, row.update_norm, row.loss) == (1 / 3, None, None)  # nothing exact of one hospital


@pytest.mark.parametrize("fault", FAULTS)
def test_under_differential_privacy_the_history_does_not_quote_an_error(fault):
    """It may hold numbers of one hospital's update, which the noise does not cover: 1e+30 among these faults."""
    noise = GaussianNoise(0.0)
    outcome = run_rounds(three(b={1: fault}), PROFILE, rules=TWO_OF_THREE, noise=noise)
    row, (status, reason) = outcome.history[1].hospitals["b"], FAULTS[fault]
    assert (row.status, row.update_norm, row.loss) == (status, None, None)
    assert reason not in row.reason
    assert "the noise does not cover it" in row.reason
    absent = run_rounds(
        three(), PROFILE, rules=TWO_OF_THREE, noise=noise, available=lambda index, name: (index, name) != (1, "b")
    )
    assert [r.vector_sha256 for r in outcome.history] == [r.vector_sha256 for r in absent.history]


def test_a_trimmed_mean_of_too_few_updates_is_explained_and_can_go_on(tmp_path):
    strategy = Strategy(combine=TrimmedMean, joint_rows=False)
    rules, state = RoundRules(min_hospitals=1), tmp_path / "state"
    with pytest.raises(UserError, match=r"round 1: 2 updates are too few"):
        run_rounds(three(b={1: "raise"}), PROFILE, strategy=strategy, rules=rules, state=state)
    assert len(run_rounds(three(), PROFILE, strategy=strategy, rules=rules, state=state).history) == 4


def test_a_strategy_that_the_next_process_would_not_know_is_refused(tmp_path):
    strategy = Strategy(combine=lambda: TrimmedMean(1), joint_rows=False)
    with pytest.raises(UserError, match="not be known again") as refused:
        run_rounds(three(), PROFILE, strategy=strategy, state=tmp_path / "state")
    assert "partial" in refused.value.remedy
    run_rounds(three(), PROFILE, strategy=replace(strategy, combine=partial(TrimmedMean, 1)), state=tmp_path / "state")


def test_the_norm_that_stays_in_the_hospitals_gets_no_noise():
    profile = tiny_profile(rounds=1, norm="batch")
    hospitals = real_hospitals(profile, local_norm=True)
    strategy = Strategy(server=FedAvgM(0.0), local_norm=True)
    after = run_rounds(hospitals, profile, strategy=strategy, noise=GaussianNoise(0.1, 1.0)).vector
    moved = after != initial_vector(profile, 3, 0, local_norm=True)
    norm = layout_of(build_for(profile, 3), local_norm=True).is_kind("norm")
    assert norm.any()
    assert not moved[norm].any()
    assert moved[~norm].mean() > 0.9


def test_under_differential_privacy_the_denominator_is_that_of_all_who_might_have_been_asked():
    rules = RoundRules(participation=0.34)
    outcome = run_rounds(three(), ONE_ROUND, strategy=PLAIN, rules=rules, noise=GaussianNoise(0.0))
    (name,) = asked_in(0, ["a", "b", "c"], rules, 0)
    (hospital,) = (h for h in three() if h.name == name)
    assert outcome.vector == pytest.approx(START + hospital.delta(0, 1) / 3.0, abs=1e-7)


@pytest.mark.parametrize("server", [FedAvgM(0.6), FedAdam()], ids=lambda s: type(s).__name__)
def test_a_joint_that_nobody_present_labels_rests(server):
    """b alone labels joint 1 and misses round 1: its rows and their momentum have two rounds, all else has three."""
    vectors = []

    def run(available=None, rounds=3):
        vectors.clear()
        return run_rounds(
            three(),
            replace(PROFILE, rounds=rounds),
            strategy=Strategy(server=server),
            rules=TWO_OF_THREE,
            available=available,
            on_round=lambda record, vector: vectors.append(vector.copy()),
        )

    run(lambda index, name: (index, name) != (1, "b"))
    rows, others = HEAD_ROWS[1], HEAD_ROWS[0]
    before, during, after = (vector[rows] for vector in vectors)
    assert np.array_equal(before, during)
    assert not np.array_equal(vectors[0][others], vectors[1][others])
    b, state = FakeHospital("b", (1,)), {}
    one = server.step(START[rows], b.delta(0, 1)[rows].astype(np.float64), state)
    two = server.step(one, b.delta(2, 2)[rows].astype(np.float64), state)
    assert during == pytest.approx(one, abs=1e-7)
    assert after == pytest.approx(two, abs=1e-7)


def test_too_few_hospitals_stop_the_run_and_the_same_call_goes_on(tmp_path):
    undisturbed = run_rounds(three(), PROFILE, rules=TWO_OF_THREE)
    path, broken = tmp_path / "state", three(b={2: "raise"})
    with pytest.raises(UserError) as stopped:
        run_rounds(
            broken, PROFILE, rules=TWO_OF_THREE, state=path, available=lambda index, name: (index, name) != (2, "a")
        )
    assert "round 2: 1 of the 2 hospitals it needs took part" in str(stopped.value)
    assert "a absent (it cannot be reached); b failed (OSError: its disk is full)" in str(stopped.value)
    assert len(header_of(path)["history"]) == 2
    again = run_rounds(three(), PROFILE, rules=TWO_OF_THREE, state=path)
    assert fingerprint(again) == fingerprint(undisturbed)


def test_who_has_left_for_good_does_not_stop_the_others(tmp_path):
    with pytest.raises(UserError, match=r"^b: it cannot be reached"):
        run_rounds(three(), PROFILE, state=tmp_path / "state", available=lambda index, name: index < 2 or name != "b")
    outcome = run_rounds(
        three(),
        PROFILE,
        rules=RoundRules(min_hospitals=1),
        state=tmp_path / "state",
        available=lambda index, name: index < 2 or name != "b",
    )
    assert [r.hospitals["b"].status for r in outcome.history] == ["took part", "took part", "absent", "absent"]


def test_without_min_hospitals_the_first_failure_is_raised_and_names_the_hospital():
    with pytest.raises(OSError, match="disk is full") as failed:
        run_rounds(three(b={1: "raise"}), PROFILE)
    assert failed.value.__notes__ == ["hospital b, round 1: failed"]
    with pytest.raises(UserError, match=r"^b: its update holds NaN"):
        run_rounds(three(b={1: "nan"}), PROFILE)


def test_one_hospital_that_fails_is_not_waited_for():
    """The others after it in the round would train for nothing."""
    hospitals = three(a={0: "raise"})
    with pytest.raises(OSError, match="disk"):
        run_rounds(hospitals, PROFILE)
    assert [h.visits for h in hospitals] == [1, 0, 0]


def test_an_update_is_dropped_before_the_next_is_made():
    alive, most = [], []

    class Watched(FakeHospital):
        def local_update(self, global_vector, task):
            update = super().local_update(global_vector, task)
            alive.append(weakref.ref(update.delta))
            most.append(sum(ref() is not None for ref in alive))
            return update

    run_rounds([Watched(f"h{i:02}") for i in range(20)], ONE_ROUND)
    assert (len(most), max(most)) == (20, 2)  # the one that was just made, and the one that was just added


# --- the same bytes


def test_the_order_of_hospitals_does_not_change_a_bit():
    profile = tiny_profile()
    forward = run_rounds(real_hospitals(profile), profile, seed=4)
    backward = run_rounds(real_hospitals(profile)[::-1], profile, seed=4)
    assert fingerprint(forward) == fingerprint(backward)
    assert sha256(forward.vector) == forward.history[-1].vector_sha256
    assert [record.round for record in forward.history] == [0, 1]


def test_the_order_of_hospitals_does_not_change_who_is_asked():
    forward, backward = (run_rounds(h, PROFILE, rules=RoundRules(0.67)) for h in (three(), three()[::-1]))
    assert fingerprint(forward) == fingerprint(backward)
    assert history_rows(forward.history) == history_rows(backward.history)


def test_after_each_round_the_objects_hold_what_stays_in_the_hospitals():
    """Also b's, whose training of round 1 does not count."""
    hospitals, seen = three(b={1: "nan"}), []
    run_rounds(hospitals, PROFILE, rules=TWO_OF_THREE, on_round=lambda *_: seen.append([h.visits for h in hospitals]))
    assert seen == [[1, 1, 1], [2, 1, 2], [3, 2, 3], [4, 3, 4]]


def test_objects_that_were_used_before_start_anew():
    hospitals = three()
    first = run_rounds(hospitals, PROFILE)
    assert fingerprint(run_rounds(hospitals, PROFILE)) == fingerprint(first)


def test_callbacks_see_every_round_and_its_vector():
    seen = []
    outcome = run_rounds(three(), PROFILE, on_round=lambda record, v: seen.append((record, sha256(v))))
    assert [record for record, _ in seen] == outcome.history
    assert [digest for _, digest in seen] == [record.vector_sha256 for record in outcome.history]


def test_one_hospital_without_momentum_is_plain_local_training():
    profile = tiny_profile(rounds=1)
    hospital = Hospital(dot_hospital("a"), profile)
    outcome = run_rounds([hospital], profile, seed=2, strategy=Strategy(server=FedAvgM(0.0)))
    start = initial_vector(profile, 3, 2)
    assert outcome.vector == pytest.approx(start + hospital.local_update(start, RoundTask(0, 2)).delta, abs=1e-7)


def test_the_proximal_term_reaches_the_hospitals():
    tasks = []

    class Listening(FakeHospital):
        def local_update(self, global_vector, task):
            tasks.append(task)
            return super().local_update(global_vector, task)

    run_rounds([Listening("a")], PROFILE, seed=5, strategy=Strategy(proximal_mu=0.1))
    assert tasks == [RoundTask(index, 5, 0.1) for index in range(4)]


def test_clipping_bounds_the_round_and_noise_moves_it():
    clipped = run_rounds(three(), ONE_ROUND, noise=GaussianNoise(0.0, 1e-3))
    assert clipped.history[0].update_norm <= 3e-3  # a head row of one labelling hospital weighs three times as much
    assert np.abs(clipped.vector - START).max() <= 3e-3
    noisy = run_rounds(three(), ONE_ROUND, noise=GaussianNoise(0.01, 1e-3, np.random.default_rng(0)))
    assert np.std((noisy.vector - clipped.vector)[:100_000]) == pytest.approx(0.01, rel=0.05)


def test_joint_rows_are_the_mean_over_the_hospitals_that_label_the_joint():
    aware = run_rounds(three(), ONE_ROUND, strategy=Strategy(server=FedAvgM(0.0))).vector - START
    plain = run_rounds(three(), ONE_ROUND, strategy=PLAIN).vector - START
    assert aware[HEAD_ROWS[1]] == pytest.approx(3 * plain[HEAD_ROWS[1]], rel=1e-3, abs=1e-6)  # labelled by b alone
    assert aware[HEAD_ROWS[0]] == pytest.approx(1.5 * plain[HEAD_ROWS[0]], rel=1e-3, abs=1e-6)  # by a and c
    assert np.array_equal(aware[:-27], plain[:-27])


# --- the state file


class InterruptedRun(Exception):
    pass


def interrupted_after(rounds):
    def on_round(record, vector):
        if record.round + 1 == rounds:
            raise InterruptedRun

    return on_round


def header_of(path) -> dict:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["fedbone"])


@pytest.mark.parametrize("server", [FedAvgM(0.6), FedAvgM(0.0), FedAdam()], ids=repr)
def test_an_interruption_after_any_round_changes_nothing(server, tmp_path):
    """Momentum and what stays in the hospitals included; one hospital fails, and not all are asked."""
    setting = {"strategy": Strategy(server=server), "rules": RoundRules(0.67, 1)}

    def hospitals():
        return three(a={2: "raise"})

    undisturbed = fingerprint(run_rounds(hospitals(), PROFILE, 3, **setting))
    for stop in (1, 2, 3, 4):
        path = tmp_path / f"state {stop}"
        with pytest.raises(InterruptedRun):
            run_rounds(hospitals(), PROFILE, 3, state=path, on_round=interrupted_after(stop), **setting)
        seen = []
        done = run_rounds(
            hospitals(),
            PROFILE,
            3,
            state=path,
            on_round=lambda record, _, seen=seen: seen.append(record.round),
            **setting,
        )
        assert fingerprint(done) == undisturbed
        assert seen == list(range(stop, 4))


def test_what_was_shown_is_on_the_disk(tmp_path):
    """A noisy model that was published and lost would be drawn a second time: two releases for the price of one."""
    path = tmp_path / "state"

    def on_round(record, vector):
        assert header_of(path)["history"][-1]["vector_sha256"] == record.vector_sha256 == sha256(vector)

    assert len(run_rounds(three(), PROFILE, noise=GaussianNoise(0.1), state=path, on_round=on_round).history) == 4


def test_a_finished_run_is_not_run_again(tmp_path):
    first = run_rounds(three(), PROFILE, state=tmp_path / "state")
    hospitals = three(**dict.fromkeys("abc", dict.fromkeys(range(4), "raise")))
    again = run_rounds(hospitals, PROFILE, state=tmp_path / "state", processes=2)
    assert fingerprint(again) == fingerprint(first)
    assert [h.visits for h in hospitals] == [4, 4, 4]  # the objects hold what stays in the hospitals


OTHERS = [
    ({"profile": replace(PROFILE, rounds=5)}, "rounds 4, now 5"),
    ({"seed": 1}, "seed 0, now 1, other first model"),
    ({"strategy": Strategy(server=FedAvgM(0.5))}, "FedAvgM(momentum=0.6)"),
    ({"rules": RoundRules(participation=0.5)}, "participation 1.0, now 0.5"),
    ({"noise": GaussianNoise(0.1)}, "noise None, now {'sigma': 0.1, 'clip_norm': None}"),
    ({"hospitals": three()[:2]}, "other films of c"),
    ({"hospitals": [*three(), FakeHospital("d")]}, "other films of d"),
    ({"hospitals": [*three()[:2], FakeHospital("c", (0, 1, 2))]}, "other films of c"),
]


@pytest.mark.parametrize(("changes", "words"), OTHERS, ids=[words for _, words in OTHERS])
def test_the_state_of_another_run_is_refused_and_kept(tmp_path, changes, words):
    path = tmp_path / "state"
    run_rounds(three(), PROFILE, state=path)
    before = path.read_bytes()
    call = {"hospitals": three(), "profile": PROFILE, "state": path, **changes}
    with pytest.raises(UserError, match="the state of another federation: ") as refused:
        run_rounds(**call)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before


def test_other_processes_and_smaller_passes_go_on(tmp_path):
    with pytest.raises(InterruptedRun):
        run_rounds(three(), PROFILE, state=tmp_path / "state", on_round=interrupted_after(2))
    done = run_rounds(three(), replace(PROFILE, micro_batch=1), state=tmp_path / "state")
    assert fingerprint(done) == fingerprint(run_rounds(three(), PROFILE))


@pytest.mark.parametrize("place", [100, -100], ids=["in the header", "in an array"])
def test_a_damaged_state_is_refused(tmp_path, place):
    path = tmp_path / "state"
    run_rounds(three(), ONE_ROUND, state=path)
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="Delete it") as refused:
        run_rounds(three(), ONE_ROUND, state=path)
    assert str(path) in str(refused.value)


def test_the_state_of_a_training_is_not_one_of_a_federation(tmp_path):
    save_state(tmp_path / "state", "training", {}, {"vector": START}, {})
    with pytest.raises(UserError, match="not of a federation"):
        run_rounds(three(), ONE_ROUND, state=tmp_path / "state")


KILLED = """
    import sys
    from pathlib import Path
    from fedbone.federation.rounds import run_rounds
    from fedbone.federation.strategies import Strategy
    from tests.test_rounds import fed_bn
    from fedbone.vectors import sha256
    profile, hospitals, strategy = fed_bn()
    tell = lambda record, vector: print(record.round, flush=True)
    done = run_rounds(hospitals, profile, 0, strategy=strategy, state=Path(sys.argv[1]), on_round=tell)
    print(sha256(done.vector))
"""


def fed_bn():
    """A federation with momentum at the server and normalisation in the hospitals."""
    profile = tiny_profile(rounds=4, norm="batch")
    return profile, real_hospitals(profile, local_norm=True), Strategy(local_norm=True)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")
def test_a_process_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    profile, hospitals, strategy = fed_bn()
    undisturbed = run_rounds(hospitals, profile, strategy=strategy)
    script, path = tmp_path / "federate.py", tmp_path / "a folder" / "state"
    script.write_text(textwrap.dedent(KILLED))
    with run(script, path) as child:
        first = [child.stdout.readline().strip() for _ in range(2)]
        child.send_signal(signal.SIGKILL)
    with run(script, path) as child:
        *rounds, found = child.stdout.read().split()
    assert first == ["0", "1"]
    assert rounds in (["2", "3"], ["3"])  # the third may have been finished before the signal came
    assert found == sha256(undisturbed.vector)
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == ["state"]
    done = run_rounds(fed_bn()[1], profile, strategy=strategy, state=path)
    assert fingerprint(done) == fingerprint(undisturbed)
    assert done.hospital_states["a"]


def run(script, path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(script), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
    )


# --- the history


def test_the_tidy_table_has_a_row_for_each_round_and_hospital():
    outcome = run_rounds(three(b={1: "raise"}), PROFILE, rules=TWO_OF_THREE)
    rows = history_rows(outcome.history)
    assert len(rows) == 4 * 3
    assert {tuple(row) for row in rows} == {("round", "hospital", "status", "reason", "weight", "update_norm", "loss")}
    assert [(r["round"], r["hospital"], r["status"]) for r in rows[3:6]] == [
        (1, "a", "took part"),
        (1, "b", "failed"),
        (1, "c", "took part"),
    ]
    assert outcome.history[1].losses == {"a": 2.0, "c": 2.0}


def test_losses_that_are_not_released_do_not_leave_the_hospital():
    profile = tiny_profile(rounds=1)
    hospitals = [Hospital(dot_hospital("a"), profile, release_losses=False), Hospital(dot_hospital("b"), profile)]
    record = run_rounds(hospitals, profile).history[0]
    assert (list(record.losses), record.hospitals["a"].loss) == (["b"], None)


finite = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(HospitalRow, st.sampled_from(["took part", "late"]), st.text(), finite, st.none() | finite, st.none())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.builds(RoundRecord, st.integers(), st.text(), finite, st.dictionaries(st.text(), rows))))
def test_the_history_comes_back_from_its_file(history):
    assert from_json(json.loads(json.dumps(to_json(history)))) == history


def test_a_federation_goes_on_from_the_model_it_is_given():
    """Such as one of public films: the fake hospitals' steps do not depend on where they start."""
    start, usual = initial_vector(PROFILE, 3, 5), initial_vector(PROFILE, 3, 0)
    from_start, from_usual = (run_rounds(three(), ONE_ROUND, 0, start=first).vector for first in (start, None))
    assert np.allclose(from_start - start, from_usual - usual, atol=1e-6)
    assert not np.allclose(from_start, from_usual, atol=1e-3)
