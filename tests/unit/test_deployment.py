"""Which model judges a series."""

import numpy as np

from services.domain.quote import Series
from services.scorer.deployment import Deployment, ModelRole, lot
from services.scorer.registry import ModelRegistry

MODEL = ModelRegistry().load()
SERIES = [Series("live", "yahoo_finance", f"S{i}", 60) for i in range(4_000)]


def test_lots_are_even_and_do_not_follow_neighbours() -> None:
    lots = np.array([lot(series) for series in SERIES])
    assert lots.min() >= 0.0
    assert lots.max() < 1.0
    shares = np.histogram(lots, bins=10, range=(0, 1))[0] / len(lots)
    assert np.all(np.abs(shares - 0.1) < 0.02)
    assert abs(np.corrcoef(lots[:-1], lots[1:])[0, 1]) < 0.05


def test_a_higher_weight_only_adds_series() -> None:
    def share(weight: float) -> set[int]:
        parts = Deployment(MODEL, canary=MODEL, canary_weight=weight).parts(SERIES)
        return set(parts[-1][1].tolist()) if len(parts) == 2 else set(range(len(SERIES)))

    small, large = share(0.05), share(0.2)
    assert small < large < share(1.0) == set(range(len(SERIES)))
    assert abs(len(small) / len(SERIES) - 0.05) < 0.015


def test_every_row_is_judged_once() -> None:
    parts = Deployment(MODEL, canary=MODEL, canary_weight=0.4).parts(SERIES)
    assert sorted(np.concatenate([rows for _, rows in parts]).tolist()) == list(range(len(SERIES)))


def test_clearing_takes_only_what_is_named() -> None:
    both = Deployment(MODEL, shadow=MODEL, canary=MODEL, canary_weight=0.4)
    assert both.without([ModelRole.SHADOW]) == Deployment(MODEL, canary=MODEL, canary_weight=0.4)
    assert both.without([ModelRole.CANARY, ModelRole.SHADOW]) == Deployment(MODEL)
