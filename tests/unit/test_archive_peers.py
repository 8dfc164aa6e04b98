"""The peers' return and volume beside each bar: of a sector, or of the symbols that move alike."""

from dataclasses import replace

import numpy as np
import pytest

from services.archive.bars import Bars
from services.archive.benchmark import MIN_SERIES, benchmarks
from services.archive.peers import LEAST_PEERS, RENEWAL_BARS
from services.domain.quote import DAY_SECONDS
from services.training.dataset import cut

N = 2 * RENEWAL_BARS + 20
GROUPS = 3


def history(seed: int = 1, each: int = 6) -> list[Bars]:
    """Symbols A0.., B0.., C0..: the ones of a letter move together, beside a market in which all do."""
    rng = np.random.default_rng(seed)
    market, groups = rng.normal(0, 0.01, N), rng.normal(0, 0.01, (GROUPS, N))
    busy = rng.normal(0, 0.5, (GROUPS, N))
    found = []
    for letter, moves, volume in zip("ABC", groups, busy, strict=True):
        for i in range(each):
            close = 20.0 * np.exp(np.cumsum(market + moves + rng.normal(0, 0.005, N)))
            traded = 1e5 * np.exp(volume + rng.normal(0, 0.1, N))
            time = np.datetime64("2018-01-01", "us") + np.arange(N) * np.timedelta64(1, "D")
            found.append(Bars(f"{letter}{i}", DAY_SECONDS, time, close, close, close, close, traded, np.ones(N), "USD"))
    return found


def beside(bars: list[Bars], symbol: str, sectors: dict[str, str] | None = None) -> dict[str, np.ndarray]:
    own = next(each for each in bars if each.symbol == symbol)
    return dict(benchmarks(bars, sectors or {})[DAY_SECONDS].beside(own))


def median_return(bars: list[Bars], symbols: list[str]) -> np.ndarray:
    return np.median([np.diff(np.log(each.close)) for each in bars if each.symbol in symbols], axis=0)


def test_peers_are_found_among_those_that_move_alike() -> None:
    bars = history()
    found = np.log1p(beside(bars, "A0")["peer_return"][RENEWAL_BARS + 1 :])
    expected = median_return(bars, ["A1", "A2", "A3", "A4", "A5"])[RENEWAL_BARS:]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    busy = np.log(beside(bars, "A0")["peer_volume_ratio"][RENEWAL_BARS + 1 :])
    others = np.log(beside(bars, "B0")["peer_volume_ratio"][RENEWAL_BARS + 1 :])
    own = np.diff(np.log(bars[0].volume))[RENEWAL_BARS:]
    assert np.corrcoef(np.diff(busy), own[1:])[0, 1] > 0.9 > 0.3 > abs(np.corrcoef(np.diff(others), own[1:])[0, 1])


def test_there_are_none_before_enough_bars_were_seen() -> None:
    assert np.isnan(beside(history(), "A0")["peer_return"][: RENEWAL_BARS + 1]).all()


def test_a_sectors_other_symbols_are_the_peers_from_the_first_bars_on() -> None:
    bars = history()
    sectors = {"A0": "MIXED", "A1": "MIXED", "B1": "MIXED", "C1": "MIXED", "C2": "OTHER"}
    found = beside(bars, "A0", sectors)["peer_return"]
    assert np.isnan(found[0])
    np.testing.assert_allclose(np.log1p(found[1:]), median_return(bars, ["A1", "B1", "C1"]), atol=1e-12)
    np.testing.assert_array_equal(  # alone in its sector
        beside(bars, "C2", sectors)["peer_return"], beside(bars, "C2")["peer_return"]
    )


def test_a_symbols_own_jump_does_not_move_its_peers() -> None:
    bars = history()
    jumped = replace(bars[0], close=bars[0].close * np.where(np.arange(N) >= N - 9, 3.0, 1.0))
    for sectors in ({}, {each.symbol: each.symbol[0] for each in bars}):
        before, after = (beside(part, "A0", sectors) for part in (bars, [jumped, *bars[1:]]))
        np.testing.assert_allclose(after["peer_return"][-20:], before["peer_return"][-20:], atol=1e-12)


def test_changing_the_future_never_changes_the_past() -> None:
    bars = history()
    at = RENEWAL_BARS + 40
    rng = np.random.default_rng(3)
    wild = np.where(np.arange(N) >= at, np.exp(rng.normal(0, 0.2, (len(bars), N))), 1.0)
    changed = [replace(each, close=each.close * w, volume=each.volume * w) for each, w in zip(bars, wild, strict=True)]
    for sectors in ({}, {each.symbol: each.symbol[0] for each in bars}):
        before, after = (beside(part, "B2", sectors) for part in (bars, changed))
        for name in ("peer_return", "peer_volume_ratio"):
            np.testing.assert_array_equal(before[name][:at], after[name][:at])
            assert before[name][at] != after[name][at]
        stop = int(bars[0].event_time[at].astype(np.int64))
        shorter = beside([cut(each, 0, stop) for each in bars], "B2", sectors)
        np.testing.assert_array_equal(shorter["peer_return"], before["peer_return"][:at])


def test_symbols_that_a_sector_gets_later_change_nothing_before() -> None:
    bars = history()
    sectors = {each.symbol: each.symbol[0] for each in bars if each.symbol < "A3"}
    late = [
        cut(replace(each, symbol=f"Z{each.symbol}"), int(bars[0].event_time[N - 200].astype(np.int64)), 2**62)
        for each in bars[:4]
    ]
    sectors |= {each.symbol: "A" for each in late}
    before, after = (beside(part, "A0", sectors)["peer_return"] for part in (bars, [*bars, *late]))
    np.testing.assert_array_equal(after[: N - 200], before[: N - 200])


def test_there_are_no_peers_where_the_market_is_not_known() -> None:
    bars = history(each=MIN_SERIES // GROUPS)
    assert LEAST_PEERS < len(bars) < MIN_SERIES
    found = beside(bars, "A0", {each.symbol: "ONE" for each in bars})
    assert np.isnan(found["peer_return"]).all()
    assert np.isnan(found["peer_volume_ratio"]).all()


def test_symbols_that_go_their_own_way_have_no_peers() -> None:
    rng = np.random.default_rng(5)
    bars = [replace(each, close=20.0 * np.exp(np.cumsum(rng.normal(0, 0.01, N)))) for each in history(each=LEAST_PEERS)]
    for each in bars:
        found = beside(bars, each.symbol).get("peer_return", np.array([np.nan]))
        assert np.isnan(found).mean() > 0.9


@pytest.mark.parametrize("symbols", [1, LEAST_PEERS])
def test_too_few_symbols_have_no_peers(symbols: int) -> None:
    bars = history()[:symbols]
    assert "peer_return" not in beside(bars, "A0", {each.symbol: "ONE" for each in bars})
