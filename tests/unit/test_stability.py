"""The population stability index, its references, and its window."""

import numpy as np
import pytest

from services.domain.stability import (
    BLOCK_ROWS,
    BLOCKS,
    FEWEST_ROWS,
    USUAL_SHARES,
    Reference,
    StabilityMonitor,
    references,
)
from services.scorer.registry import ModelRegistry

DECILES = tuple(i / 10 for i in range(1, 10))


def index_of(values: np.ndarray, *against: Reference) -> list[float | None]:
    monitor = StabilityMonitor(against)
    monitor.observe(values.reshape(len(values), -1))
    return [stability.index for stability in monitor.read()]


def test_the_index_is_the_formula() -> None:
    """900 values below the median's edge and 100 above: (0.9-0.5) ln(0.9/0.5) + (0.1-0.5) ln(0.1/0.5)."""
    values = np.array([-1.0] * 900 + [1.0] * 100)
    (index,) = index_of(values, Reference("x", (0.0,), (0.5,)))
    assert index == pytest.approx(0.4 * np.log(0.9 / 0.5) - 0.4 * np.log(0.1 / 0.5))


def test_the_same_distribution_is_stable_and_a_moved_one_is_not() -> None:
    rng = np.random.default_rng(1)
    deciles = Reference("x", tuple(np.quantile(rng.normal(size=200_000), DECILES)), DECILES)
    usual = Reference("x", (-1.645, 0.0, 1.645), USUAL_SHARES)
    same, moved = rng.normal(size=5_000), rng.normal(0.8, 1.0, size=5_000)
    for reference in (deciles, usual):
        (stable,), (drifted,) = index_of(same, reference), index_of(moved, reference)
        assert stable is not None
        assert drifted is not None
        assert stable < 0.02
        assert drifted > 0.25


def test_many_equal_values_are_no_drift() -> None:
    """A feature that is 0 on most bars: its low and median coincide, and with them all of a constant one's."""
    mostly = Reference("mostly zero", (0.0, 0.0, 2.0), USUAL_SHARES)
    constant = Reference("constant", (7.0, 7.0, 7.0), USUAL_SHARES)
    column = np.concatenate([np.zeros(900), np.full(50, 1.0), np.full(50, 3.0)])
    index = index_of(np.stack([column, np.full(1_000, 7.0)], axis=1), mostly, constant)
    assert index[0] == pytest.approx(0.0, abs=1e-3)
    assert index[1] == pytest.approx(0.0, abs=1e-3)
    (changed,) = index_of(np.full(1_000, 8.0), constant)
    assert changed is not None
    assert changed > 1.0


def test_too_few_rows_give_no_index() -> None:
    monitor = StabilityMonitor([Reference("x", (0.0,), (0.5,))])
    monitor.observe(np.zeros((FEWEST_ROWS - 1, 1)))
    assert monitor.read()[0].index is None
    monitor.observe(np.zeros((1, 1)))
    assert monitor.read()[0].index is not None
    assert monitor.rows == FEWEST_ROWS


@pytest.mark.parametrize("batch", [1, 7, 1_999, 2_000, 4_500])
def test_old_rows_leave_the_window(batch: int) -> None:
    reference = Reference("x", (0.0,), (0.5,))
    monitor = StabilityMonitor([reference])
    old, new = np.full((4 * BLOCK_ROWS, 1), -1.0), np.tile([[-1.0], [1.0]], (BLOCK_ROWS * BLOCKS // 2, 1))
    rows = np.concatenate([old, new])
    for start in range(0, len(rows), batch):
        monitor.observe(rows[start : start + batch])
    assert BLOCK_ROWS * (BLOCKS - 1) <= monitor.rows <= BLOCK_ROWS * BLOCKS
    index = monitor.read()[0].index
    assert index == pytest.approx(0.0, abs=1e-6), "only the newer, even half is left"


def test_references_of_the_shipped_model_are_features_first() -> None:
    metadata = ModelRegistry().load().metadata
    names = [reference.name for reference in references(metadata.usual[0])]
    assert names[: len(metadata.features)] == [feature.name for feature in metadata.features]
    import dataclasses

    name = metadata.features[0].name
    quantiles = {name: (-1.0, 0.0, 1.0), "score": (0.1, 0.2)}
    full = dataclasses.replace(metadata, usual=(dataclasses.replace(metadata.usual[0], reference=quantiles),))
    again = type(metadata).from_json(full.to_json())
    assert again.usual == full.usual
    found = {reference.name: reference for reference in references(again.usual[0], with_autoencoder=False)}
    assert found[name] == Reference(name, (-1.0, 0.0, 1.0), (0.25, 0.5, 0.75))
    assert found["score"].shares == (1 / 3, 2 / 3)
    assert "autoencoder_percentile" not in found
    descending = dataclasses.replace(metadata.usual[0], reference={name: (1.0, 0.0)})
    wrong = dataclasses.replace(metadata, usual=(descending,))
    with pytest.raises(ValueError, match="do not ascend"):
        type(metadata).from_json(wrong.to_json())


def test_a_feature_that_the_tape_does_not_have_has_no_index() -> None:
    optional = Reference("benchmark_move_z", (-1.0, 0.0, 1.0), (0.05, 0.5, 0.95), optional=True)
    always = Reference("return_z", (-1.0, 0.0, 1.0), (0.05, 0.5, 0.95))
    monitor = StabilityMonitor([optional, always])
    monitor.observe(np.zeros((3 * BLOCK_ROWS, 2)))
    absent, present = monitor.read()
    assert (absent.index, absent.absent) == (None, True)
    assert present.index is not None
    assert present.index > 0.25, "a series that stands still has drifted"
    monitor.observe(np.array([[0.5, 0.0]]))
    found = monitor.read()[0]
    assert found.index is not None
    assert not found.absent


def test_bars_of_each_length_have_usual_ranges_of_their_own() -> None:
    metadata = ModelRegistry().load().metadata
    assert [bars.interval_seconds for bars in metadata.usual] == [86_400, 60]
    assert metadata.nearest(np.log([1440.0, 60.0, 30.0, 1.0, 5 / 60])).tolist() == [0, 0, 1, 1, 1]
    daily, minutes = ({f.name: f for f in bars.features}["session_volume_z"] for bars in metadata.usual)
    assert (daily.low, daily.high) == (0.0, 0.0)
    assert minutes.low < -1.0 < 1.0 < minutes.high


def test_a_value_that_gathers_at_a_bound_has_not_drifted_by_that() -> None:
    """The 5th percentile of training is the bound, and so were 30 % of its values, which the quantiles do not say."""
    rng = np.random.default_rng(4)
    reference = Reference("x", (-3.0, -1.0, 1.0), (0.05, 0.5, 0.95))

    def rows(at_bound: float) -> np.ndarray:
        spread = rng.uniform(-3.0, -1.0, 6_000), rng.uniform(-1.0, 1.0, 9_000), rng.uniform(1.0, 2.0, 1_000)
        kept = [part[: round(len(part) * (1.0 - at_bound) / 0.8)] for part in spread]
        return rng.permutation(np.concatenate([np.full(round(20_000 * at_bound), -3.0), *kept]))[:, None]

    (same,) = index_of(rows(0.2), reference)
    (moved,) = index_of(rows(0.9), reference)
    assert same is not None
    assert moved is not None
    assert same < 0.1 < 0.25 < moved
