"""What each hop of the scoring path costs, against the hop below it in the same run: `python bench/scoring_path.py`.

Ratios carry over between machines; the absolute figures are of this one. Results go to bench/results/ as JSON.
"""

import argparse
import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from services.archive import bokeh
from services.archive.bars import quotes as quotes_of
from services.domain.features import compute
from services.domain.quote import Quote
from services.runtime.channels import open_channel
from services.runtime.server import Lifetime, Mount, serve
from services.runtime.settings import ClientSettings
from services.scorer.main import build
from services.scorer.registry import PACKAGED_MODELS, ModelRegistry
from services.scorer.service import ScoringService
from services.scorer.settings import ScorerSettings
from services.wire.quote import quote_to_proto, series_to_proto
from tapewatch.market.v1 import quote_pb2
from tapewatch.scorer.v1 import block_pb2
from tapewatch.scorer.v1 import scorer_service_pb2 as pb
from tapewatch.scorer.v1.scorer_service_pb2_grpc import ScorerServiceStub
from tapewatch_client import Quote as ClientQuote

BATCH = 100
UNARY_CALLS = 500


def batches(quotes: Sequence[Quote]) -> list[Sequence[Quote]]:
    """The quotes as a dispatcher sends them."""
    return [quotes[i : i + BATCH] for i in range(0, len(quotes), BATCH)]


def model_alone(quotes: Sequence[Quote]) -> float:
    """Features and model on ready windows: the floor. Quotes per second."""
    model = ModelRegistry(PACKAGED_MODELS).load()
    from services.domain.features import SeriesState

    symbols = {q.symbol for q in quotes}
    windows = np.concatenate([SeriesState().windows([q for q in quotes if q.symbol == s]) for s in sorted(symbols)])
    model.judge(compute(windows[:BATCH]))
    started = time.perf_counter()
    for i in range(0, len(windows), BATCH):
        model.judge(compute(windows[i : i + BATCH]))
    return len(windows) / (time.perf_counter() - started)


async def service(quotes: Sequence[Quote]) -> float:
    """The scoring service in process: states, windows, batching, reasons. Quotes per second."""
    scoring = ScoringService(ModelRegistry(PACKAGED_MODELS).load(), None)
    cursors: dict[object, object] = {}
    started = time.perf_counter()
    for batch in batches(quotes):
        known = {q.series: cursors.get(q.series) for q in batch}
        await scoring.score(batch, known)  # type: ignore[arg-type]
        cursors |= {q.series: q.event_time for q in batch}
    seconds = time.perf_counter() - started
    scoring.close()
    return len(quotes) / seconds


def block(quotes: Sequence[Quote]) -> block_pb2.Block:
    """Bars of one series in columns."""
    columns = {name: [getattr(q, name) for q in quotes] for name in ("open", "high", "low", "close", "volume")}
    return block_pb2.Block(
        series=series_to_proto(quotes[0].series),
        event_time_micros=[round(q.event_time.timestamp() * 1e6) for q in quotes],
        split_ratio=[math.nan if q.split_ratio is None else q.split_ratio for q in quotes],
        **columns,
    )


async def over_grpc(quotes: Sequence[Quote]) -> tuple[float, float, float]:
    """ScoreStream, ScoreBlocks, unary Score on loopback, client and server in one process. Quotes per second each."""
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    settings = ScorerSettings(grpc_port=0, gateway_address="none", log_level="WARNING")
    lifetimes: list[Lifetime] = []

    async def wire(lifetime: Lifetime) -> Sequence[Mount]:
        lifetimes.append(lifetime)
        return await build(lifetime, settings)

    done = asyncio.create_task(serve("scorer", settings, wire, started.set_result))
    port = await started
    async with open_channel(f"127.0.0.1:{port}", ClientSettings()) as channel:
        stub = ScorerServiceStub(channel)

        async def requests() -> AsyncIterator[pb.ScoreStreamRequest]:
            for batch in batches(quotes):
                yield pb.ScoreStreamRequest(quotes=[quote_to_proto(q) for q in batch])

        begun = time.perf_counter()
        answered = 0
        async for response in stub.ScoreStream(requests()):
            answered += len(response.results)
        stream = answered / (time.perf_counter() - begun)
        sent = [block([q for q in quotes if q.symbol == symbol]) for symbol in sorted({q.symbol for q in quotes})]

        async def blocks() -> AsyncIterator[pb.ScoreBlocksRequest]:
            for each in sent:
                yield pb.ScoreBlocksRequest(blocks=[each])

        begun = time.perf_counter()
        answered = 0
        async for bulk in stub.ScoreBlocks(blocks()):
            answered += sum(len(result.scored.ensemble) for result in bulk.results)
        columns = answered / (time.perf_counter() - begun)
        begun = time.perf_counter()
        for q in quotes[:UNARY_CALLS]:
            await stub.Score(pb.ScoreRequest(quote=quote_to_proto(q)))
        unary = UNARY_CALLS / (time.perf_counter() - begun)
    lifetimes[0].draining.set()
    await done
    return stream, columns, unary


def codec(write: Callable[[], bytes], parse: Callable[[bytes], object], rounds: int = 2_000) -> float:
    """Write and parse one quote. Quotes per second."""
    started = time.perf_counter()
    for _ in range(rounds):
        parse(write())
    return rounds / (time.perf_counter() - started)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scoring_path.json")
    output = parser.parse_args().output
    quotes = list(quotes_of(bokeh.read(), tape="bench", source=bokeh.SOURCE))
    floor = model_alone(quotes)
    in_process = asyncio.run(service(quotes))
    stream, columns, unary = asyncio.run(over_grpc(quotes))
    message = quote_to_proto(quotes[0])
    mirror = ClientQuote.parse(message.SerializeToString())
    upb = codec(message.SerializeToString, quote_pb2.Quote.FromString)
    betterproto = codec(lambda: bytes(mirror), ClientQuote.parse)
    rows = [
        ("features + model, batches of 100", floor, 1.0),
        ("scoring service in process", in_process, in_process / floor),
        ("ScoreStream on loopback", stream, stream / in_process),
        ("ScoreBlocks on loopback", columns, columns / stream),
        ("unary Score on loopback, one at a time", unary, unary / stream),
        ("quote write + parse, protobuf (upb)", upb, 1.0),
        ("quote write + parse, betterproto2", betterproto, betterproto / upb),
    ]
    table = Table("what", "quotes/s", "of the line it stands on")
    for name, rate, ratio in rows:
        table.add_row(name, f"{rate:,.0f}", f"{ratio:.3f}")
    Console().print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps([{"what": n, "quotes_per_second": r, "ratio": q} for n, r, q in rows], indent=2))


if __name__ == "__main__":
    main()
