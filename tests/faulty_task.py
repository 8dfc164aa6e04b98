"""`tapewatch scorer run-once`, which meets the faults that a test lays into the folder FAULTS, one file each.

Files are taken away as they are met: `start-*` and `midway-*` and `after-*` kill the process at once, after half of its
batch is recorded, and before it can report; `hang-*` makes it sleep, `away-*` takes the gateway from it. A batch with
the quote POISON kills it every time, and the quote INVALID can never be scored.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.domain.errors import FieldViolation, InvalidQuoteError, TapewatchError
from services.domain.quote import Quote
from services.domain.score import Score, ScoredQuote
from services.pipeline.gateway_client import GatewayClient
from services.pipeline.ports import Cursors, RecordOutcome
from services.scorer import run_once
from services.scorer.service import ScoringService

FAULTS = Path(os.environ["FAULTS"])
POISON, INVALID = os.environ.get("POISON", "nothing"), os.environ.get("INVALID", "nothing")
FAULTS.joinpath("launched.log").open("a").write(f"{os.environ['CORRELATION_ID']} {os.environ['BATCH_SIZE']}\n")


def met(fault: str) -> bool:
    for path in sorted(FAULTS.glob(f"{fault}-*")):
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        return True
    return False


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if met("start"):
    die()
if met("hang"):
    time.sleep(600)
if met("away"):
    os.environ |= {"GATEWAY_ADDRESS": "127.0.0.1:9", "RPC_TIMEOUT_SECONDS": "0.5"}

record, score = GatewayClient.record, ScoringService.score


async def record_or_die(self: GatewayClient, items: Sequence[ScoredQuote]) -> list[RecordOutcome | TapewatchError]:
    if met("midway"):
        await record(self, items[: len(items) // 2])
        die()
    recorded = await record(self, items)
    if met("after"):
        die()
    return recorded


async def score_or_die(
    self: ScoringService, quotes: Sequence[Quote], cursors: Cursors, *arguments: Any
) -> list[Score | TapewatchError]:
    if any(POISON in quote.quote_id for quote in quotes):
        die()
    results: list[Score | TapewatchError] = list(await score(self, quotes, cursors, *arguments))
    for i, quote in enumerate(quotes):
        if INVALID in quote.quote_id:
            results[i] = InvalidQuoteError([FieldViolation("close", "is beyond this model")])
    return results


GatewayClient.record = record_or_die  # type: ignore[method-assign]
ScoringService.score = score_or_die  # type: ignore[method-assign, assignment]
sys.exit(run_once.main())
