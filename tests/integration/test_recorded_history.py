"""The gateway as a scorer's history: the newest revision of each bar, however many pages it takes."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from services.archive import bokeh
from services.archive.bars import quotes as quotes_of
from services.domain.quote import Quote
from services.domain.score import Score, ScoredQuote
from services.pipeline.gateway_client import GatewayClient
from services.pipeline.ports import RecordOutcome
from services.scorer.registry import PACKAGED_MODELS, ModelRegistry
from services.scorer.service import ScoringService
from tests.integration.gateway_server import running_gateway

MODEL = ModelRegistry(PACKAGED_MODELS).load()
BARS = [q for q in quotes_of(bokeh.read(), tape="t", source=bokeh.SOURCE) if q.symbol == "AAPL"][:120]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GatewayClient]:
    async with running_gateway(tmp_path) as gateway:
        yield GatewayClient(gateway.channel)


def revision(bar: Quote, number: int) -> Quote:
    """The bar corrected: half as high again per revision, on twenty times the volume."""
    price = bar.high * (1 + 0.5 * number)
    return dataclasses.replace(bar, revision=number, high=price, close=price, volume=bar.volume * 20)


def unremarkable(bar: Quote) -> ScoredQuote:
    return ScoredQuote(bar, Score(bar.quote_id, 0.1, 0.5, False, "m1", "f1", score_time=bar.event_time))


async def record(client: GatewayClient, bars: Sequence[Quote]) -> None:
    assert await client.record([unremarkable(bar) for bar in bars]) == [RecordOutcome.CREATED] * len(bars)


async def test_the_newest_revision_of_each_bar_is_the_history(client: GatewayClient) -> None:
    await record(client, BARS[:100])
    await record(client, [revision(BARS[97], 1), revision(BARS[97], 2), revision(BARS[99], 1)])
    series, moment = BARS[0].series, BARS[100].event_time
    expected = [*BARS[90:97], revision(BARS[97], 2), BARS[98], revision(BARS[99], 1)]
    assert await client.before(series, moment, 10) == expected
    assert await client.before(series, moment, 1) == [revision(BARS[99], 1)]
    assert await client.before(series, BARS[97].event_time, 2) == BARS[95:97]
    assert await client.before(series, BARS[0].event_time, 10) == []


async def test_pages_are_read_until_there_are_bars_enough(client: GatewayClient) -> None:
    """Three rows make one bar, so that a page of `limit` rows holds a third of what is asked for."""
    await record(client, [each for bar in BARS[:30] for each in (bar, revision(bar, 1), revision(bar, 2))])
    newest = [revision(bar, 2) for bar in BARS[:30]]
    moment = BARS[30].event_time
    for limit in (1, 2, 4, 10, 29, 30, 31, 60):
        assert await client.before(BARS[0].series, moment, limit) == newest[-limit:], limit


async def test_other_series_are_no_history(client: GatewayClient) -> None:
    bar = BARS[5]
    await record(client, [*BARS[:5], dataclasses.replace(bar, source="other"), dataclasses.replace(bar, tape="other")])
    await record(client, [dataclasses.replace(bar, symbol="FB"), dataclasses.replace(bar, interval_seconds=60)])
    assert await client.before(BARS[0].series, bar.event_time + timedelta(days=1), 10) == BARS[:5]


async def test_a_bar_is_scored_after_the_revised_one(client: GatewayClient) -> None:
    await record(client, BARS[:100])
    revised = revision(BARS[99], 1)
    await record(client, [revised])
    service = ScoringService(MODEL, client)
    following = BARS[100]
    expected = await service.score_one(following, [*BARS[:99], revised])
    assert not expected.same_as(await service.score_one(following, BARS[:100])), "the revised values must matter"
    by_hand = await service.score_one(following, None)
    (in_turn,) = await service.score([following], await client.cursors([following.series]))
    assert isinstance(in_turn, Score)
    for found in (by_hand, in_turn):
        assert found.same_as(expected)
        assert found.history_quotes == expected.history_quotes
    service.close()
