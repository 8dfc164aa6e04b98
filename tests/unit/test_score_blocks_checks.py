"""A block is refused exactly when the rule of single quotes refuses one of its bars."""

from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.quote import Series, violations
from services.scorer.blocks import COLUMNS, OPTIONAL_COLUMNS, Block, violations_of

NOW = datetime(2026, 11, 20, 16, 0, tzinfo=UTC)
SERIES = Series("bulk", "test", "AAPL", 60)
EDGES = [0.0, -0.0, -1.0, 1e-300, 1e-9, 1.0, 9.99, 10.0, 10.01, 1e12, 1.01e12, 1e15, 1.01e15, 1e300, np.inf, -np.inf]
PRICES = st.one_of(st.sampled_from([10.0, 10.0, 10.0, 10.0]), st.sampled_from([*EDGES, np.nan]))
MICROS = st.sampled_from(
    [0, 1, -(2**50), -(2**62), 2**62, int(NOW.timestamp() * 1e6), int(NOW.timestamp() * 1e6) + 10**9]
)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    count = draw(st.integers(1, 4))
    columns = {name: draw(st.lists(PRICES, min_size=count, max_size=count)) for name in COLUMNS}
    for name in OPTIONAL_COLUMNS:
        if draw(st.booleans()):
            columns[name] = draw(st.lists(PRICES, min_size=count, max_size=count))
    start = draw(MICROS)
    times = np.arange(count, dtype=np.int64) * 60_000_000 + start
    return Block(SERIES, times, {name: np.array(values) for name, values in columns.items()})


def refused_one_by_one(block: Block) -> bool:
    try:
        return any(violations(block.quote(row), NOW) for row in range(len(block)))
    except OverflowError:
        return True


@settings(max_examples=1_500)
@given(blocks())
def test_the_glance_agrees_with_the_rule(block: Block) -> None:
    assert bool(violations_of(block, None, NOW)) == refused_one_by_one(block)


def test_a_good_block_is_not_refused() -> None:
    bars = np.full(3, 10.0)
    block = Block(SERIES, np.arange(3, dtype=np.int64), dict.fromkeys(COLUMNS, bars))
    assert not violations_of(block, None, NOW)
    assert violations_of(block, datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=1), NOW)
