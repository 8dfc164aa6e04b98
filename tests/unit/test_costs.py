"""The monthly costs, against figures worked out by hand."""

import json
from dataclasses import replace
from datetime import date
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.costs.model import (
    DESIGNS,
    Load,
    crossovers,
    polling,
    read_prices,
    task_per_batch,
    task_per_message,
    total,
    warm,
)
from services.domain.errors import InvalidRequestError

PRICES, _ = read_prices("us-east-1")


@pytest.mark.parametrize(
    ("design", "fargate"),
    [(task_per_message, 48.9), (task_per_batch, 4.9), (warm, 1.7), (polling, 9.0)],
)
def test_29_symbols_a_minute_in_market_hours(design: object, fargate: float) -> None:
    """0.25 vCPU and 0.5 GB: 0.0123425 USD an hour; 237,510 quotes and 136.5 market hours a month."""
    assert Load().quotes == pytest.approx(237_510)
    assert design(Load(), PRICES)["Fargate"] == pytest.approx(fargate, abs=0.06)  # type: ignore[operator]


def test_a_task_is_billed_for_a_minute_at_least() -> None:
    short, minute, long = (task_per_batch(replace(Load(), task_seconds=s), PRICES)["Fargate"] for s in (5, 60, 120))
    assert short == minute
    assert long == pytest.approx(2 * minute)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_more_symbols_never_cost_less(one: int, other: int) -> None:
    low, high = sorted((one, other))
    for design in DESIGNS.values():
        assert total(design, replace(Load(), symbols=low), PRICES) <= total(
            design, replace(Load(), symbols=high), PRICES
        )


def test_crossovers_are_where_the_cheapest_changes() -> None:
    load = replace(Load(), interval_seconds=3_600.0)
    found = crossovers(load, PRICES, range(1, 1_000))
    assert found[0] == (1, "task per batch")
    (count, name) = found[1]
    assert name == "warm"
    assert count == 600, "60 tasks an hour of a minute each are one scorer that runs all the time: a tie"
    before, after = (replace(load, symbols=n) for n in (count - 1, count + 1))
    assert total(task_per_batch, before, PRICES) <= total(warm, before, PRICES)
    assert total(warm, after, PRICES) < total(task_per_batch, after, PRICES)


def test_every_shipped_price_has_its_date_and_source() -> None:
    table = json.loads((files("services.costs") / "prices.json").read_text())
    for region in table.values():
        for entry in region["prices"].values():
            assert date(2026, 1, 1) < date.fromisoformat(entry["as_of"])
            assert "AWS" in entry["source"]
            assert entry["unit"]


def test_own_prices_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    entries = {name: {"price": 2 * price, "as_of": "2026-01"} for name, price in PRICES.items()}
    path.write_text(json.dumps({"mars-1": {"prices": entries}}))
    doubled, provenance = read_prices("mars-1", path)
    assert total(warm, Load(), doubled) == pytest.approx(2 * total(warm, Load(), PRICES))
    assert "2026-01" in provenance
    with pytest.raises(InvalidRequestError, match="mars-1"):
        read_prices("us-east-1", path)
    del entries["s3_put"]
    path.write_text(json.dumps({"mars-1": {"prices": entries}}))
    with pytest.raises(InvalidRequestError, match="s3_put"):
        read_prices("mars-1", path)
    path.write_text("{")
    with pytest.raises(InvalidRequestError, match="not JSON"):
        read_prices("mars-1", path)
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_prices("mars-1", tmp_path / "nothing.json")
