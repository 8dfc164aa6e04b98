"""Made-up daily bars for the tests of training."""

import numpy as np

from services.archive.bars import Bars
from services.domain.quote import DAY_SECONDS


def series(n: int = 3_000, seed: int = 3, *, symbol: str = "REAL", split: bool = False) -> Bars:
    """One symbol's n bars, jumps and missing volumes among them; `split` puts a split of 4 for 1 into the middle."""
    rng = np.random.default_rng(seed)
    close = 20.0 * np.exp(np.cumsum(rng.standard_t(4, n) * 0.01))
    opened = close * np.exp(rng.normal(0, 0.004, n))
    volume = np.where(rng.random(n) < 0.05, 0.0, np.round(np.exp(rng.normal(12, 0.5, n))))
    ratio = np.ones(n)
    if split:
        ratio[n // 2] = 4.0
        close[n // 2 :] /= 4.0
        opened[n // 2 :] /= 4.0
    return Bars(
        symbol=symbol,
        interval_seconds=DAY_SECONDS,
        event_time=np.datetime64("2005-01-03", "us") + np.arange(n) * np.timedelta64(1, "D"),
        open=opened,
        high=np.maximum(opened, close) * np.exp(np.abs(rng.normal(0, 0.004, n))),
        low=np.minimum(opened, close) * np.exp(-np.abs(rng.normal(0, 0.004, n))),
        close=close,
        volume=volume,
        split_ratio=ratio,
    )
