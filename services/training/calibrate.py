"""From raw outputs to one score: percentiles, fitted weights, and the threshold that an alert budget sets."""

import numpy as np
from numpy.typing import NDArray

from services.domain.model import Calibration, Logistic, log_odds, surprise
from services.training.dataset import Rows

Array = NDArray[np.float64]

ALERT_WINDOW_BARS = 5
"""Detections of one series at most this far apart are one alert, as in `services.domain.alert.window`."""

_KNOT_TAILS = np.concatenate([np.linspace(0.0, 0.9, 19), 1.0 - np.logspace(-1.1, -5, 40)])
_RIDGE = 1e-3


def error_knots(errors: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Errors on normal bars at fixed percentiles, dense in the tail, as far as n bars can tell them."""
    shares = np.array([0.0, *_KNOT_TAILS[(_KNOT_TAILS > 0) & (1.0 - 2.0 / max(len(errors), 4) >= _KNOT_TAILS)]])
    values = np.maximum.accumulate(np.quantile(errors, shares))
    return tuple(float(v) for v in values), tuple(float(s) for s in shares)


def fit_logistic(inputs: Array, label: Array, weight: Array) -> Array:
    """Weights of a logistic regression with intercept first, by Newton's method with a small ridge.

    Args:
        inputs: float64 (n, k).
        label: float64 (n,), 0 or 1.
        weight: float64 (n,), how much each row counts.
    """
    design = np.column_stack([np.ones(len(inputs)), inputs])
    weights = np.zeros(design.shape[1])
    ridge = np.full(len(weights), _RIDGE)
    for _ in range(100):
        p = 0.5 * (1.0 + np.tanh(0.5 * (design @ weights)))
        gradient = design.T @ (weight * (p - label)) + ridge * weights
        curvature = design.T @ (design * (weight * np.maximum(p * (1.0 - p), 1e-9))[:, None]) + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        weights -= np.clip(step, -5.0, 5.0)
        if np.abs(step).max() < 1e-10:
            break
    return weights


def fit_rising(inputs: Array, label: Array, weight: Array) -> Array:
    """As `fit_logistic`, but without the inputs whose weight would be below 0: they speak against their own alarm."""
    kept = np.arange(inputs.shape[1])
    while True:
        fitted = fit_logistic(inputs[:, kept], label, weight)
        if not len(kept) or fitted[1:].min() >= 0.0:
            break
        kept = np.delete(kept, int(np.argmin(fitted[1:])))
    weights = np.zeros(1 + inputs.shape[1])
    weights[0], weights[1 + kept] = fitted[0], fitted[1:]
    return weights


def fit(errors_normal: Array, errors: Array, probability: Array, label: Array, weight: Array) -> Calibration:
    """The calibration from validation rows, without offsets by bar length yet.

    Args:
        errors_normal: Reconstruction errors on untouched bars.
        errors: Reconstruction errors of the labelled rows.
        probability: The classifier's raw output for the same rows.
        label: 0 or 1. The share of ones is taken as it is.
        weight: How much each row counts.
    """
    knots, shares = error_knots(errors_normal)
    flat = Logistic(0.0, 0.0, 0.0, (0.0,))
    percentile = Calibration(knots, shares, (0.0,), flat, flat, flat).percentile(errors)
    both = np.column_stack([surprise(percentile), log_odds(probability)])
    target = label.astype(np.float64)
    b, ae, cl = fit_rising(both, target, weight)
    b_ae, w_ae = fit_rising(both[:, :1], target, weight)
    b_cl, w_cl = fit_rising(both[:, 1:], target, weight)
    return Calibration(
        knots,
        shares,
        (0.0,),
        Logistic(float(b), float(ae), float(cl), (0.0,)),
        Logistic(float(b_ae), float(w_ae), 0.0, (0.0,)),
        Logistic(float(b_cl), 0.0, float(w_cl), (0.0,)),
    )


def count_alerts(rows: Rows, detected: NDArray[np.bool_]) -> int:
    """Alerts that these detections open: one for a run of detections of a series, each within five bars of the last."""
    places = np.flatnonzero(detected)
    if not len(places):
        return 0
    series, position = rows.series[places].astype(np.int64), rows.position[places].astype(np.int64)
    order = np.lexsort((position, series))
    series, position = series[order], position[order]
    new = (np.diff(series) != 0) | (np.diff(position) > ALERT_WINDOW_BARS)
    return 1 + int(np.count_nonzero(new))


def symbol_days(rows: Rows) -> int:
    """Days of a symbol among the rows."""
    days = rows.time.astype("datetime64[D]").astype(np.int64)
    return len(np.unique(np.stack([rows.series.astype(np.int64), days], axis=1), axis=0))


def budget_margin(rows: Rows, margin: Array, alerts_per_symbol_day: float) -> float:
    """The log-odds threshold at which untouched rows raise as many alerts as the budget allows, not more.

    It lies halfway between the last row that may alert and the first that may not.

    Args:
        rows: Untouched held-out rows, whole series.
        margin: Their log-odds, float64 (n,).
        alerts_per_symbol_day: The budget.
    """
    allowed = alerts_per_symbol_day * symbol_days(rows)
    ordered = np.unique(margin)
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if count_alerts(rows, margin >= ordered[middle]) <= allowed:
            high = middle
        else:
            low = middle + 1
    if low == len(ordered):
        return float(np.nextafter(ordered[-1], np.inf))
    if low == 0:
        return float(ordered[0])
    halfway = 0.5 * (ordered[low - 1] + ordered[low])
    return float(halfway if halfway > ordered[low - 1] else ordered[low])
