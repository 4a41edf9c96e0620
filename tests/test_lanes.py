"""Packing against plain shifts, sums against Python's integers, and every way in which a sum can be wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedbone.encryption import lanes as lanes_module
from fedbone.encryption.lanes import Lanes
from fedbone.errors import UserError

KEY_BITS = 512
RANGE = 0.05
LANES = Lanes(RANGE, hospitals=8)  # 19 bits a lane, 26 lanes, and so 25 levels in a plaintext
HOSPITALS = [1, 2, 3, 7, 8, 9, 64]


def by_shifts(levels, lanes, key_bits=KEY_BITS):
    """The same plaintexts with nothing but Python's integers."""
    columns = (key_bits - 1) // lanes.width - 1
    starts = range(0, max(1, len(levels)), columns)
    blocks = [[1, *map(int, levels[start : start + columns])] for start in starts]
    return [sum(level << place * lanes.width for place, level in enumerate(block)) for block in blocks]


def summed(parts):
    return [sum(numbers) for numbers in zip(*parts, strict=True)]


def test_levels_by_hand():
    levels, cut_off = Lanes(1.0, 3, bits=4).quantise(np.array([-1, -0.5, 0, 1 / 7, 0.5, 1]))
    assert levels.tolist() == [1, 4, 8, 9, 12, 15]  # steps of 1/7 around 8; 3.5 goes to the even neighbour
    assert levels.dtype == np.int64
    assert cut_off == 0


@pytest.mark.parametrize("hospitals", HOSPITALS)
@pytest.mark.parametrize("bits", [2, 12, 16, 24, 36])
def test_a_lane_holds_the_sum_of_all_hospitals_and_is_no_wider(hospitals, bits):
    width = Lanes(RANGE, hospitals, bits).width
    assert hospitals * (2**bits - 1) < 2**width
    assert hospitals * 2**bits > 2 ** (width - 1)


@pytest.mark.parametrize(
    ("hospitals", "key_bits", "expected"), [(8, 2048, 107), (8, 3072, 161), (64, 2048, 93), (64, 3072, 139)]
)
def test_lanes_of_a_plaintext(hospitals, key_bits, expected):
    lanes = Lanes(RANGE, hospitals)
    assert lanes.per_plaintext(key_bits) == expected
    assert expected * lanes.width < key_bits  # below any modulus of that size


@pytest.mark.parametrize(
    "wrong",
    [
        {"update_range": 0.0},
        {"update_range": -1.0},
        {"update_range": 1e-310},
        {"update_range": math.inf},
        {"update_range": math.nan},
        {"hospitals": 0},
        {"bits": 1},
        {"bits": 41},
        {"bits": 40, "hospitals": 257},
    ],
    ids=str,
)
def test_lanes_that_hold_nothing(wrong):
    with pytest.raises(ValueError, match=r"must be|at most"):
        Lanes(**{"update_range": RANGE, "hospitals": 8} | wrong)


def test_a_key_that_is_too_short_for_two_lanes():
    assert Lanes(RANGE, 8).per_plaintext(39) == 2
    with pytest.raises(UserError, match="no room"):
        Lanes(RANGE, 8).per_plaintext(38)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_a_number_that_is_none(bad, monkeypatch):
    monkeypatch.setattr(lanes_module, "BLOCK", 4)
    update = np.zeros(11, np.float32)
    update[9] = bad
    with pytest.raises(UserError, match="NaN or infinity"):
        LANES.quantise(update)


def test_what_is_beyond_the_range_is_cut_off_and_counted(monkeypatch):
    monkeypatch.setattr(lanes_module, "BLOCK", 2)
    update = np.array([0.0, 0.06, -0.04, -1e30, 0.05, 0.2, 1e300])
    levels, cut_off = LANES.quantise(update)
    assert cut_off == 4
    assert levels.tolist() == [32768, 65535, 32768 - 26214, 1, 65535, 65535, 65535]
    assert not np.may_share_memory(levels, update)


