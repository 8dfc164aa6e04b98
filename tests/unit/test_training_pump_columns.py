"""Columns of a chunk against hours and days before: causal, blind to what lies further back, by hand where simple."""

import numpy as np
import pytest
from numpy.typing import NDArray

from services.training.pumps import columns
from services.training.pumps.columns import HISTORY_SECONDS, STEP

CELLS = 5
CHUNK = CELLS * STEP


def bars(hours: int = 73) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    rng = np.random.default_rng(4)
    begin = 1_560_000_000 // CHUNK * CHUNK
    seconds = begin + STEP * np.flatnonzero(rng.random(hours * 3_600 // STEP) < 0.1)
    seconds[0] = begin
    n = len(seconds)
    close = 1e-5 * np.exp(np.cumsum(0.002 * rng.normal(size=n)))
    volume = rng.gamma(0.5, 0.05, n) + 1e-4
    trades = 1.0 + rng.poisson(1.0, n)
    return seconds.astype(np.int64), {
        "open": close * np.exp(0.001 * rng.normal(size=n)),
        "high": close * 1.003,
        "low": close * 0.997,
        "close": close,
        "volume": volume,
        "bought": volume * rng.random(n),
        "trades": trades,
        "buys": np.floor(trades * rng.random(n)),
        "rush": rng.poisson(0.1, n).astype(np.float64),
    }


def chunks(seconds: NDArray[np.int64]) -> NDArray[np.int64]:
    begins = np.unique(seconds // CHUNK * CHUNK)
    usable: NDArray[np.int64] = begins[
        (begins >= seconds[0] + HISTORY_SECONDS + 1_800) & (begins + CHUNK <= seconds[-1])
    ]
    return usable


@pytest.mark.parametrize("cells", [1, 5])
def test_changing_what_comes_after_a_chunk_never_changes_it(cells: int) -> None:
    seconds, values = bars()
    begins = chunks(seconds)
    before = columns.compute(columns.tape(seconds, values), begins, cells)
    border = int(begins[len(begins) // 2])
    later = seconds >= border
    changed = {name: np.where(later, 3.0 * column, column) for name, column in values.items()}
    after = columns.compute(columns.tape(seconds, changed), begins, cells)
    past = begins + cells * STEP <= border
    for name, column in before.items():
        assert np.array_equal(column[past], after[name][past]), name
    assert any(not np.allclose(column[~past], after[name][~past]) for name, column in before.items())
    cut = columns.compute(
        columns.tape(seconds[~later], {k: v[~later] for k, v in values.items()}), begins[past][:-1], 1
    )
    whole = columns.compute(columns.tape(seconds, values), begins[past][:-1], 1)
    for name, column in whole.items():
        assert np.array_equal(column, cut[name]), name


def test_a_longer_recording_before_the_history_changes_nothing() -> None:
    seconds, values = bars()
    begins = chunks(seconds)[-60:]
    kept = seconds >= begins[0] - HISTORY_SECONDS - CHUNK
    kept[np.flatnonzero(kept)[0] - 1] = True  # The price that is carried into the first cell.
    assert kept.sum() < len(kept) - 50
    whole = columns.compute(columns.tape(seconds, values), begins, CELLS)
    short = columns.compute(columns.tape(seconds[kept], {k: v[kept] for k, v in values.items()}), begins, CELLS)
    for name, column in whole.items():
        np.testing.assert_allclose(column, short[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_peak_and_a_mean_by_hand() -> None:
    seconds, values = bars()
    begin = int(chunks(seconds)[50])
    volume = np.zeros((int(seconds[-1] - seconds[0])) // STEP + 1)
    volume[(seconds - seconds[0]) // STEP] = values["volume"]
    start = (begin - int(seconds[0])) // STEP
    now = volume[start : start + CELLS].sum()
    history = volume[start - HISTORY_SECONDS // STEP : start]
    floor = 0.1 * history.sum() / (history > 0).sum() + 1e-9
    ten = [volume[i - CELLS + 1 : i + 1].sum() for i in range(start - 1 - 119, start)]
    found = columns.compute(columns.tape(seconds, values), np.array([begin]), CELLS)
    assert found["volume_peak_600"][0] == pytest.approx(np.log((now + floor) / (max(ten) + floor)), abs=1e-4)
    mean = volume[start - 360 : start].sum() / 72
    assert found["volume_mean_1800"][0] == pytest.approx(np.log((now + floor) / (mean + floor)), abs=1e-4)
    close = columns.tape(seconds, values).close
    assert found["move"][0] == pytest.approx(close[start + 4] - close[start - 1], abs=1e-6)


def test_without_trades_no_column_reads_them() -> None:
    seconds, values = bars()
    begins = chunks(seconds)[-20:]
    unknown = values | {name: np.zeros(len(seconds)) for name in ("bought", "trades", "buys", "rush")}
    full = columns.compute(columns.tape(seconds, values), begins, CELLS, trades=False)
    blind = columns.compute(columns.tape(seconds, unknown), begins, CELLS, trades=False)
    for name, column in full.items():
        assert np.array_equal(column, blind[name]), name
