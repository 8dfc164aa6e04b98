"""Monthly cost of the ways to score a market's quotes on AWS.

What all designs share is counted in each: SQS requests (sent, received and deleted in batches of 10), the dispatch
Lambda, DynamoDB writes and cursor reads, and S3 puts. What they differ in is who scores:

- warm: scorers that run in market hours (the default design).
- polling: scorers that run around the clock and ask the queue themselves, without a Lambda.
- task per batch: one Fargate task for each batch of messages.
- task per message: one Fargate task for each message.

Free tiers, data transfer, logs and the gateway's own task (the same in all designs) are left out.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from services.domain.errors import FieldViolation, InvalidRequestError

HOURS_A_MONTH: Final = 730.0
TRADING_DAYS_A_MONTH: Final = 21.0
_SQS_BATCH = 10
_SQS_LONG_POLL_SECONDS = 20.0
_MINIMUM_TASK_SECONDS = 60.0
_REQUIRED = (
    "fargate_vcpu_hour",
    "fargate_gb_hour",
    "lambda_request",
    "lambda_gb_second",
    "sqs_fifo_request",
    "dynamodb_write_unit",
    "dynamodb_read_unit",
    "s3_put",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What is watched, and with what.

    `task_seconds` is how long a one-shot task runs with its start (Fargate bills at least 60 s), and
    `quotes_per_second` what one warm scorer of that size takes. `item_kb` is a stored quote with its score.
    """

    symbols: int = 29
    interval_seconds: float = 60.0
    hours_a_day: float = 6.5
    days_a_month: float = TRADING_DAYS_A_MONTH
    vcpu: float = 0.25
    memory_gb: float = 0.5
    batch_messages: int = 10
    task_seconds: float = 45.0
    quotes_per_second: float = 300.0
    lambda_gb: float = 0.25
    lambda_seconds: float = 0.15
    item_kb: float = 0.8

    @property
    def quotes(self) -> float:
        """Quotes a month."""
        return self.symbols * self.hours_a_day * 3_600 / self.interval_seconds * self.days_a_month

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

    Raises: InvalidRequestError naming the file and what it lacks.
    """
    try:
        text = path.read_text() if path is not None else (files("services.costs") / "prices.json").read_text()
        table: dict[str, Any] = json.loads(text)
        regions = sorted(table)
        if region not in table:
            raise _refused("region", f"{region!r} is not in the price table, which has {', '.join(regions)}")
        entries = table[region]["prices"]
        prices = {name: float(entries[name]["price"]) for name in _REQUIRED}
        dates = sorted({str(entries[name].get("as_of", "undated")) for name in _REQUIRED})
    except OSError as error:
        raise _refused("prices", f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise _refused("prices", f"{path} is not JSON: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _refused("prices", f"{path or 'the shipped table'} lacks or garbles {error}") from error
    return prices, f"list prices of {region}, as of {', '.join(dates)}"


def _refused(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, description)])


def _task_hour(load: Load, prices: Prices) -> float:
    return load.vcpu * prices["fargate_vcpu_hour"] + load.memory_gb * prices["fargate_gb_hour"]


def shared(load: Load, prices: Prices) -> dict[str, float]:
    """What every design pays, by part."""
    batches = load.quotes / _SQS_BATCH
    return {
        "SQS": 3 * batches * prices["sqs_fifo_request"],
        "DynamoDB": load.quotes * math.ceil(load.item_kb) * prices["dynamodb_write_unit"]
        + batches * prices["dynamodb_read_unit"],
        "S3": load.market_hours * 60 * prices["s3_put"],
    }


def _dispatch(load: Load, prices: Prices) -> float:
    each = prices["lambda_request"] + load.lambda_gb * load.lambda_seconds * prices["lambda_gb_second"]
    return load.quotes / _SQS_BATCH * each


def warm(load: Load, prices: Prices) -> dict[str, float]:
    """Scorers in market hours, dispatched to by Lambda."""
    scorers = load.scorers * load.market_hours * _task_hour(load, prices)
    return {"Fargate": scorers, "Lambda": _dispatch(load, prices), **shared(load, prices)}


def polling(load: Load, prices: Prices) -> dict[str, float]:
    """Scorers around the clock that ask the queue themselves."""
    parts = shared(load, prices)
    idle = max(0.0, HOURS_A_MONTH - load.market_hours)
    parts["SQS"] += load.scorers * idle * 3_600 / _SQS_LONG_POLL_SECONDS * prices["sqs_fifo_request"]
    return {"Fargate": load.scorers * HOURS_A_MONTH * _task_hour(load, prices), "Lambda": 0.0, **parts}


def task_per_batch(load: Load, prices: Prices) -> dict[str, float]:
    """One task for each batch."""
    hours = max(_MINIMUM_TASK_SECONDS, load.task_seconds) / 3_600
    tasks = load.quotes / load.batch_messages * hours * _task_hour(load, prices)
    return {"Fargate": tasks, "Lambda": _dispatch(load, prices), **shared(load, prices)}


def task_per_message(load: Load, prices: Prices) -> dict[str, float]:
    """One task for each message."""
    return task_per_batch(replace(load, batch_messages=1), prices)


Design = Callable[[Load, Prices], dict[str, float]]
DESIGNS: Final[dict[str, Design]] = {
    "warm": warm,
    "polling": polling,
    "task per batch": task_per_batch,
    "task per message": task_per_message,
}


def total(design: Design, load: Load, prices: Prices) -> float:
    """The design's month."""
    return sum(design(load, prices).values())


def crossovers(load: Load, prices: Prices, symbols: Sequence[int]) -> list[tuple[int, str]]:
    """Where the cheapest design changes: (from this many symbols on, the design)."""
    found: list[tuple[int, str]] = []
    for count in symbols:
        at = replace(load, symbols=count)
        best = min(DESIGNS, key=lambda name: total(DESIGNS[name], at, prices))
        if not found or found[-1][1] != best:
            found.append((count, best))
    return found
