"""Features: one implementation, causal, scale-free, never NaN."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.domain.feature_definitions import BAR_FIELDS, FEATURE_HASH, FEATURE_NAMES, FEATURES, WINDOW
from services.domain.features import bars_windows, compute
from services.domain.quote import Quote
from services.domain.series_state import SeriesState, bar_row

START = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
INTERVALS = (5, 60, 86_400)


@st.composite
def tapes(draw: st.DrawFn, least: int = 1, most: int = 150) -> list[Quote]:
    """A series as feeds print them: gaps, zero volumes, halts, splits, with and without the optional fields."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    interval = draw(st.sampled_from(INTERVALS))
    rich, splitting, frozen = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    moment, price, quotes = START, float(rng.uniform(0.01, 500.0)), []
    for _ in range(draw(st.integers(least, most))):
        moment += timedelta(seconds=interval * int(rng.choice([1, 1, 1, 1, 3, 500])))
        opened = price
        price = price if frozen else float(price * math.exp(rng.standard_t(2) * 0.01))
        volume = float(rng.choice([0.0, 1.0]) if rng.random() < 0.2 else rng.integers(1, 1_000_000))
        quotes.append(
            Quote(
                symbol="X",
                event_time=moment,
                open=opened,
                high=max(opened, price) * float(1 + rng.uniform(0, 0.01)),
                low=min(opened, price) * float(1 - rng.uniform(0, 0.01)),
                close=price,
                volume=volume,
                interval_seconds=interval,
                trades=int(rng.integers(0, 100)) if rich else None,
                buy_volume=volume * float(rng.uniform()) if rich else None,
                split_ratio=float(rng.choice([1.0, 2.0, 0.1])) if splitting and rng.random() < 0.05 else None,
                benchmark_return=float(rng.normal(0, 0.01)) if rich else None,
                benchmark_volume_ratio=float(rng.lognormal(0, 0.5)) if rich else None,
                peer_return=float(rng.normal(0, 0.01)) if rich else None,
                peer_volume_ratio=float(rng.lognormal(0, 0.5)) if rich else None,
            )
        )
    return quotes


def batch(quotes: list[Quote]) -> NDArray[np.float32]:
    rows = np.array([bar_row(quote) for quote in quotes]).reshape(-1, len(BAR_FIELDS))
    return np.concatenate([compute(windows) for windows in bars_windows(rows)])


@given(tapes(), st.data())
@settings(max_examples=60)
def test_stream_batch_and_restored_from_snapshot_agree_bit_for_bit(quotes: list[Quote], data: st.DataObject) -> None:
    whole = batch(quotes)
    state, streamed = SeriesState(), []
    while quotes:
        n = data.draw(st.integers(1, min(len(quotes), 40)))
        now, quotes = quotes[:n], quotes[n:]
        streamed.append(compute(state.windows(now)))
        state = SeriesState.restore(state.extended(now).snapshot())
    assert np.concatenate(streamed).tobytes() == whole.tobytes()


@given(tapes(least=2), st.data())
@settings(max_examples=40)
def test_state_rebuilt_from_the_last_window_only_gives_the_same_features(
    quotes: list[Quote], data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, len(quotes) - 1))
    rebuilt = SeriesState.from_history(quotes[max(0, at - (WINDOW - 1)) : at])
    assert compute(rebuilt.windows([quotes[at]])).tobytes() == batch(quotes)[at : at + 1].tobytes()


@given(tapes(least=2), st.data())
@settings(max_examples=40)
def test_changing_the_future_never_changes_the_past(quotes: list[Quote], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(quotes) - 1))
    changed = quotes[:at] + [
        replace(q, open=q.open * 3, high=q.high * 9, low=q.low / 9, close=q.close / 2, volume=q.volume * 7)
        for q in quotes[at:]
    ]
    assert batch(quotes)[:at].tobytes() == batch(changed)[:at].tobytes()


@given(tapes())
@settings(max_examples=40)
def test_always_finite_and_the_input_is_left_alone(quotes: list[Quote]) -> None:
    windows = SeriesState().windows(quotes)
    before = windows.copy()
    features = compute(windows)
    assert features.dtype == np.float32
    assert features.shape == (len(quotes), len(FEATURES))
    assert np.isfinite(features).all()
    assert np.array_equal(windows, before, equal_nan=True)


