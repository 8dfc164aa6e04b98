"""Thresholds by alert budget: counted as the gateway counts, at every threshold."""

import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.domain.alert import Alert, Disposition, add_detection, open_alert, takes, window
from services.domain.alert_budget import (
    ScoredBars,
    below_the_line,
    count_alerts,
    log_odds,
    lowest_of_sample,
    threshold_for,
    trade_off,
)
from services.domain.disposition_bands import bands, edges, wilson
from services.domain.errors import InvalidRequestError
from services.domain.quote import Quote
from services.domain.score import Score, ScoredQuote
from services.domain.threshold import PER_500_SYMBOL_DAYS, PER_DAY
from services.domain.typology import Typology

START = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
Row = tuple[str, int, float, int]
"""Symbol, minute, score, typology."""


def bars_of(rows: list[Row]) -> ScoredBars:
    def objects(values: list[str]) -> np.ndarray:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array

    times = [START + timedelta(minutes=minute) for _, minute, _, _ in rows]
    return ScoredBars(
        quote_id=objects([f"{symbol}/{minute}" for symbol, minute, _, _ in rows]),
        series=objects([symbol for symbol, _, _, _ in rows]),
        symbol=objects([symbol for symbol, _, _, _ in rows]),
        day=objects([moment.date().isoformat() for moment in times]),
        time=np.array([int(moment.timestamp()) * 1_000_000 for moment in times], dtype=np.int64),
        window=np.full(len(rows), int(window(60).total_seconds()) * 1_000_000, dtype=np.int64),
        ensemble=np.array([score for _, _, score, _ in rows]),
        typology=np.array([typology for _, _, _, typology in rows], dtype=np.int64),
    )


def as_the_gateway_counts(rows: list[Row], threshold: float) -> int:
    """Detections in order of time, each into the newest alert of its series and typology that takes it."""
    latest: dict[tuple[str, int], Alert] = {}
    opened = 0
    for symbol, minute, ensemble, typology in sorted(rows, key=lambda row: row[1]):
        if ensemble < threshold:
            continue
        quote = Quote(symbol, START + timedelta(minutes=minute), 1.0, 1.0, 1.0, 1.0, 1.0)
        score = Score(quote.quote_id, ensemble, threshold, True, "m", "f", START, typology=Typology(typology))
        item = ScoredQuote(quote, score)
        known = latest.get((symbol, typology))
        if known is not None and takes(known, item):
            latest[symbol, typology] = add_detection(known, item, START)
        else:
            latest[symbol, typology] = open_alert(item, START)
            opened += 1
    return opened


