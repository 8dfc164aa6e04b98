"""The monthly costs, against figures worked out by hand."""

import inspect
import io
import json
from dataclasses import replace
from datetime import date
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deploy.settings import read
from services.cli.commands import cost_command
from services.cli.console import make_console
from services.cli.cost import cost
from services.costs.model import (
    DESIGNS,
    Load,
    crossovers,
    polling,
    read_prices,
    scoring,
    task_per_batch,
    task_per_message,
    total,
    warm,
)
from services.dispatch.settings import DispatchSettings
from services.domain.errors import InvalidRequestError
from services.runtime.settings import ServerSettings

PRICES, _ = read_prices("us-east-1")


@pytest.mark.parametrize(
    ("design", "fargate"),
    [(task_per_message, 48.9), (task_per_batch, 4.9), (warm, 1.7), (polling, 9.0)],
)
def test_29_symbols_a_minute_in_market_hours(design: object, fargate: float) -> None:
    """0.25 vCPU and 0.5 GB: 0.0123425 USD an hour; 237,510 quotes and 136.5 market hours a month."""
    load = Load(off_hours_scorers=0)
    assert load.quotes == pytest.approx(237_510)
    assert design(load, PRICES)["scorers"] == pytest.approx(fargate, abs=0.06)  # type: ignore[operator]


def test_a_warm_scorer_that_runs_at_night_costs_what_a_polling_one_does() -> None:
    night = warm(Load(), PRICES)["scorers"] - warm(Load(off_hours_scorers=0), PRICES)["scorers"]
    assert night == pytest.approx((730 - 136.5) * 0.0123425)
    assert warm(Load(), PRICES)["scorers"] == pytest.approx(polling(Load(), PRICES)["scorers"])


def test_what_always_runs_is_counted() -> None:
    """Two gateways of 0.5 vCPU and 1 GB, two small services, six endpoints in two zones; counters are read at night."""
    month = warm(Load(), PRICES)
    tasks = 730 * (2 * 0.024685 + 2 * 0.0123425)
    looks = 730 * 720 * (2 * 5e-7 + 3 * 1.25e-7)
    assert month["services"] == pytest.approx(tasks + 2 * 780_000 * 730 / 24 * 1.25e-7 + looks)
    more = task_per_batch(Load(), PRICES)["services"] - month["services"]
    assert more == pytest.approx(730 * 720 * 1.25e-7), "the ledger is looked for"
    assert Load().health_seconds == ServerSettings.model_fields["health_check_seconds"].default
    assert month["endpoints"] == pytest.approx(12 * 730 * 0.01)
    assert task_per_batch(Load(), PRICES)["endpoints"] == pytest.approx(14 * 730 * 0.01)
    assert scoring(month) == pytest.approx(
        sum(month.values()) - month["services"] - month["endpoints"] - month["canaries"]
    )


def test_canaries_cost_what_quotes_cost_and_launch_tasks_in_task_mode() -> None:
    """A play of 8 canaries each quarter of an hour, day and night: more quotes than 29 symbols give."""
    load = replace(Load(), canary_quotes=100, task_canary_interval_seconds=900.0)
    assert load.canary_quotes_a_month() == pytest.approx(292_000)
    assert replace(load, task_canary_interval_seconds=1_800.0).canary_quotes_a_month(task_mode=True) == 146_000
    alike = replace(load, symbols=1_000, hours_a_day=2.92, days_a_month=1, interval_seconds=36.0, task_seconds=36.0)
    assert alike.quotes == pytest.approx(load.canary_quotes_a_month())
    for design in (warm, task_per_batch, task_per_message):
        month = design(alike, PRICES)
        recorded = month["Lambda"] + month["DynamoDB"] + 3 * 29_200 * 5e-7
        launched = 0 if design is warm else month["scorers"]
        assert month["canaries"] == pytest.approx(recorded + launched)
    assert warm(replace(load, canary_interval_seconds=0), PRICES)["canaries"] == 0


def test_batches_that_come_while_a_task_runs_share_the_next_one() -> None:
    """Bars of 5 s behind tasks of 45 s: nine of a batch's ten symbols ride together, and no more than a task takes."""
    minutely, often = Load(), Load(interval_seconds=5.0)
    each = task_per_batch(minutely, PRICES)["scorers"] / minutely.quotes
    assert task_per_batch(often, PRICES)["scorers"] / often.quotes == pytest.approx(each / 9)
    assert task_per_message(often, PRICES)["scorers"] / often.quotes == pytest.approx(each * 10)
    full = replace(often, interval_seconds=0.25)
    assert task_per_batch(full, PRICES)["scorers"] / full.quotes == pytest.approx(each / 100)
    assert full.task_messages == DispatchSettings.model_fields["max_task_messages"].default
    alone = replace(often, task_messages=1)
    assert task_per_batch(alone, PRICES)["scorers"] / alone.quotes == pytest.approx(each)


def test_a_play_of_canaries_is_two_tasks_a_symbol() -> None:
    """526 quotes a play, as 16 tasks of a minute at 0.25 vCPU and 0.5 GB; 0.0123425 USD an hour."""
    load = Load()
    plays = load.canary_quotes_a_month(task_mode=True) / load.canary_quotes
    launched = (
        task_per_batch(load, PRICES)["canaries"]
        - task_per_batch(replace(load, vcpu=0, memory_gb=0), PRICES)["canaries"]
    )
    assert launched == pytest.approx(plays * 16 * 0.0123425 / 60)


