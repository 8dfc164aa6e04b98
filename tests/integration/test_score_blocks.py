"""ScoreBlocks over gRPC: what ScoreStream judges, in columns, whatever the blocks are cut into."""

import math
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from services.archive import bokeh
from services.archive.bars import quotes as quotes_of
from services.domain.quote import Quote
from services.runtime.channels import open_channel
from services.runtime.settings import ClientSettings
from services.scorer.blocks import OPTIONAL_COLUMNS
from services.scorer.main import build
from services.scorer.settings import ScorerSettings
from services.wire.quote import quote_to_proto, series_to_proto
from tapewatch.scorer.v1 import block_pb2, score_pb2
from tapewatch.scorer.v1 import scorer_service_pb2 as pb
from tapewatch.scorer.v1.scorer_service_pb2_grpc import ScorerServiceStub
from tests.pipeline_fakes import quote
from tests.servers.in_process import served

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
async def scorer() -> AsyncIterator[Any]:
    settings = ScorerSettings(grpc_port=0, gateway_address="none")
    async with (
        served("scorer", settings, lambda lifetime: build(lifetime, settings)) as server,
        open_channel(server.address, ClientSettings()) as channel,
    ):
        yield ScorerServiceStub(channel)


def block(quotes: Sequence[Quote]) -> block_pb2.Block:
    def optional(name: str) -> list[float]:
        values = [getattr(q, name) for q in quotes]
        return [] if all(v is None for v in values) else [math.nan if v is None else float(v) for v in values]

    return block_pb2.Block(
        series=series_to_proto(quotes[0].series),
        event_time_micros=[(q.event_time - EPOCH) // timedelta(microseconds=1) for q in quotes],
        **{name: [getattr(q, name) for q in quotes] for name in ("open", "high", "low", "close", "volume")},
        **{name: optional(name) for name in OPTIONAL_COLUMNS},
    )


async def results(scorer: Any, requests: Iterable[Sequence[block_pb2.Block]]) -> list[pb.BlockResult]:
    async def sent() -> AsyncIterator[pb.ScoreBlocksRequest]:
        for blocks in requests:
            yield pb.ScoreBlocksRequest(blocks=blocks)

    return [result async for response in scorer.ScoreBlocks(sent()) for result in response.results]


async def streamed(scorer: Any, quotes: Sequence[Quote]) -> list[score_pb2.Score]:
    async def sent() -> AsyncIterator[pb.ScoreStreamRequest]:
        for i in range(0, len(quotes), 250):
            yield pb.ScoreStreamRequest(quotes=[quote_to_proto(q) for q in quotes[i : i + 250]])

    return [result.score async for response in scorer.ScoreStream(sent()) for result in response.results]


def cut(quotes: Sequence[Quote], seed: int) -> Iterator[list[block_pb2.Block]]:
    """One block a request, of random lengths from 1 to 900."""
    lengths = np.random.default_rng(seed).integers(1, 900, len(quotes))
    start = 0
    for length in lengths.tolist():
        if start < len(quotes):
            yield [block(quotes[start : start + length])]
        start += length


def same(scored: Sequence[block_pb2.ScoredBlock], scores: Sequence[score_pb2.Score]) -> None:
    def column(name: str) -> list[Any]:
        return [value for each in scored for value in getattr(each, name)]

    for name in ("ensemble", "autoencoder_percentile", "classifier_probability", "typology_confidence"):
        np.testing.assert_allclose(column(name), [getattr(s, name) for s in scores], rtol=0, atol=1e-6, err_msg=name)
    for name in ("detection", "typology", "history_quotes"):
        assert column(name) == [getattr(s, name) for s in scores], name
    assert column("unadjusted") == [score_pb2.QUALITY_UNADJUSTED in s.quality for s in scores]
    for each in scored:
        assert (each.model_version, each.threshold) == (scores[0].model_version, scores[0].threshold)


async def test_blocks_are_judged_as_the_stream_judges_the_bundled_tape(scorer: Any) -> None:
    every = list(quotes_of(bokeh.read(), tape="bulk", source=bokeh.SOURCE))
    by_symbol = [[q for q in every if q.symbol == symbol] for symbol in ("AAPL", "FB", "IBM")]
    answers = await results(scorer, [[block(quotes) for quotes in by_symbol]])
    for quotes, answer in zip(by_symbol, answers, strict=True):
        assert answer.HasField("scored"), answer
        same([answer.scored], await streamed(scorer, quotes))
    assert any(any(answer.scored.detection) for answer in answers)


@pytest.mark.parametrize("seed", range(3))
async def test_how_a_series_is_cut_into_blocks_changes_nothing(scorer: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    quotes = [
        quote(
            i,
            volume=float(random.choice([0.0, 100.0, 5_000.0])),
            split_ratio=None if random.random() < 0.01 else 1.0,
            trades=int(random.integers(1, 99)) if random.random() < 0.5 else None,
            buy_volume=float(random.random()) if random.random() < 0.5 else None,
            benchmark_return=float(random.normal(0, 0.01)) if random.random() < 0.9 else None,
            benchmark_volume_ratio=float(random.lognormal(0, 0.3)) if random.random() < 0.9 else None,
            peer_return=float(random.normal(0, 0.01)) if random.random() < 0.9 else None,
            peer_volume_ratio=float(random.lognormal(0, 0.3)) if random.random() < 0.9 else None,
        )
        for i in range(2_500)
    ]
    answers = await results(scorer, cut(quotes, seed))
    assert len(answers) > 2
    same([answer.scored for answer in answers], await streamed(scorer, quotes))


def places(result: pb.BlockResult) -> set[str]:
    bad = error_details_pb2.BadRequest()
    for detail in result.error.details:
        detail.Unpack(bad)
    assert result.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    return {violation.field for violation in bad.field_violations}


async def test_a_refused_block_names_the_places_and_leaves_its_series_where_it_was(scorer: Any) -> None:
    good = [quote(i) for i in range(6)]
    wrong = block(good[3:])
    wrong.close[1] = math.nan
    wrong.volume[2] = -1.0
    nameless = block(good[:1])
    nameless.series.symbol = ""
    strange = block(good[:1])
    strange.series.symbol = "not a symbol"
    short = block(good[3:])
    short.volume.pop()
    ragged = block(good[3:])
    ragged.trades.append(1.0)
    backwards = block([*good[3:5], good[3]])
    endless = block(good[3:4])
    endless.event_time_micros[0] = 2**62
    answers = await results(
        scorer,
        [
            [block(good[:3]), wrong, nameless, strange, block_pb2.Block(series=wrong.series)],
            [short, ragged, backwards, endless, block(good[2:4]), block(good[3:])],
        ],
    )
    assert [answer.WhichOneof("outcome") for answer in answers] == ["scored", *["error"] * 9, "scored"]
    assert [places(answer) for answer in answers[1:-1]] == [
        {"close[1]", "volume[2]"},
        {"series.symbol"},
        {"series.symbol"},
        {"event_time_micros"},
        {"volume"},
        {"trades"},
        {"event_time_micros[2]"},
        {"event_time_micros[0]"},
        {"event_time_micros[0]"},
    ]
    assert list(answers[-1].scored.history_quotes) == [3, 4, 5]


async def test_too_many_bars_or_no_blocks_are_refused(scorer: Any) -> None:
    huge = block_pb2.Block(series=series_to_proto(quote(0).series), event_time_micros=range(100_001))
    for blocks in ([], [huge]):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await results(scorer, [blocks])
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
