"""Intervals and paired differences."""

import math

import numpy as np
import pytest

from spad.evaluation.statistics import estimate_mean, paired_difference

NAN = math.nan


def test_the_interval_is_that_of_the_normal_distribution_where_values_are_normal():
    values = np.random.default_rng(0).normal(3, 2, 400)
    estimate = estimate_mean(values.tolist())
    expected = 1.96 * values.std() / 20
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.high - estimate.mean == pytest.approx(expected, rel=0.05)
    assert estimate.mean - estimate.low == pytest.approx(expected, rel=0.05)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        estimate = estimate_mean(generator.exponential(1, 50).tolist())
        hits += estimate.low < 1 < estimate.high
    assert 50 <= hits <= 60


def test_the_same_values_give_the_same_interval():
    values = [1.0, 4.0, 2.0, 8.0]
    assert estimate_mean(values) == estimate_mean(values)


def test_undefined_values_are_left_out_and_counted_as_such():
    assert estimate_mean([1.0, NAN, 3.0]) == estimate_mean([1.0, 3.0])
    none, one = estimate_mean([NAN]), estimate_mean([2.0])
    assert none.count == 0 and math.isnan(none.mean)
    assert (one.mean, one.count) == (2.0, 1) and math.isnan(one.low)


def test_pairing_finds_what_the_spread_of_objects_hides():
    first = np.random.default_rng(0).normal(0, 10, 40)
    other = first + 0.5 + np.random.default_rng(1).normal(0, 0.2, 40)
    up, down = (paired_difference(first, other, higher) for higher in (True, False))
    assert (up.verdict, down.verdict) == ("better", "worse")
    assert up.estimate == down.estimate and up.better == pytest.approx(1 - down.better)
    swapped = paired_difference(other, first, True)
    assert swapped.verdict == "worse" and swapped.estimate.mean == -up.estimate.mean


def test_equal_reports_are_not_told_apart():
    same = paired_difference([1.0, 2.0, NAN], [1.0, 2.0, 5.0], True)
    assert same.verdict == "not told apart" and same.better == 0.5 and same.estimate.count == 2
    assert paired_difference([NAN], [1.0], True).verdict == "not told apart"
    assert paired_difference([1.0], [2.0], True).verdict == "not told apart"


def test_values_of_one_group_are_resampled_together():
    values = np.random.default_rng(1).normal(size=12).tolist()
    alone = estimate_mean(values)
    assert estimate_mean(values, [str(i) for i in range(12)]) == alone
    # Copies of a value tell nothing new, if it is known that they are copies.
    copies, groups = values * 3, [str(i) for i in range(12)] * 3
    together = estimate_mean([*copies, math.nan], [*groups, "a"])
    assert together.count == 36 and together.mean == pytest.approx(alone.mean)
    width = alone.high - alone.low
    assert together.high - together.low == pytest.approx(width, rel=0.05)
    apart = estimate_mean(copies)
    assert apart.high - apart.low == pytest.approx(width / 3**0.5, rel=0.05)
    # Values of one group that differ widen the interval, and groups may differ in size.
    noise = np.random.default_rng(2).normal(size=36) * 3
    noisy = estimate_mean((np.array(copies) + noise).tolist(), groups)
    assert noisy.high - noisy.low > 1.3 * width
    assert estimate_mean([1.0, 1.0, 4.0], ["a", "a", "b"]).low == 1.0
