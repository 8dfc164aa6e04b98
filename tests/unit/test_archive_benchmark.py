"""The market's return beside each bar: a median of what is known at that time."""

from dataclasses import replace

import numpy as np

from services.archive.bars import DAY_SECONDS, Bars
from services.archive.benchmark import MIN_SERIES, benchmarks


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
    beside = benchmarks(history)[DAY_SECONDS].beside(history[3])
    assert np.isnan(beside[0])
    expected = np.median([np.diff(np.log(bars.close)) for bars in history], axis=0)
    np.testing.assert_allclose(np.log1p(beside[1:]), expected, atol=1e-12)


def test_too_few_symbols_are_no_market() -> None:
    history = market(MIN_SERIES - 1)
    assert np.isnan(benchmarks(history)[DAY_SECONDS].beside(history[0])).all()


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
    changed = [replace(bars, close=np.where(np.arange(50) >= 30, bars.close * 3.0, bars.close)) for bars in history]
    before, after = (benchmarks(part)[DAY_SECONDS].beside(history[0]) for part in (history, changed))
    np.testing.assert_array_equal(before[:30], after[:30])
    assert before[30] != after[30]


def test_bars_of_other_lengths_have_a_market_of_their_own() -> None:
    minutes = [replace(bars, interval_seconds=60) for bars in market(seed=2)]
    found = benchmarks([*market(), *minutes])
    assert set(found) == {60, DAY_SECONDS}
    assert not np.array_equal(found[60].simple_return, found[DAY_SECONDS].simple_return)
