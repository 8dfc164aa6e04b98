"""The market's return and volume beside each bar: medians of what is known at that time."""

from dataclasses import replace

import numpy as np
import pytest

from services.archive.bars import Bars
from services.archive.benchmark import MIN_SERIES, benchmarks
from services.domain.quote import DAY_SECONDS


def market(symbols: int = MIN_SERIES, n: int = 50, seed: int = 1) -> list[Bars]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(symbols):
        close = 20.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, n)))
        found.append(
            Bars(
                f"S{i}",
                DAY_SECONDS,
                np.datetime64("2020-01-01", "us") + np.arange(n) * np.timedelta64(1, "D"),
                close,
                close,
                close,
                close,
                np.ones(n),
                np.ones(n),
            )
        )
    return found


def test_it_is_the_median_of_the_returns_of_one_time() -> None:
    history = market()
    beside = benchmarks(history)[DAY_SECONDS].beside(history[3])["benchmark_return"]
    assert np.isnan(beside[0])
    expected = np.median([np.diff(np.log(bars.close)) for bars in history], axis=0)
    np.testing.assert_allclose(np.log1p(beside[1:]), expected, atol=1e-12)


def test_too_few_symbols_are_no_market() -> None:
    history = market(MIN_SERIES - 1)
    for values in benchmarks(history)[DAY_SECONDS].beside(history[0]).values():
        assert np.isnan(values).all()


def test_one_symbols_jump_or_split_does_not_move_it() -> None:
    history = market()
    ratio = np.ones(50)
    ratio[20] = 2.0
    later = np.where(np.arange(50) >= 20, 0.5, 1.0)
    split = replace(history[0], close=history[0].close * later, split_ratio=ratio)
    before, after = (benchmarks([part, *history[1:]])[DAY_SECONDS].simple_return for part in (history[0], split))
    np.testing.assert_allclose(after, before, atol=1e-12)


def test_changing_the_future_never_changes_the_past() -> None:
    history = market()
    factor = np.where(np.arange(50) >= 30, 3.0, 1.0)
    changed = [replace(bars, close=bars.close * factor, volume=bars.volume * factor) for bars in history]
    before, after = (benchmarks(part)[DAY_SECONDS].beside(history[0]) for part in (history, changed))
    for name in before:
        np.testing.assert_array_equal(before[name][:30], after[name][:30])
        assert before[name][30] != after[name][30]


def test_the_volume_ratio_is_the_median_of_volumes_against_their_usual() -> None:
    rng = np.random.default_rng(4)
    history = [replace(bars, volume=1e4 * (i + 1) * rng.lognormal(0, 0.2, 50)) for i, bars in enumerate(market())]
    history[2].volume[40] = 0.0  # a random zero of the feed is no volume
    ratio = benchmarks(history)[DAY_SECONDS].beside(history[0])["benchmark_volume_ratio"]
    assert np.isnan(ratio[:20]).all()
    logs = np.log([bars.volume for bars in history if bars is not history[2]])
    usual = np.median(logs[:, 41] - np.nanmean(logs[:, :41], axis=1))
    assert ratio[41] == pytest.approx(np.exp(usual), rel=0.05)
    doubled = [replace(bars, volume=np.where(np.arange(50) == 45, 2.0, 1.0) * bars.volume) for bars in history]
    after = benchmarks(doubled)[DAY_SECONDS].beside(history[0])["benchmark_volume_ratio"]
    assert after[45] == pytest.approx(2.0 * ratio[45])


def test_a_split_does_not_make_the_market_busy() -> None:
    rng = np.random.default_rng(5)
    history = [replace(bars, volume=1e4 * rng.lognormal(0, 0.2, 50)) for bars in market()]
    ratio = np.where(np.arange(50) == 30, 2.0, 1.0)
    later = np.cumprod(ratio)
    split = [replace(bars, close=bars.close / later, volume=bars.volume * later, split_ratio=ratio) for bars in history]
    before, after = (benchmarks(part)[DAY_SECONDS].volume_ratio for part in (history, split))
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_bars_of_other_lengths_have_a_market_of_their_own() -> None:
    minutes = [replace(bars, interval_seconds=60) for bars in market(seed=2)]
    found = benchmarks([*market(), *minutes])
    assert set(found) == {60, DAY_SECONDS}
    assert not np.array_equal(found[60].simple_return, found[DAY_SECONDS].simple_return)