@settings(max_examples=60, derandomize=True)
@given(st.data(), st.sampled_from(HOSPITALS), st.sampled_from([2, 8, 16, 24, 36]))
def test_the_mean_is_within_half_a_step(data, hospitals, bits):
    lanes = Lanes(RANGE, hospitals, bits)
    numbers = arrays(np.float32, (hospitals, 5), elements=st.floats(-0.046875, 0.046875, width=32))
    updates = data.draw(numbers)
    sums = sum(lanes.quantise(update)[0] for update in updates)
    error = np.abs(lanes.mean(sums, hospitals) - updates.astype(np.float64).mean(axis=0))
    assert error.max() <= RANGE / (2 * (2 ** (bits - 1) - 1)) * (1 + 1e-6) + 1e-16  # of float64 itself


def test_the_bound_of_16_bits_is_reached_but_not_passed():
    """Half way between two levels: the bound that is promised, range / 65534, is a true one."""
    update = np.array([RANGE * 100.5 / 32767])
    levels, _ = LANES.quantise(update)
    error = abs(LANES.mean(levels, 1) - update)[0]
    assert RANGE / 65534 * 0.999 < error <= RANGE / 65534 * (1 + 1e-9)


@settings(max_examples=80, derandomize=True)
@given(
    st.integers(0, 80), st.sampled_from(HOSPITALS), st.sampled_from([2, 12, 16, 36]), st.randoms(use_true_random=False)
)
def test_packing_is_shifting_and_sums_are_exact(count, hospitals, bits, random):
    lanes = Lanes(RANGE, hospitals, bits)
    updates = [np.array([random.uniform(-0.07, 0.07) for _ in range(count)]) for _ in range(hospitals)]
    levels = [lanes.quantise(update)[0] for update in updates]
    packed = [lanes.pack(level, KEY_BITS) for level in levels]
    assert packed == [by_shifts(level, lanes) for level in levels]
    sums, contributors = lanes.unpack(summed(packed), count, KEY_BITS)
    assert sums.tolist() == summed([level.tolist() for level in levels])
    assert contributors == hospitals
    assert sums.dtype == np.int64


@pytest.mark.parametrize("count", [0, 1, 24, 25, 26, 49, 50, 51, 130])
def test_lengths_around_a_plaintext_and_a_block(count, monkeypatch):
    monkeypatch.setattr(lanes_module, "BLOCK", 50)  # two plaintexts
    levels = np.random.default_rng(count).integers(1, 65536, count)
    plaintexts = LANES.pack(levels, KEY_BITS)
    assert plaintexts == by_shifts(levels, LANES)
    sums, contributors = LANES.unpack(plaintexts, count, KEY_BITS)
    assert sums.tolist() == levels.tolist()
    assert contributors == 1


@pytest.mark.parametrize("hospitals", HOSPITALS)
@pytest.mark.parametrize("signs", [[1], [-1], [1, -1], [-1, 1, 1]], ids=str)
def test_nothing_overflows_when_everyone_is_at_the_end_of_the_range(hospitals, signs):
    """The attack without headroom: a lane that overflows carries into its neighbour, and nobody notices."""
    lanes = Lanes(RANGE, hospitals)
    update = np.resize(np.array(signs) * RANGE, 60)
    levels, _ = lanes.quantise(update)
    sums, contributors = lanes.unpack(summed([lanes.pack(levels, KEY_BITS)] * hospitals), 60, KEY_BITS)
    assert contributors == hospitals
    assert sums.tolist() == [hospitals * level for level in levels.tolist()]
    assert lanes.mean(sums, hospitals) == pytest.approx(update, rel=1e-12)