row_lists = st.lists(
    st.tuples(
        st.sampled_from(["A", "B"]),
        st.integers(0, 400),
        st.sampled_from([0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95]),
        st.sampled_from([1, 6]),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda row: (row[0], row[1]),
)


@given(row_lists)
def test_every_threshold_counts_as_the_gateway_does(rows: list[Row]) -> None:
    bars = bars_of(rows)
    curve = trade_off(bars, PER_DAY, budget=1e9)
    days = len(set(bars.day.tolist()))
    assert list(curve.thresholds) == sorted({row[2] for row in rows}, reverse=True)
    for threshold, alerts, detections in zip(curve.thresholds, curve.alerts, curve.detections, strict=True):
        expected = as_the_gateway_counts(rows, threshold)
        assert count_alerts(bars, threshold) == expected
        assert alerts == pytest.approx(expected / days)
        assert detections == sum(row[2] >= threshold for row in rows)


@given(row_lists, st.floats(0.1, 20))
def test_the_chosen_threshold_keeps_the_budget_and_the_next_lower_score_would_not(
    rows: list[Row], budget: float
) -> None:
    bars = bars_of(rows)
    curve = trade_off(bars, PER_DAY, budget=1e9)
    try:
        threshold, expected = threshold_for(curve, budget)
    except InvalidRequestError:
        rates = [count_alerts(bars, score) / bars.exposure(PER_DAY) for score in curve.thresholds]
        assert rates[0] > budget or max(rates) <= budget
        return
    assert 0.0 < threshold < 1.0
    assert expected <= budget
    assert count_alerts(bars, threshold) / bars.exposure(PER_DAY) == pytest.approx(expected)
    lower = max(score for score in curve.thresholds if score < threshold)
    assert count_alerts(bars, lower) / bars.exposure(PER_DAY) > budget


def test_a_score_without_a_typology_joins_what_its_series_has_nearby() -> None:
    rows: list[Row] = [("A", 0, 0.9, 6), ("A", 20, 0.4, 0), ("A", 200, 0.3, 0), ("A", 220, 0.3, 0), ("B", 0, 0.2, 0)]
    bars = bars_of(rows)
    assert [count_alerts(bars, t) for t in (0.9, 0.4, 0.3, 0.2)] == [1, 1, 2, 3]


def test_the_unit_is_500_symbols_and_a_day() -> None:
    rows: list[Row] = [(f"S{i}", 24 * 60 * day, 0.1, 1) for i in range(50) for day in range(20)]
    bars = bars_of([*rows, ("S0", 5, 0.9, 1), ("S1", 5, 0.8, 1), ("S2", 5, 0.7, 1)])
    assert bars.symbol_days == 1_000
    assert bars.exposure(PER_500_SYMBOL_DAYS) == 2.0
    threshold, expected = threshold_for(trade_off(bars, PER_500_SYMBOL_DAYS, 1.0), 1.0)
    assert threshold == pytest.approx((0.8 + 0.7) / 2)
    assert expected == 1.0


def test_budgets_that_the_scores_cannot_tell_are_refused() -> None:
    bars = bars_of([("A", 0, 0.9, 1), ("A", 500, 0.8, 1)])
    curve = trade_off(bars, PER_DAY, 100)
    with pytest.raises(InvalidRequestError, match="less than one alert"):
        threshold_for(curve, 0.5)
    with pytest.raises(InvalidRequestError, match="more than all scores"):
        threshold_for(curve, 2.5)


def test_saturated_scores_leave_a_threshold_below_one() -> None:
    bars = bars_of([("A", 0, 1.0, 1), ("A", 500, 1.0 - 1e-16, 1), ("A", 900, 0.5, 1)])
    threshold, _ = threshold_for(trade_off(bars, PER_DAY, 1.0), 1.0)
    assert 0.5 < threshold < 1.0


def test_the_sample_is_below_the_line_the_same_every_time_and_stable() -> None:
    rng = np.random.default_rng(3)
    rows: list[Row] = [("A", i, float(s), 0) for i, s in enumerate(rng.uniform(0.0, 1.0, 3_000))]
    bars, threshold = bars_of(rows), 0.7
    picked = below_the_line(bars, threshold, 40, seed=1)
    scores = bars.ensemble[picked]
    assert len(picked) == 40
    assert np.all((scores < threshold) & (scores >= lowest_of_sample(threshold)))
    assert list(scores) == sorted(scores, reverse=True)
    assert np.array_equal(picked, below_the_line(bars, threshold, 40, seed=1))
    assert not np.array_equal(picked, below_the_line(bars, threshold, 40, seed=2))
    fewer = set(below_the_line(bars_of(rows[:2_700]), threshold, 40, seed=1).tolist())
    assert len(fewer & set(picked.tolist())) >= 30, "a tenth more scores displaces about a tenth"
    assert log_odds(threshold) - log_odds(lowest_of_sample(threshold)) == pytest.approx(2.0)


def test_decisions_fall_into_the_band_of_their_score() -> None:
    threshold = 0.4
    bounds = edges(threshold)
    confirmed, dismissed = Disposition.CONFIRMED, Disposition.DISMISSED
    found = bands(
        [(0.4, confirmed), (0.41, dismissed), (0.399, confirmed), (1.0, confirmed), (0.0, dismissed)], threshold
    )
    assert [(band.low, band.high) for band in found] == list(itertools.pairwise(bounds))
    assert [(b.confirmed, b.dismissed) for b in found] == [(0, 1), (1, 0), (1, 1), (0, 0), (0, 0), (1, 0)]
    assert found[2].precision == 0.5
    assert found[3].precision is None
    assert found[3].interval is None
    low, high = wilson(0, 5)
    assert (low, round(high, 3)) == (0.0, 0.434)
