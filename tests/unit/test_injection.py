"""Injection: seeded, bounded, well-formed, and nothing at strength 0."""

import numpy as np
import pytest

from services.domain.typology import OBSERVABLE, Typology
from services.training.injection import MANIPULATED, MAX_SHARE, NORMAL, STRENGTHS, Injected, inject
from tests.daily_bars import series


def test_one_seed_one_result_and_the_real_bars_are_left_alone() -> None:
    bars = series()
    before = bars.close.copy()
    first, second, other = inject(bars, 1), inject(bars, 1), inject(bars, 2)
    assert first.events == second.events != other.events
    assert np.array_equal(first.bars.close, second.bars.close)
    assert np.array_equal(bars.close, before)


def test_bars_stay_well_formed_and_few_are_labelled() -> None:
    for seed in range(5):
        made = inject(series(seed=seed), seed)
        bars = made.bars
        assert (bars.high >= np.maximum(bars.open, bars.close)).all()
        assert (bars.low <= np.minimum(bars.open, bars.close)).all()
        assert (bars.low > 0).all()
        assert (bars.volume >= 0).all()
        assert 0 < np.count_nonzero(made.label == MANIPULATED) <= MAX_SHARE * len(bars)
        assert ((made.label == NORMAL) == (made.event < 0)).all()


def test_strength_0_changes_no_bar() -> None:
    bars = series()
    made = inject(bars, 4, strengths=(0.0,))
    assert made.events
    for name in ("open", "high", "low", "close", "volume"):
        np.testing.assert_allclose(getattr(made.bars, name), getattr(bars, name), rtol=1e-12)


def test_bars_before_the_first_event_are_the_real_ones_and_missing_volume_stays_missing() -> None:
    bars = series()
    made = inject(bars, 5)
    start = min(event.start for event in made.events)
    assert np.array_equal(made.bars.close[:start], bars.close[:start])
    assert np.array_equal(made.bars.volume == 0, bars.volume == 0)


@pytest.mark.parametrize("typology", OBSERVABLE)
def test_a_price_event_is_as_strong_as_it_says(typology: Typology) -> None:
    bars = series()
    weak, strong = (inject(bars, 6, typologies=(typology,), strengths=(s,)) for s in (2.0, 12.0))

    def moved(made: Injected) -> float:
        """Median over the events of the largest displacement of log price, or 5 % of that of log volume."""
        shift, sizes = np.log(made.bars.close / bars.close), []
        for event in made.events:
            part = slice(event.start, event.stop)
            traded = bars.volume[part] > 0
            lift = np.log(made.bars.volume[part][traded] / bars.volume[part][traded])
            price = np.abs(shift[part] - shift[event.start - 1])
            sizes.append(max(price.max(), 0.05 * lift.max(initial=0.0)))
        return float(np.median(sizes))

    assert moved(strong) > 3 * moved(weak) > 0
    assert {event.typology for event in strong.events} == {typology}


def test_strengths_are_drawn_evenly() -> None:
    drawn = [event.strength for seed in range(40) for event in inject(series(seed=seed), seed).events]
    counts = [drawn.count(strength) for strength in STRENGTHS]
    assert min(counts) > 0.6 * len(drawn) / len(STRENGTHS)


def test_a_share_over_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="not within"):
        inject(series(), 1, share=0.02)