@pytest.mark.parametrize("hospitals", HOSPITALS)
@pytest.mark.parametrize("share", [-1, 0, 1])
def test_one_hospital_more_than_there_is_room_for(hospitals, share):
    """Whatever carries into its neighbour goes up: the counter, in the lowest lane, stays true."""
    lanes = Lanes(RANGE, hospitals)
    packed = lanes.pack(lanes.quantise(np.full(60, share * RANGE))[0], KEY_BITS)
    lanes.unpack(summed([packed] * hospitals), 60, KEY_BITS)
    with pytest.raises(UserError, match=f"1 to {hospitals} hospitals|larger than all its lanes"):
        lanes.unpack(summed([packed] * (hospitals + 1)), 60, KEY_BITS)


@pytest.mark.parametrize("level", [-1, 0, 65536, 1 << 40])
def test_levels_that_would_reach_into_the_next_lane(level):
    with pytest.raises(ValueError, match="use quantise"):
        LANES.pack(np.array([5, level, 5]), KEY_BITS)


def changed(index, change):
    """The sum of two hospitals' 30 numbers (25 and 5 levels), with one plaintext changed."""
    levels, _ = LANES.quantise(np.linspace(-RANGE, RANGE, 30))
    plaintexts = summed([LANES.pack(levels, KEY_BITS)] * 2)
    plaintexts[index] = change(plaintexts[index])
    return plaintexts


@pytest.mark.parametrize(
    ("index", "change", "problem"),
    [
        (0, lambda m: m + (1 << 494), "larger than all its lanes"),
        (1, lambda m: m + 1, "counters"),
        (1, lambda m: m - 1, "counters"),
        (0, lambda m: m + (20 << 19 * 3), None),
        (0, lambda m: m + (131070 << 19 * 3), "cannot add up"),
        (0, lambda m: m - (2 << 19), "cannot add up"),
        (1, lambda m: m + (1 << 19 * 6), "cannot add up"),
        (1, lambda m: m + (1 << 19 * 25), "cannot add up"),
    ],
    ids=["large", "counter-up", "counter-down", "possible", "too-high", "too-low", "padding", "last-padding"],
)
def test_a_changed_sum(index, change, problem):
    """A change within what the hospitals can reach is not seen here: for that, uploads are signed."""
    if problem is None:
        assert LANES.unpack(changed(index, change), 30, KEY_BITS)[1] == 2
        return
    with pytest.raises(UserError, match=problem):
        LANES.unpack(changed(index, change), 30, KEY_BITS)


def test_the_first_lane_has_the_smallest_update_that_can_be():
    """So that too-low above takes it below what two hospitals can reach."""
    assert (changed(0, int)[0] >> 19) & 0x7FFFF == 2


@pytest.mark.parametrize("counters", [[0, 0], [9, 9], [1, 2], [3, 2]], ids=str)
def test_counters_must_agree_and_be_possible(counters):
    packed = LANES.pack(LANES.quantise(np.zeros(30))[0], KEY_BITS)
    with pytest.raises(UserError, match="counters"):
        LANES.unpack([m - 1 + counter for m, counter in zip(packed, counters, strict=True)], 30, KEY_BITS)


@pytest.mark.parametrize("parameters", [0, 25, 51])
def test_another_number_of_plaintexts(parameters):
    packed = LANES.pack(LANES.quantise(np.zeros(30))[0], KEY_BITS)
    with pytest.raises(UserError, match="2 plaintexts"):
        LANES.unpack(packed, parameters, KEY_BITS)
    with pytest.raises(UserError, match="0 plaintexts"):
        LANES.unpack([], parameters, KEY_BITS)


def test_fewer_parameters_in_as_many_plaintexts():
    packed = LANES.pack(LANES.quantise(np.zeros(30))[0], KEY_BITS)
    with pytest.raises(UserError, match="cannot add up"):
        LANES.unpack(packed, 29, KEY_BITS)
    with pytest.raises(UserError, match="cannot add up"):
        LANES.unpack(packed, 31, KEY_BITS)