@given(tapes(least=20), st.sampled_from([0.001, 0.5, 3.0, 1000.0]), st.sampled_from([0.25, 3.0, 1000.0]))
@settings(max_examples=40)
def test_scaling_prices_and_volumes_changes_nothing(quotes: list[Quote], price: float, volume: float) -> None:
    scaled = [
        replace(
            q,
            open=q.open * price,
            high=q.high * price,
            low=q.low * price,
            close=q.close * price,
            volume=q.volume * volume,
            buy_volume=None if q.buy_volume is None else q.buy_volume * volume,
        )
        for q in quotes
    ]
    # Steps that are exactly zero may come out as one rounding away from it, which sign(r) sees.
    signs = [
        FEATURE_NAMES.index(n) for n in ("trend_share_10", "signed_volume_10", "unchanged_share", "close_location")
    ]
    kept = np.setdiff1d(np.arange(len(FEATURES)), signs)
    np.testing.assert_allclose(batch(scaled)[:, kept], batch(quotes)[:, kept], atol=2e-3, rtol=1e-3)


@given(tapes(least=WINDOW + 10, most=WINDOW + 40), st.data())
@settings(max_examples=30)
def test_a_split_adds_nothing(quotes: list[Quote], data: st.DataObject) -> None:
    plain = [replace(q, split_ratio=1.0) for q in quotes]
    at = data.draw(st.integers(1, len(plain) - 1))
    split = plain[:at] + [
        replace(
            q,
            open=q.open / 2,
            high=q.high / 2,
            low=q.low / 2,
            close=q.close / 2,
            volume=q.volume * 2,
            buy_volume=None if q.buy_volume is None else q.buy_volume * 2,
            split_ratio=2.0 if i == 0 else 1.0,
        )
        for i, q in enumerate(plain[at:])
    ]
    sizes = [FEATURE_NAMES.index("trade_size_log_ratio"), FEATURE_NAMES.index("trend_share_10")]
    sizes += [FEATURE_NAMES.index(n) for n in ("signed_volume_10", "unchanged_share", "close_location")]
    kept = np.setdiff1d(np.arange(len(FEATURES)), sizes)
    np.testing.assert_allclose(batch(split)[:, kept], batch(plain)[:, kept], atol=2e-3, rtol=1e-3)


def test_a_correction_takes_the_newest_bars_place() -> None:
    first = Quote("X", START, 10, 11, 9, 10, 100)
    corrected = replace(first, close=10.5, revision=1)
    later = Quote("X", START + timedelta(minutes=1), 10.5, 11, 10, 10.7, 120)
    state = SeriesState.from_history([first, corrected, later])
    assert state == SeriesState.from_history([corrected, later])
    assert len(state) == 2
    windows = SeriesState().windows([first, corrected, later])
    assert np.array_equal(windows[-1], SeriesState().windows([corrected, later])[-1], equal_nan=True)


def test_a_quote_before_the_newest_bar_is_refused() -> None:
    quote = Quote("X", START, 10, 11, 9, 10, 100)
    with pytest.raises(ValueError, match="lies before the newest bar"):
        SeriesState.from_history([quote]).append(replace(quote, event_time=START - timedelta(minutes=1)))


def test_damaged_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match="not a snapshot"):
        SeriesState.restore(SeriesState.from_history([Quote("X", START, 1, 1, 1, 1, 1)]).snapshot()[:-1])


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_pump_stands_out_at_every_interval(interval: int) -> None:
    rng = np.random.default_rng(5)
    price, quotes = 20.0, []
    for i in range(WINDOW + 5):
        pumped = i == WINDOW + 4
        opened, price = price, float(price * math.exp(0.15 if pumped else rng.normal(0, 0.002)))
        quotes.append(
            Quote(
                "X",
                START + timedelta(seconds=i * interval),
                opened,
                max(opened, price) * 1.001,
                min(opened, price) * 0.999,
                price,
                30_000 if pumped else float(rng.integers(900, 1_100)),
                interval_seconds=interval,
            )
        )
    last = dict(zip(FEATURE_NAMES, batch(quotes)[-1].tolist(), strict=True))
    assert last["return_z"] > 30
    assert last["runup_3_z"] > 20
    assert 3.2 < last["volume_log_ratio"] < 3.6
    assert last["close_location"] > 0.9


