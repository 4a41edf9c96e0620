import multiprocessing
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from fedbone.errors import UserError
from fedbone.federation.arms import Arm, Folders, presentations, rounds_for, run_arms
from fedbone.vectors import sha256
from tests.helpers import all_ended, dot_hospital, tiny_profile

HOSPITALS = [dot_hospital("a", (0, 1), 1), dot_hospital("b", (1, 2), 2, count=12)]


@pytest.fixture(scope="module")
def ran():
    ticks = []
    arms = run_arms(
        dict.fromkeys(["federated", "pooled", "a"], Arm(tiny_profile())), HOSPITALS, progress=lambda *t: ticks.append(t)
    )
    return arms, ticks


def test_parallel_processes_give_the_bytes_of_a_single_one(ran):
    alone = run_arms({"federated": Arm(tiny_profile())}, HOSPITALS)
    assert sha256(ran[0]["federated"].vector) == sha256(alone["federated"].vector)


def test_progress_counts_the_films_of_every_round_of_every_arm(ran):
    """Two rounds of 20 films for federated and pooled, of 8 for hospital a alone."""
    assert {total for _, total, _ in ran[1]} == {96}
    counts = [0, *(done for done, _, _ in ran[1])]
    each = [(arm, after - before) for before, after, (_, _, arm) in zip(counts, counts[1:], ran[1], strict=False)]
    assert sorted(each) == [("a", 8)] * 2 + [("federated", 20)] * 2 + [("pooled", 20)] * 2


def test_each_arm_predicts_all_test_films_and_records_its_curve(ran):
    for arm in ran[0].values():
        assert {name: p.shape for name, p in arm.predictions.items()} == {"a": (4, 3, 3), "b": (4, 3, 3)}
        assert [row["round"] for row in arm.curve] == [1, 2]
    assert [row["presentations"] for row in ran[0]["federated"].curve] == [20, 40]
    assert [row["presentations"] for row in ran[0]["a"].curve] == [8, 16]
    assert len({sha256(arm.vector) for arm in ran[0].values()}) == 3


def test_a_second_run_replaces_the_scalars_of_the_first(tmp_path):
    for _ in range(2):
        run_arms({"federated": Arm(tiny_profile(rounds=1))}, HOSPITALS, folders=Folders(log=tmp_path))
    assert len(list((tmp_path / "federated").iterdir())) == 1


def test_an_error_in_a_worker_is_raised_here():
    with pytest.raises(UserError, match=r"^(a|b|pooled): training diverged"):
        run_arms(dict.fromkeys(["federated", "pooled"], Arm(tiny_profile(learning_rate=1e30))), HOSPITALS)


def test_presentations_and_rounds_for_small_collections():
    profile = tiny_profile(rounds=30)
    assert presentations(HOSPITALS, profile) == 20 * 30
    small, large = rounds_for(150, profile), rounds_for(5000, profile)
    assert small.rounds == 120
    assert large.rounds == profile.rounds
    parts = replace(profile, rounds=120, local_epochs=0.25)
    assert rounds_for(300, parts).rounds == 240  # 60 epochs
    assert presentations(HOSPITALS, rounds_for(300, parts)) == 20 * 60
    fives = [dot_hospital(name, count=5) for name in "abc"]
    once = replace(parts, rounds=1)  # a quarter of 5 films is 2, of 15 it is 4
    assert [presentations(fives, once, pooled) for pooled in (False, True)] == [6, 4]


def test_an_arm_whose_process_is_killed_is_explained():
    def kill_all(*_):
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(UserError, match="ended from outside"):
        run_arms(dict.fromkeys(["federated", "pooled"], Arm(tiny_profile(rounds=1000))), HOSPITALS, on_row=kill_all)


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing
        from fedbone.federation.arms import Arm, run_arms
        from tests.helpers import dot_hospital, tiny_profile
        def tell(done, total, arm):
            print(*[c.pid for c in multiprocessing.active_children()], flush=True)
        if __name__ == "__main__":
            arms = dict.fromkeys(["federated", "pooled"], Arm(tiny_profile(rounds=100000)))
            run_arms(arms, [dot_hospital("a")], progress=tell)
    """)
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    ) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert workers
    assert all_ended(workers)
