"""The labelled pumps' protocol: causal columns, folds by event, alerts and delays; and the old system's rule."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from services.archive import bokeh
from services.domain.feature_definitions import FEATURE_NAMES
from services.training import pumps
from services.training.evaluation import rule
from services.training.pumps import Pumps

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs tapewatch[train]")


def made(events: int = 10, chunks: int = 100) -> Pumps:
    rng = np.random.default_rng(1)
    n = events * chunks
    onset = np.zeros(n, bool)
    onset[np.arange(events) * chunks + chunks // 2] = True
    features = rng.normal(size=(n, len(FEATURE_NAMES))).astype(np.float32)
    features[onset, FEATURE_NAMES.index("volume_log_ratio")] += 9.0
    moment = np.tile(np.arange(chunks) * 25.0, events)
    return Pumps(
        features,
        rng.normal(size=(n, 12)).astype(np.float32),
        onset,
        np.repeat(np.arange(events), chunks),
        moment,
        moment - 25.0 * (chunks // 2),
        float(events),
    )


def test_columns_against_the_past_know_neither_the_future_nor_another_event() -> None:
    known = made()
    columns = pumps.against_past(known)
    later = known.features.copy()
    later[151:] += 5.0
    changed = pumps.against_past(replace(known, features=later))
    assert np.array_equal(columns[:151], changed[:151])
    others = known.features.copy()
    others[:100] += 5.0
    assert np.array_equal(columns[100:], pumps.against_past(replace(known, features=others))[100:])


@needs_sklearn
def test_no_event_is_on_both_sides_of_a_fold() -> None:
    known = made()
    for train, test in pumps.folds(known):
        assert not set(known.event[train].tolist()) & set(known.event[test].tolist())


@needs_sklearn
def test_pumps_that_can_be_seen_are_found_and_noise_is_not() -> None:
    from sklearn.ensemble import ExtraTreesClassifier  # type: ignore[import-untyped, unused-ignore]

    def trees() -> ExtraTreesClassifier:
        return ExtraTreesClassifier(40, random_state=1)

    known = made(events=25, chunks=60)
    found, delays = pumps.evaluate(known, known.features, trees)
    assert found.average_precision > 0.8
    assert found.detected_within_120_s > 0.5
    assert np.median(delays) == 0.0
    noise, _ = pumps.evaluate(known, known.published, trees)
    assert noise.average_precision < 0.2


def test_alerts_close_together_count_once_and_the_hour_after_the_onset_is_free() -> None:
    known = made(events=2, chunks=400)
    detected = np.zeros(800, bool)
    detected[[10, 11, 12, 200, 205, 399]] = True  # before; at the onset; 83 minutes after it
    assert pumps._false_alerts(known, np.arange(800), detected) == 2
    assert pumps._delays(known, detected).tolist() == [0.0, np.inf]


def test_the_old_rule_by_hand() -> None:
    bars = bokeh.read()[0]
    flat = np.full(60, 10.0)
    close, volume = flat.copy(), np.full(60, 100.0)
    close[40], volume[40] = 11.0, 900.0
    close[50], volume[50] = 11.0, 150.0
    short = replace(bars, event_time=bars.event_time[:60], open=flat, high=flat, low=flat, close=close, volume=volume)
    assert np.flatnonzero(rule(short)).tolist() == [40]