def with_market(beta: float, jump: float, market_jump: float, *, known: bool = True) -> dict[str, float]:
    """Features of a bar on which the market moves, after 60 bars of a series with this beta and little else."""
    rng = np.random.default_rng(7)
    market = rng.normal(0.0, 0.01, WINDOW)
    market[-1] = market_jump
    moves = beta * market + rng.normal(0.0, 0.004, WINDOW)
    moves[-1] = beta * market_jump + jump
    close = 50.0 * np.exp(np.cumsum(moves))
    rows = np.full((WINDOW, len(BAR_FIELDS)), np.nan)
    rows[:, 0] = rows[:, 1] = rows[:, 2] = rows[:, 3] = close
    rows[:, 4], rows[:, 5], rows[:, -2], rows[:, -1] = 1e5, 1.0, np.arange(WINDOW) * 86_400.0, 86_400.0
    if known:
        rows[:, BAR_FIELDS.index("benchmark_return")] = np.expm1(market)
    return dict(zip(FEATURE_NAMES, compute(rows[None])[0].tolist(), strict=True))


def test_a_move_with_the_market_is_none_of_its_own_and_one_against_it_stands_out() -> None:
    along = with_market(1.5, 0.0, -0.05)
    assert along["return_z"] < -3.5
    assert abs(along["relative_return_z"]) < 2.5
    assert along["benchmark_move_z"] < -3.0
    alone = with_market(1.5, 0.04, 0.0)
    assert alone["relative_return_z"] > 1.5 * alone["return_z"] > 3.0
    assert alone["relative_volatility_log_ratio"] < -0.5


def test_without_a_benchmark_relative_features_are_the_plain_ones() -> None:
    found = with_market(1.5, 0.04, 0.02, known=False)
    for name in ("return_z", "runup_3_z", "runup_10_z", "return_over_past_extreme"):
        assert found[f"relative_{name}"] == found[name]
    assert found["benchmark_move_z"] == found["relative_volatility_log_ratio"] == 0.0


def with_peers(gamma: float, jump: float, peers_jump: float, *, known: bool = True) -> dict[str, float]:
    """Features of a bar on which the peers move, after 60 bars of a series that follows them and little else."""
    rng = np.random.default_rng(8)
    market, peers = rng.normal(0.0, 0.006, WINDOW), rng.normal(0.0, 0.01, WINDOW)
    market[-1], peers[-1] = 0.0, peers_jump
    moves = market + gamma * peers + rng.normal(0.0, 0.004, WINDOW)
    moves[-1] = gamma * peers_jump + jump
    rows = np.full((WINDOW, len(BAR_FIELDS)), np.nan)
    rows[:, :4] = 50.0 * np.exp(np.cumsum(moves))[:, None]
    for name, values in (
        ("volume", 1e5),
        ("split_ratio", 1.0),
        ("event_seconds", np.arange(WINDOW) * 86_400.0),
        ("interval_seconds", 86_400.0),
        ("benchmark_return", np.expm1(market)),
        ("peer_return", np.expm1(market + peers) if known else np.nan),
    ):
        rows[:, BAR_FIELDS.index(name)] = values
    return dict(zip(FEATURE_NAMES, compute(rows[None])[0].tolist(), strict=True))


def test_a_move_with_the_peers_is_none_of_its_own_and_one_against_them_stands_out() -> None:
    along = with_peers(0.9, 0.0, -0.05)
    assert along["relative_return_z"] < -3.0
    assert abs(along["peer_relative_return_z"]) < 2.0
    assert along["peer_move_z"] < -2.5
    alone = with_peers(0.9, 0.05, 0.0)
    assert alone["peer_relative_return_z"] > 1.4 * alone["relative_return_z"] > 3.0
    assert alone["peer_relative_volatility_log_ratio"] < alone["relative_volatility_log_ratio"] - 0.3


def test_without_peers_their_features_are_those_of_the_benchmark() -> None:
    found = with_peers(0.9, 0.04, 0.02, known=False)
    for name in ("return_z", "return_standard_z", "runup_3_z", "runup_10_z", "return_over_past_extreme", "volume_z"):
        assert found[f"peer_relative_{name}"] == found[f"relative_{name}"]
    assert found["peer_move_z"] == found["peer_volume_log_ratio"] == 0.0


