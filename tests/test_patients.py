"""Patients, poses and curves drawn from a hospital's mix."""

from __future__ import annotations

import numpy as np
import pytest

from fedbone.imaging.patients import PatientMix, draw_arms, draw_curve, draw_legs, draw_patient
from fedbone.imaging.skeleton import load_skeleton
from fedbone.imaging.spine import SpineCurve


def test_a_mix_moves_the_mean_of_its_patients() -> None:
    def mean(mix: PatientMix) -> tuple[float, float, float]:
        people = [draw_patient(mix, np.random.default_rng(i)) for i in range(200)]
        return tuple(np.mean([(np.mean(p.scale), p.mineral, p.flesh) for p in people], axis=0))

    young, old = mean(PatientMix(0.9, 1.1, 0.9)), mean(PatientMix(1.0, 0.8, 1.1))
    assert young[0] < old[0] - 0.06
    assert young[1] > old[1] + 0.2
    assert young[2] < old[2] - 0.1


def test_poses_stay_within_joint_limits() -> None:
    model = load_skeleton().model
    for seed in range(40):
        rng = np.random.default_rng(seed)
        for name, value in draw_legs(rng).items():
            low, high = model.joint(name).range
            assert low <= value <= high, name
        for view in ("AP", "LATERAL"):
            for arm in draw_arms(True, view, rng):
                assert arm == arm.limited()


def test_on_most_spine_films_the_arms_are_raised() -> None:
    raised = sum(draw_arms(True, "AP", np.random.default_rng(i))[0].elevation > 1.8 for i in range(200))
    assert 100 < raised < 160
    assert all(draw_arms(False, "AP", np.random.default_rng(i))[0].elevation < 1.2 for i in range(50))


def test_curves_have_the_angle_they_name() -> None:
    z = np.linspace(0, 1, 2001)
    for seed in range(20):
        bumps = draw_curve(np.random.default_rng(seed)).bumps
        measured = [np.degrees(np.ptp(np.arctan(SpineCurve((bump,)).shift_slope(z)[1]))) for bump in bumps]
        assert measured == [pytest.approx(abs(bump[2]), abs=0.1) for bump in bumps]  # each curve alone
        assert 12 <= measured[0] <= 55
        assert measured[1] < measured[0]
        assert np.sign(bumps[0][2]) != np.sign(bumps[1][2])  # the second curve brings the trunk back
