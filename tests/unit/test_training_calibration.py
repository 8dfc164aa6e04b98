"""Thresholds by budget, fitted weights, the split, and the figures themselves."""

from dataclasses import replace

import numpy as np
import pytest

from services.archive import bokeh
from services.domain.feature_definitions import FEATURE_NAMES
from services.domain.model import Calibration, Logistic, logistic
from services.training import calibrate, dataset, figures
from services.training.dataset import HELD_OUT_SYMBOLS, Rows


def rows(series: list[int], position: list[int]) -> Rows:
    n = len(series)
    return Rows(
        np.zeros((n, len(FEATURE_NAMES)), np.float32),
        np.zeros(n, np.int8),
        np.zeros(n, np.int8),
        np.zeros(n, np.float32),
        np.full(n, -1, np.int64),
        np.array(series, np.int32),
        np.array(position, np.int32),
        np.datetime64("2020-01-01", "us") + np.array(position) * np.timedelta64(1, "D"),
    )


def test_detections_close_together_are_one_alert() -> None:
    some = rows([0, 0, 0, 0, 1], [10, 12, 17, 23, 24])
    assert calibrate.count_alerts(some, np.array([True] * 5)) == 3
    assert calibrate.count_alerts(some, np.array([True, False, True, False, False])) == 2
    assert calibrate.count_alerts(some, np.zeros(5, bool)) == 0


def test_the_threshold_is_halfway_between_the_last_that_may_alert_and_the_first_that_may_not() -> None:
    some = rows([0] * 1_000, list(range(1_000)))
    margin = np.random.default_rng(1).normal(size=1_000)
    line = calibrate.budget_margin(some, margin, 0.01)
    ordered = np.sort(margin)
    first = int(np.searchsorted(ordered, line))
    assert line == pytest.approx(0.5 * (ordered[first - 1] + ordered[first]))
    assert calibrate.count_alerts(some, margin >= ordered[first]) <= 10
    assert calibrate.count_alerts(some, margin >= ordered[first - 1]) > 10


def test_a_threshold_between_neighbouring_numbers_and_one_below_all_keep_the_budget() -> None:
    some = rows([0] * 10, list(range(0, 100, 10)))
    margin = np.array([1.0, *(float(np.nextafter(1.0, 2.0)),) * 9])
    assert calibrate.count_alerts(some, margin >= calibrate.budget_margin(some, margin, 0.9)) == 9
    assert calibrate.budget_margin(some, margin, 100.0) == 1.0


def test_a_budget_of_nothing_gives_no_alert() -> None:
    some = rows([0] * 50, list(range(50)))
    margin = np.arange(50.0)
    assert calibrate.count_alerts(some, margin >= calibrate.budget_margin(some, margin, 0.0)) == 0


def test_fitted_weights_recover_the_ones_that_made_the_labels() -> None:
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(40_000, 2))
    label = (rng.random(40_000) < logistic(-1.0 + inputs @ np.array([2.0, 0.5]))).astype(float)
    np.testing.assert_allclose(calibrate.fit_logistic(inputs, label, np.ones(40_000)), [-1.0, 2.0, 0.5], atol=0.1)


def test_an_input_that_speaks_against_its_own_alarm_gets_no_say() -> None:
    rng = np.random.default_rng(4)
    inputs = rng.normal(size=(20_000, 2))
    label = (rng.random(20_000) < logistic(inputs @ np.array([-1.0, 2.0]))).astype(float)
    even = np.ones(20_000)
    weights = calibrate.fit_rising(inputs, label, even)
    assert weights[1] == 0.0
    np.testing.assert_allclose(weights[[0, 2]], calibrate.fit_logistic(inputs[:, 1:], label, even))
    np.testing.assert_array_equal(calibrate.fit_rising(inputs, label * 0.0 + (inputs.sum(axis=1) < 0), even)[1:], 0.0)


def test_percentiles_rise_with_the_error_also_beyond_the_largest_seen() -> None:
    knots, shares = calibrate.error_knots(np.random.default_rng(3).gamma(2.0, size=20_000))
    flat = Logistic(0.0, 1.0, 1.0, (0.0,))
    calibration = Calibration(knots, shares, (0.0,), flat, flat, flat)
    percentile = calibration.percentile(np.linspace(0.0, 10 * knots[-1], 500))
    assert (np.diff(percentile) > 0).all()
    assert 0.0 <= percentile[0] < percentile[-1] < 1.0


def test_offsets_by_bar_length_are_flat_outside_the_knots() -> None:
    fit = Logistic(0.0, 0.0, 1.0, (3.0, 0.0))
    calibration = Calibration((0.0, 1.0), (0.0, 0.9), (0.0, 7.0), fit, fit, fit)
    half = np.full(3, 0.5)
    np.testing.assert_allclose(calibration.margin(half, half, np.array([-2.0, 0.0, 9.0])), [-3.0, -3.0, 0.0], atol=1e-9)


def test_replayed_symbols_are_not_trained_on_when_others_remain() -> None:
    bars = bokeh.read()
    kept = dataset.trainable([*bars, replace(bars[0], symbol="OTHER")])
    assert [b.symbol for b in kept] == ["OTHER"]
    assert {b.symbol for b in dataset.trainable(bars)} <= HELD_OUT_SYMBOLS


def test_average_precision_and_area_under_roc_by_hand() -> None:
    label = np.array([True, False, True, False])
    score = np.array([4.0, 3.0, 2.0, 1.0])
    assert figures.average_precision(label, score) == pytest.approx((1 + 2 / 3) / 2)
    assert figures.area_under_roc(label, score) == pytest.approx(0.75)
    assert figures.area_under_roc(label, np.zeros(4)) == pytest.approx(0.5)
    assert figures.average_precision(label, np.zeros(4)) < 0.5
    assert figures.precision_at_recall(label, score, 0.99) == pytest.approx(2 / 3)


def test_the_fingerprint_follows_what_the_code_does_not_what_is_written_about_it() -> None:
    one = dataset.instructions('def f(x):\n    """Adds 1."""\n    return x + 1\n')
    assert one == dataset.instructions('def f(x):  # more\n    """Adds one."""\n\n    return (x + 1)\n')
    assert one != dataset.instructions('def f(x):\n    """Adds 1."""\n    return x + 2\n')
