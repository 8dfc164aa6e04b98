"""What a shadow model costs the scoring service: `python bench/shadow_mode.py`.

The same quotes through the same service in process, without and with a shadow, in turns; CPU time, the median of the
ratios counts.
"""

import asyncio
import dataclasses
import json
import statistics
import time
from pathlib import Path

from services.archive import bokeh, version_folder
from services.archive.bars import quotes as quotes_of
from services.domain.quote import Quote, Series
from services.scorer.litert import LiteRTModel
from services.scorer.registry import ModelRegistry
from services.scorer.service import ScoringService

BATCH = 100
ROUNDS = 7


async def seconds(quotes: list[Quote], shadow: bool) -> float:
    """CPU time to score the quotes in batches: what else runs on the machine does not count."""
    registry = ModelRegistry()
    scoring = ScoringService(registry.load(), None)
    if shadow:
        scoring.deploy(scoring.deployment.with_shadow(_Renamed(registry)))
    cursors: dict[Series, object] = {}
    started = time.process_time()
    for i in range(0, len(quotes), BATCH):
        batch = quotes[i : i + BATCH]
        await scoring.score(batch, {q.series: cursors.get(q.series) for q in batch})  # type: ignore[misc]
        cursors |= {q.series: q.event_time for q in batch}
    taken = time.process_time() - started
    tally = scoring.watch.shadow()
    assert tally is None or tally.quotes == len(quotes)
    scoring.close()
    return taken


class _Renamed(LiteRTModel):
    """The shipped model under another version's name."""

    def __init__(self, registry: ModelRegistry) -> None:
        shipped = version_folder.read(registry.folder / registry.load().metadata.version)
        renamed = dataclasses.replace(shipped.metadata, version="shadow")
        super().__init__("bench", renamed, shipped.autoencoder, shipped.classifier)


def main() -> None:
    """Measure, print, save."""
    quotes = list(quotes_of(bokeh.read(), tape="bench", source=bokeh.SOURCE))
    asyncio.run(seconds(quotes[:1_000], True))
    pairs = [(asyncio.run(seconds(quotes, False)), asyncio.run(seconds(quotes, True))) for _ in range(ROUNDS)]
    without = statistics.median(one for one, _ in pairs)
    result = {
        "quotes": len(quotes),
        "quotes_per_cpu_second_without": round(len(quotes) / without),
        "quotes_per_cpu_second_with": round(len(quotes) / statistics.median(other for _, other in pairs)),
        "microseconds_per_quote": round(
            statistics.median((other - one) / len(quotes) * 1e6 for one, other in pairs), 2
        ),
        "slower_by": round(statistics.median(other / one - 1 for one, other in pairs), 3),
    }
    print(json.dumps(result))
    target = Path(__file__).parent / "results" / "shadow_mode.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