@pytest.mark.parametrize("known", [True, False])
def test_busy_peers_explain_volume_where_the_feed_says_that_they_are_busy(known: bool) -> None:
    rng = np.random.default_rng(6)
    rows = np.full((WINDOW, len(BAR_FIELDS)), np.nan)
    rows[:, :4] = 50.0
    market, peers = np.exp(rng.normal(0, 0.2, (2, WINDOW)))
    market[-1], peers[-1] = 1.0, 5.0
    rows[:, BAR_FIELDS.index("volume")] = 1e5 * market * peers * np.exp(rng.normal(0, 0.1, WINDOW))
    rows[:, BAR_FIELDS.index("benchmark_volume_ratio")] = market
    if known:
        rows[:, BAR_FIELDS.index("peer_volume_ratio")] = market * peers
    found = dict(zip(FEATURE_NAMES, compute(rows[None])[0].tolist(), strict=True))
    assert found["relative_volume_z"] > 4
    if known:
        assert abs(found["peer_relative_volume_z"]) < 3
        assert found["peer_volume_log_ratio"] == pytest.approx(math.log(5.0), abs=1e-6)
    else:
        assert found["peer_relative_volume_z"] == found["relative_volume_z"]
        assert found["peer_volume_log_ratio"] == 0.0


@pytest.mark.parametrize("known", [True, False])
def test_a_busy_market_explains_volume_where_the_feed_says_that_it_is_busy(known: bool) -> None:
    rng = np.random.default_rng(3)
    rows = np.full((WINDOW, len(BAR_FIELDS)), np.nan)
    rows[:, :4] = 50.0
    busy = np.exp(rng.normal(0, 0.2, WINDOW))
    busy[-1] = 5.0
    rows[:, BAR_FIELDS.index("volume")] = 1e5 * busy * np.exp(rng.normal(0, 0.2, WINDOW))
    if known:
        rows[:, BAR_FIELDS.index("benchmark_volume_ratio")] = busy
    found = dict(zip(FEATURE_NAMES, compute(rows[None])[0].tolist(), strict=True))
    assert found["volume_z"] > 4
    if known:
        assert abs(found["relative_volume_z"]) < 3
        assert found["benchmark_volume_log_ratio"] == pytest.approx(math.log(5.0), abs=1e-6)
    else:
        assert found["relative_volume_z"] == found["volume_z"]
        assert found["benchmark_volume_log_ratio"] == 0.0


def test_a_change_of_formulas_needs_a_new_version() -> None:
    """Golden values: when they change, raise FORMULA_VERSION (a model made for other formulas must be refused)."""
    rng = np.random.default_rng(11)
    close = 50 * np.exp(np.cumsum(rng.normal(0, 0.01, WINDOW)))
    rows = np.full((WINDOW, len(BAR_FIELDS)), np.nan)
    rows[:, 0], rows[:, 3] = np.concatenate([[50.0], close[:-1]]), close
    rows[:, 1], rows[:, 2] = np.maximum(rows[:, 0], close) * 1.004, np.minimum(rows[:, 0], close) * 0.997
    rows[:, 4] = np.round(1e5 * np.exp(rng.normal(0, 0.4, WINDOW)))
    rows[:, BAR_FIELDS.index("benchmark_return")] = rng.normal(0, 0.005, WINDOW)
    rows[:, BAR_FIELDS.index("benchmark_volume_ratio")] = np.exp(rng.normal(0, 0.3, WINDOW))
    rows[:, BAR_FIELDS.index("peer_return")] = rng.normal(0, 0.006, WINDOW)
    rows[:, BAR_FIELDS.index("peer_volume_ratio")] = np.exp(rng.normal(0, 0.4, WINDOW))
    rows[:, BAR_FIELDS.index("split_ratio")] = 1.0
    rows[:, BAR_FIELDS.index("event_seconds")] = 1_615_901_400.0 + np.arange(WINDOW) * 60.0  # a session's first hour
    rows[:, BAR_FIELDS.index("interval_seconds")] = 60.0
    last = compute(rows[None])[0]
    digest = np.round(last.astype(np.float64), 3)
    assert FEATURE_HASH == GOLDEN_HASH
    np.testing.assert_allclose(digest[:9], GOLDEN_FIRST, atol=2e-3)
    assert abs(float(digest.sum()) - GOLDEN_SUM) < 0.05


GOLDEN_HASH = "a378d7a371f3174df6e19f90231ff577c07ece4bb028529450afa9cface1aa2b"
GOLDEN_FIRST = [-0.252, -0.282, 0.191, 0.158, -0.792, 0.377, -2.489, 0.054, 0.221]
GOLDEN_SUM = 58.23


def test_every_feature_has_words_for_its_value() -> None:
    for feature in FEATURES:
        assert feature.unit.words(1.5) in feature.phrase.format(value=feature.unit.words(1.5))
        assert feature.description
        assert feature.usual[0] <= feature.usual[1]
    assert len(set(FEATURE_NAMES)) == len(FEATURES)
