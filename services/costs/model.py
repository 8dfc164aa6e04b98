"""Monthly cost of the ways to score a market's quotes on AWS, as `deploy/settings.toml` ships them.

What the designs share is counted in each: SQS requests (sent, received and deleted in batches of 10), DynamoDB's units
as docs/data-model.md measured them, S3 puts, and what always runs: gateways, ingest, the dispatch service, canaries
(which in the task designs launch tasks like any quote) and the VPC's interface endpoints.

What they differ in is who scores:

- warm: scorers that run in market hours, and fewer of them (`off_hours_scorers`) in the rest of the month, dispatched
  to by Lambda, whose poller asks the queue around the clock.
- polling: scorers that run around the clock and ask the queue themselves, without a Lambda.
- task per batch: one Fargate task for each batch of messages, and no scorer besides; batches of the same symbols that
  come while it runs share the next one.
- task per message: one Fargate task for each message.

What is left out is in `LEFT_OUT`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from services.domain.canary import CANARIES, at
from services.domain.errors import FieldViolation, InvalidRequestError

HOURS_A_MONTH: Final = 730.0
TRADING_DAYS_A_MONTH: Final = 21.0
_SQS_BATCH = 10
_SQS_LONG_POLL_SECONDS = 20.0
_LAMBDA_POLLERS = 5  # connections that Lambda keeps to an idle queue, by AWS's guide to event source mappings
_MINIMUM_TASK_SECONDS = 60.0
_PLAYED = [at(canary, datetime(2026, 1, 5, tzinfo=UTC)) for canary in CANARIES]
CANARY_QUOTES: Final = sum(len(played.history) + len(played.manipulated) for played in _PLAYED)
"""What one play of all canaries sends."""

_REQUIRED = (
    "fargate_vcpu_hour",
    "fargate_gb_hour",
    "lambda_request",
    "lambda_gb_second",
    "sqs_fifo_request",
    "dynamodb_write_unit",
    "dynamodb_read_unit",
    "s3_put",
    "vpc_endpoint_hour",
)
ALWAYS_ON: Final = ("canaries", "services", "endpoints")
"""Parts of a month that the market's quotes do not change."""

LEFT_OUT: Final = (
    "Secrets Manager",
    "logs, metrics, alarms and traces",
    "stored data, its backups and exports",
    "data transfer, through the endpoints too",
    "NAT, DAX and AppSync",
    "the fifth that Fargate and Lambda cost less on arm64",
    "free tiers",
    "taxes",
)
"""What no design's month contains."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is watched, and with what; sizes and counts are those of `deploy/settings.toml`.

    `task_seconds` is how long a one-shot task runs with its start (Fargate bills at least 60 s), `task_messages` how
    many messages the batches of one may have, and `canary_tasks` how many a play takes: for each symbol one with what
    came first, and one with what waited meanwhile. `task_canary_interval_seconds` is the shortest that task mode's
    canaries may have. `quotes_per_second` is what one warm scorer of that size takes; `off_hours_scorers` run when the
    market is closed.
    Units of the table are measured (docs/data-model.md): each gateway reads counters whatever the load. Each service
    asks every `health_seconds` whether what it cannot work without is there.
    """

    symbols: int = 29
    interval_seconds: float = 60.0
    hours_a_day: float = 6.5
    days_a_month: float = TRADING_DAYS_A_MONTH
    vcpu: float = 0.25
    memory_gb: float = 0.5
    off_hours_scorers: int = 1
    batch_messages: int = 10
    task_messages: int = 1_000
    task_seconds: float = 45.0
    quotes_per_second: float = 300.0
    lambda_gb: float = 0.5
    lambda_seconds: float = 0.15
    write_units_a_quote: float = 2.4
    read_units_a_quote: float = 2.0
    detection_share: float = 0.01
    write_units_a_detection: float = 28.0
    canary_interval_seconds: float = 900.0
    task_canary_interval_seconds: float = 2_000.0
    canary_quotes: int = CANARY_QUOTES
    canary_tasks: int = 2 * len(CANARIES)
    gateways: int = 2
    gateway_vcpu: float = 0.5
    gateway_gb: float = 1.0
    gateway_read_units_a_day: float = 780_000.0
    other_services: int = 2
    zones: int = 2
    interface_endpoints: int = 6
    health_seconds: float = 5.0

    @property
    def quotes(self) -> float:
        """Quotes a month."""
        return self.symbols * self.hours_a_day * 3_600 / self.interval_seconds * self.days_a_month

    def canary_quotes_a_month(self, *, task_mode: bool = False) -> float:
        """Quotes that canaries send a month, around the clock; none with an interval of 0."""
        if not self.canary_interval_seconds:
            return 0.0
        shortest = self.task_canary_interval_seconds if task_mode else 0.0
        return HOURS_A_MONTH * 3_600 / max(self.canary_interval_seconds, shortest) * self.canary_quotes

    @property
    def health_checks(self) -> float:
        """How often in a month a service asks whether something is there."""
        return HOURS_A_MONTH * 3_600 / self.health_seconds

    @property
    def market_hours(self) -> float:
        """Hours a month in which quotes come."""
        return self.hours_a_day * self.days_a_month

    @property
    def scorers(self) -> int:
        """Warm scorers that the average rate needs."""
        return max(1, math.ceil(self.symbols / self.interval_seconds / self.quotes_per_second))