def test_an_idle_queue_is_asked_too() -> None:
    """By Lambda's five pollers each 20 s; by a polling scorer when the market is closed, and for its health."""
    sent = 3 * 23_751 * 5e-7
    assert warm(Load(), PRICES)["SQS"] == pytest.approx(sent + 5 * 730 * 180 * 5e-7)
    assert polling(Load(), PRICES)["SQS"] == pytest.approx(sent + ((730 - 136.5) * 180 + 730 * 720) * 5e-7)


def test_units_of_the_table_are_those_that_were_measured() -> None:
    """docs/data-model.md: 2.4 written and 2 read for a quote, 28 written for a detection, of which 1 % are."""
    million = replace(Load(), symbols=1_000, interval_seconds=3_600.0, hours_a_day=10.0, days_a_month=100.0)
    assert million.quotes == pytest.approx(1e6)
    assert warm(million, PRICES)["DynamoDB"] == pytest.approx(1.50 + 0.175 + 0.25)


def test_sizes_are_those_that_are_deployed() -> None:
    shipped, load = read(), Load()
    for task, vcpu, gb in (
        (shipped.scorer, load.vcpu, load.memory_gb),
        (shipped.ingest, load.vcpu, load.memory_gb),
        (shipped.gateway, load.gateway_vcpu, load.gateway_gb),
    ):
        assert (task.cpu, task.memory_mib) == (vcpu * 1024, gb * 1024)
    assert shipped.dispatch.memory_mib == load.lambda_gb * 1024
    assert shipped.gateway.count == load.gateways
    assert shipped.scorer.off_hours_minimum == load.off_hours_scorers
    assert len(shipped.availability_zones) == load.zones
    assert shipped.network.nat_gateways == 0, "then there are endpoints"
    assert shipped.dispatch.canary_interval_seconds == load.canary_interval_seconds
    shortest = int(load.task_canary_interval_seconds)
    assert read(dispatch={"mode": "task", "canary_interval_seconds": shortest})
    with pytest.raises(SystemExit, match=f"to {shortest} or more"):
        read(dispatch={"mode": "task", "canary_interval_seconds": shortest - 1})


def test_the_region_asked_for_is_the_one_deployed_and_has_prices() -> None:
    region = inspect.signature(cost_command).parameters["region"].default
    assert region == read().region
    prices, provenance = read_prices(region)
    assert total(warm, Load(), prices) > total(warm, Load(), PRICES)
    assert region in provenance


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (Load(), ["warm: below the range (the same", "task per batch: below", "task per message: below"]),
        (Load(off_hours_scorers=0), ["warm: within the range (saves 7", "task per batch: below the range (saves 4"]),
        (Load(symbols=1, interval_seconds=3_600.0), ["task per batch: above the range (saves 9"]),
        (Load(symbols=1), ["from 1 symbol on", "Polling would cost the same; `make deploy` does not set it up"]),
        (Load(symbols=10_000, interval_seconds=1.0), ['Choose: dispatch.mode = "warm" (', "Polling would save "]),
        (Load(symbols=1, canary_quotes=0, zones=0, off_hours_scorers=5), ['Choose: dispatch.mode = "task" (']),
    ],
)
def test_the_old_claim_is_judged_for_each_design(load: Load, words: list[str]) -> None:
    text = io.StringIO()
    assert cost(load, "us-east-1", None, None, Console(file=text, width=300)) == 0
    for each in words:
        assert each in text.getvalue()
    assert "Left out: Secrets Manager" in text.getvalue()
    assert "-0%" not in text.getvalue()


def test_nothing_is_cut_off_in_eighty_columns() -> None:
    text = io.StringIO()
    load = Load(symbols=10_000, interval_seconds=1.0)
    assert cost(load, "us-east-1", None, None, make_console(file=text, width=80)) == 0
    printed = text.getvalue()
    assert "…" not in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    for name, design in DESIGNS.items():
        month = design(load, PRICES)
        assert name in printed
        for figure in (*month.values(), sum(month.values())):
            assert f"{figure:,.2f}" in printed


@pytest.mark.parametrize("price", [-1, "free", None, True, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(price: object, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    entries: dict[str, object] = {name: {"price": each} for name, each in PRICES.items()}
    entries["s3_put"] = {"price": price}
    path.write_text(json.dumps({"mars-1": {"prices": entries}}))
    with pytest.raises(InvalidRequestError, match="garbles the price of s3_put"):
        read_prices("mars-1", path)
    path.write_text("[]")
    with pytest.raises(InvalidRequestError, match="the regions by name"):
        read_prices("mars-1", path)


def test_a_task_is_billed_for_a_minute_at_least() -> None:
    rare = replace(Load(), interval_seconds=300.0)
    short, minute, long = (task_per_batch(replace(rare, task_seconds=s), PRICES)["scorers"] for s in (5, 60, 120))
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
    alike = {"zones": 0, "canary_quotes": 0, "health_seconds": float("inf")}
    load = replace(Load(), interval_seconds=3_600.0, off_hours_scorers=0, **alike)  # type: ignore[arg-type]
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
