"""The split by ticker and time, and the views that training has of real bars."""

import numpy as np
import pytest

from services.archive.bars import Bars
from services.archive.benchmark import Benchmark, benchmarks
from services.domain.feature_definitions import FEATURE_NAMES, LAGS, lagged
from services.domain.quote import DAY_SECONDS
from services.domain.typology import Typology
from services.training import dataset
from services.training.dataset import Part
from services.training.fit import NORMAL_SHARES, VIEWS
from services.training.injection import inject
from tests.daily_bars import series

SWAPPED = {
    "upper_shadow_z": "lower_shadow_z",
    "peak_reversal_3_z": "dip_recovery_3_z",
    "peak_reversal_10_z": "dip_recovery_10_z",
    **{lagged("upper_shadow_standard_z", lag): lagged("lower_shadow_standard_z", lag) for lag in range(1, LAGS + 1)},
}
TURNED = {
    *("return_z", "return_standard_z", "benchmark_move_z", "peer_move_z", "gap_z"),
    *(f"{kind}_{name}" for kind in ("relative", "peer_relative") for name in ("return_standard_z", "return_z")),
    *("body_z", "close_location", "trend_share_10", "efficiency_10", "signed_volume_10", "session_return_z"),
    *(f"runup_{bars}_z" for bars in (3, 5, 10, 20)),
    *(f"{kind}_runup_{bars}_z" for kind in ("relative", "peer_relative") for bars in (3, 10)),
    *(
        lagged(name, lag)
        for name in ("peer_relative_return_standard_z", "body_standard_z")
        for lag in range(1, LAGS + 1)
    ),
}


@pytest.fixture(scope="module")
def market() -> list[Bars]:
    return [series(400, i, symbol=f"S{i}", split=i % 5 == 0) for i in range(40)]


def test_mirrored_bars_have_the_same_features_with_up_and_down_exchanged(market: list[Bars]) -> None:
    sectors = {bars.symbol: "ABC"[i % 3] for i, bars in enumerate(market)}
    benchmark: Benchmark = benchmarks(market, sectors)[DAY_SECONDS]
    assert len(benchmark.peers) == len(market)
    plain = dataset.untouched(market, benchmark=benchmark).features
    mirrored = [dataset.mirrored(bars) for bars in market]
    found = dataset.untouched(mirrored, benchmark=dataset.mirrored_benchmark(benchmark)).features
    source = {**SWAPPED, **{second: first for first, second in SWAPPED.items()}}
    columns = [FEATURE_NAMES.index(source.get(name, name)) for name in FEATURE_NAMES]
    sign = np.array([-1.0 if name in TURNED else 1.0 for name in FEATURE_NAMES], np.float32)
    np.testing.assert_allclose(found, plain[:, columns] * sign, atol=1e-3)
    for bars in mirrored:
        assert (bars.high >= np.maximum(bars.open, bars.close)).all()
        assert (bars.low <= np.minimum(bars.open, bars.close)).all()


def test_test_rows_are_of_unseen_tickers_and_times_and_validation_rows_of_unseen_tickers(market: list[Bars]) -> None:
    sides = dataset.split(market)
    symbols = {part: {bars.symbol for bars in sides[part]} for part in Part}
    assert all(symbols.values())
    assert not symbols[Part.TRAIN] & symbols[Part.VALIDATION]
    assert not symbols[Part.TEST] & (symbols[Part.TRAIN] | symbols[Part.VALIDATION])
    last = max(bars.event_time[-1] for part in (Part.TRAIN, Part.VALIDATION) for bars in sides[part])
    assert last < min(bars.event_time[0] for bars in sides[Part.TEST])
    assert len(sides[Part.TRAIN][0]) == 320
    assert len(sides[Part.VALIDATION][0]) == 80


def test_few_tickers_are_split_by_time_only(market: list[Bars]) -> None:
    sides = dataset.split(market[:3])
    assert [[len(bars) for bars in sides[part]] for part in Part] == [[240] * 3, [80] * 3, [80] * 3]
    for earlier, later in ((Part.TRAIN, Part.VALIDATION), (Part.VALIDATION, Part.TEST)):
        assert sides[earlier][0].event_time[-1] < sides[later][0].event_time[0]


def test_every_view_of_the_injections_has_its_share_of_the_normal_bars() -> None:
    assert set(VIEWS) == set(NORMAL_SHARES)
    assert sum(NORMAL_SHARES.values()) == pytest.approx(1.0)
    assert sum(view.mirrored for view in VIEWS) * 2 >= len(VIEWS) - 2
    assert 3 * sum(view.alone for view in VIEWS) == len(VIEWS)


def test_a_volume_spike_is_put_where_there_is_volume_only(market: list[Bars]) -> None:
    seen = 0
    for bars in market:
        made = inject(bars, 7, typologies=(Typology.VOLUME_SPIKE,))
        seen += len(made.events)
        assert all((bars.volume[event.start : event.stop] > 0).all() for event in made.events)
    assert seen > 40