Prices = Mapping[str, float]


def read_prices(region: str, path: Path | None = None) -> tuple[Prices, str]:
    """The region's prices by name, and where they are from, in words. `path` replaces the shipped table.

    Raises: InvalidRequestError naming the regions there are, or the file and what it lacks.
    """
    try:
        text = path.read_text() if path is not None else (files("services.costs") / "prices.json").read_text()
        table: Any = json.loads(text)
        if not isinstance(table, dict):
            raise ValueError("the regions by name")
        regions = sorted(table)
        if region not in table:
            raise _refused(
                "region",
                f"{region!r} is not in the price table, which has {' and '.join(regions)}; "
                "--prices FILE takes your own",
            )
        entries = table[region]["prices"]
        prices = {name: _price(name, entries[name]["price"]) for name in _REQUIRED}
        dates = sorted({str(entries[name].get("as_of", "undated")) for name in _REQUIRED})
    except OSError as error:
        raise _refused("prices", f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise _refused("prices", f"{path} is not JSON: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _refused("prices", f"{path or 'the shipped table'} lacks or garbles {error}") from error
    return prices, f"list prices of {region}, as of {', '.join(dates)}"


def _price(name: str, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
        raise ValueError(f"the price of {name}: {given!r} is no amount of 0 or more")
    return float(given)


def _refused(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, description)])


def _task_hour(load: Load, prices: Prices) -> float:
    return load.vcpu * prices["fargate_vcpu_hour"] + load.memory_gb * prices["fargate_gb_hour"]


def _recorded(quotes: float, load: Load, prices: Prices) -> dict[str, float]:
    """Queued and recorded, by part."""
    writes = quotes * (load.write_units_a_quote + load.detection_share * load.write_units_a_detection)
    reads = quotes * load.read_units_a_quote
    return {
        "SQS": 3 * quotes / _SQS_BATCH * prices["sqs_fifo_request"],
        "DynamoDB": writes * prices["dynamodb_write_unit"] + reads * prices["dynamodb_read_unit"],
    }


def _always_on(load: Load, prices: Prices, *, canary_quote: float, task_mode: bool = False) -> dict[str, float]:
    """What runs whatever the market does. Tasks are launched through one endpoint more."""
    gateway = load.gateway_vcpu * prices["fargate_vcpu_hour"] + load.gateway_gb * prices["fargate_gb_hour"]
    counters = load.gateway_read_units_a_day * HOURS_A_MONTH / 24 * prices["dynamodb_read_unit"]
    endpoints = (load.interface_endpoints + task_mode) * load.zones
    canary_quotes = load.canary_quotes_a_month(task_mode=task_mode)
    recorded = sum(_recorded(canary_quotes, load, prices).values())
    # Ingest and dispatch look for the queue, gateways and ingest for their tables, a dispatcher of tasks for its own.
    tables = load.gateways + 1 + task_mode
    looks = load.health_checks * (2 * prices["sqs_fifo_request"] + tables * prices["dynamodb_read_unit"])
    return {
        "canaries": recorded + canary_quotes * canary_quote,
        "services": load.gateways * (HOURS_A_MONTH * gateway + counters)
        + load.other_services * HOURS_A_MONTH * _task_hour(load, prices)
        + looks,
        "endpoints": endpoints * HOURS_A_MONTH * prices["vpc_endpoint_hour"],
    }


def _month(
    load: Load,
    prices: Prices,
    *,
    pool: float = 0.0,
    invoked: float = 0.0,
    launched: float = 0.0,
    canary_launched: float = 0.0,
    idle_polls: float,
    task_mode: bool = False,
) -> dict[str, float]:
    """A month by part.

    `pool` is what scorers cost that run anyway; the Lambda `invoked` for and the tasks `launched` for one quote, of the
    market or a canary, come on top, and so do the queue's `idle_polls`.
    """
    recorded = _recorded(load.quotes, load, prices)
    return {
        "scorers": pool + load.quotes * launched,
        "Lambda": load.quotes * invoked,
        "SQS": recorded["SQS"] + idle_polls * prices["sqs_fifo_request"],
        "DynamoDB": recorded["DynamoDB"],
        "S3": load.market_hours * 60 * prices["s3_put"],
        **_always_on(load, prices, canary_quote=invoked + canary_launched, task_mode=task_mode),
    }


def _invoked(load: Load, prices: Prices) -> float:
    """The dispatch Lambda, for one quote of a batch."""
    each = prices["lambda_request"] + load.lambda_gb * load.lambda_seconds * prices["lambda_gb_second"]
    return each / _SQS_BATCH


def _long_polls(pollers: float, hours: float) -> float:
    return pollers * hours * 3_600 / _SQS_LONG_POLL_SECONDS


def warm(load: Load, prices: Prices) -> dict[str, float]:
    """Scorers in market hours and some in the rest, dispatched to by Lambda."""
    hours = load.scorers * load.market_hours + load.off_hours_scorers * _closed_hours(load)
    return _month(
        load,
        prices,
        pool=hours * _task_hour(load, prices),
        invoked=_invoked(load, prices),
        idle_polls=_long_polls(_LAMBDA_POLLERS, HOURS_A_MONTH),
    )


def _closed_hours(load: Load) -> float:
    return max(0.0, HOURS_A_MONTH - load.market_hours)


def polling(load: Load, prices: Prices) -> dict[str, float]:
    """Scorers around the clock that ask the queue themselves."""
    pool = load.scorers * HOURS_A_MONTH * _task_hour(load, prices)
    polls = _long_polls(load.scorers, _closed_hours(load)) + load.scorers * load.health_checks
    return _month(load, prices, pool=pool, idle_polls=polls)


def task_per_batch(load: Load, prices: Prices) -> dict[str, float]:
    """One task for each batch, or for those of the same symbols that came while the one before ran."""
    batches = min(load.task_messages / load.batch_messages, load.task_seconds / load.interval_seconds)
    played = load.canary_quotes / load.canary_tasks
    return _by_tasks(load, prices, load.batch_messages * max(1.0, batches), max(load.batch_messages, played))


def _by_tasks(load: Load, prices: Prices, task_quotes: float, task_canary_quotes: float) -> dict[str, float]:
    """Tasks that take so many quotes each."""
    task = max(_MINIMUM_TASK_SECONDS, load.task_seconds) / 3_600 * _task_hour(load, prices)
    return _month(
        load,
        prices,
        invoked=_invoked(load, prices),
        launched=task / task_quotes,
        canary_launched=task / task_canary_quotes,
        idle_polls=_long_polls(_LAMBDA_POLLERS, HOURS_A_MONTH),
        task_mode=True,
    )


def task_per_message(load: Load, prices: Prices) -> dict[str, float]:
    """One task for each message."""
    return _by_tasks(load, prices, 1, 1)


Design = Callable[[Load, Prices], dict[str, float]]
DESIGNS: Final[dict[str, Design]] = {
    "warm": warm,
    "polling": polling,
    "task per batch": task_per_batch,
    "task per message": task_per_message,
}

MODES: Final = {"warm": "warm", "task per batch": "task"}
"""Designs that `make deploy` sets up, and their `dispatch.mode`. The others are there to compare with."""


def total(design: Design, load: Load, prices: Prices) -> float:
    """The design's month."""
    return sum(design(load, prices).values())


def scoring(month: Mapping[str, float]) -> float:
    """What of a month depends on who scores: all but what always runs."""
    return sum(cost for part, cost in month.items() if part not in ALWAYS_ON)


def crossovers(load: Load, prices: Prices, symbols: Sequence[int]) -> list[tuple[int, str]]:
    """Where the cheapest design changes: (from this many symbols on, the design)."""
    found: list[tuple[int, str]] = []
    for count in symbols:
        at = replace(load, symbols=count)
        best = min(DESIGNS, key=lambda name: total(DESIGNS[name], at, prices))
        if not found or found[-1][1] != best:
            found.append((count, best))
    return found
