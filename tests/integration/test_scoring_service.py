"""The scoring service with the shipped model: however quotes come, a quote gets one and the same score."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.archive import bokeh
from services.archive.bars import quotes as quotes_of
from services.domain.errors import DependencyUnavailableError, InvalidQuoteError, PredecessorFailedError
from services.domain.quote import Quote, Series
from services.domain.score import Quality, Score
from services.scorer.registry import PACKAGED_MODELS, ModelRegistry
from services.scorer.service import ScoringService, StreamProgress
from tests.pipeline_fakes import quote

MODEL = ModelRegistry(PACKAGED_MODELS).load()
BARS = [q for q in quotes_of(bokeh.read(), tape="t", source=bokeh.SOURCE) if q.symbol == "AAPL"][:220]
"""Up to and beyond the fall of 2000-09-29 and the split of 2000-06-21."""


class Recorded:
    """A history that knows what was recorded, and how often it was asked."""

    def __init__(self) -> None:
        self.quotes: list[Quote] = []
        self.asked = 0
        self.away = False

    async def before(self, series: Series, event_time: datetime, limit: int) -> list[Quote]:
        self.asked += 1
        if self.away:
            raise DependencyUnavailableError("gateway", "is away")
        earlier = [q for q in self.quotes if q.series == series and q.event_time < event_time]
        newest = {q.event_time: q for q in sorted(earlier, key=lambda q: (q.event_time, q.revision))}
        return list(newest.values())[-limit:]

    def cursors(self, quotes: Sequence[Quote]) -> dict[Series, datetime | None]:
        return {
            each.series: max((q.event_time for q in self.quotes if q.series == each.series), default=None)
            for each in quotes
        }


async def score_and_record(service: ScoringService, history: Recorded, batch: Sequence[Quote]) -> list[Score]:
    results = await service.score(batch, history.cursors(batch))
    scores = [result for result in results if isinstance(result, Score)]
    assert len(scores) == len(batch), results
    known = {q.quote_id for q in history.quotes}
    history.quotes += [q for q in batch if q.quote_id not in known]
    return scores


def close(one: Score, other: Score) -> bool:
    return one.quote_id == other.quote_id and one.same_as(other) and one.quality == other.quality


async def reference() -> dict[str, Score]:
    history = Recorded()
    service = ScoringService(MODEL, history)
    scores = await score_and_record(service, history, BARS)
    service.close()
    return {score.quote_id: score for score in scores}


async def test_one_by_one_is_as_all_at_once_and_needs_no_rebuild() -> None:
    expected = await reference()
    history = Recorded()
    service = ScoringService(MODEL, history)
    for each in BARS:
        (score,) = await score_and_record(service, history, [each])
        assert close(score, expected[each.quote_id])
    assert history.asked == 0
    assert any(score.detection for score in expected.values())


@settings(max_examples=25)
@given(st.data())
async def test_redeliveries_restarts_and_rerouting_change_no_score(data: st.DataObject) -> None:
    """At every step: a fresh scorer, one of two scorers, or a batch that goes back to what is recorded already."""
    expected = await reference()
    history = Recorded()
    services = [ScoringService(MODEL, history), ScoringService(MODEL, history)]
    position = 0
    while position < len(BARS):
        i = data.draw(st.integers(0, 2), label="scorer")
        if i == 2:
            i = 0
            services[0].close()
            services[0] = ScoringService(MODEL, history)
        start = max(0, position - data.draw(st.integers(0, 30), label="redelivered"))
        end = min(len(BARS), position + data.draw(st.integers(1, 80), label="new"))
        for score in await score_and_record(services[i], history, BARS[start:end]):
            assert close(score, expected[score.quote_id])
        position = end
    for service in services:
        service.close()


async def test_a_failed_recording_is_repaired_by_the_cursor() -> None:
    """The scorer went ahead of the gateway: its state must not count."""
    expected = await reference()
    history = Recorded()
    service = ScoringService(MODEL, history)
    await score_and_record(service, history, BARS[:100])
    await service.score(BARS[100:120], history.cursors(BARS[100:120]))  # never recorded
    for score in await score_and_record(service, history, BARS[100:130]):
        assert close(score, expected[score.quote_id])
    assert history.asked == 1


async def test_a_late_quote_is_scored_as_of_its_time() -> None:
    history = Recorded()
    service = ScoringService(MODEL, history)
    late = BARS[150]
    await score_and_record(service, history, BARS[:150] + BARS[151:160])
    (score,) = await score_and_record(service, history, [late])
    assert close(score, (await reference())[late.quote_id])
    assert history.asked == 1


async def test_quotes_out_of_order_within_a_batch_wait_for_their_turn() -> None:
    service = ScoringService(MODEL, Recorded())
    results = await service.score([BARS[0], BARS[2], BARS[1]], {BARS[0].series: None})
    assert [type(r) for r in results] == [Score, Score, PredecessorFailedError]


def revision(bar: Quote) -> Quote:
    """The bar corrected: half as high again, on twenty times the volume."""
    price = bar.high * 1.5
    return dataclasses.replace(bar, revision=1, high=price, close=price, volume=bar.volume * 20)


async def test_a_revision_takes_its_bars_place() -> None:
    history = Recorded()
    service = ScoringService(MODEL, history)
    (*_, first) = await score_and_record(service, history, BARS[:100])
    revised = revision(BARS[99])
    (score,) = await score_and_record(service, history, [revised])
    assert close(score, await service.score_one(revised, BARS[:99]))
    assert not score.same_as(first), "the revision's own values are judged"


@pytest.mark.parametrize("restarted", [True, False])
async def test_the_bar_after_a_revision_is_scored_after_its_values(restarted: bool) -> None:
    """From history and from memory alike."""
    history = Recorded()
    service = ScoringService(MODEL, history)
    await score_and_record(service, history, BARS[:100])
    revised, following = revision(BARS[99]), BARS[100]
    await score_and_record(service, history, [revised])
    expected = await service.score_one(following, [*BARS[:99], revised])
    assert not expected.same_as(await service.score_one(following, BARS[:100])), "the revised values must matter"
    if restarted:
        service.close()
        service = ScoringService(MODEL, history)
    (score,) = await score_and_record(service, history, [following])
    service.close()
    assert close(score, expected)


async def test_an_invalid_quote_is_answered_and_its_neighbours_are_scored() -> None:
    service = ScoringService(MODEL, None)
    batch = [quote(0), quote(1, high=1.0), quote(2), quote(0, "MSFT")]
    results = await service.score(batch, {})
    assert [type(r) for r in results] == [Score, InvalidQuoteError, Score, Score]
    invalid = results[1]
    assert isinstance(invalid, InvalidQuoteError)
    assert invalid.violations[0].field == "high"


async def test_without_history_only_the_series_that_need_it_wait() -> None:
    history = Recorded()
    service = ScoringService(MODEL, history)
    first = quote(0)
    history.away = True
    cursors: dict[Series, datetime | None] = {
        first.series: None,
        quote(5, "MSFT").series: quote(4, "MSFT").event_time,
    }
    results = await service.score([first, quote(5, "MSFT")], cursors)
    assert [type(r) for r in results] == [Score, DependencyUnavailableError]


async def test_a_stream_continues_from_its_own_quotes_whatever_others_send() -> None:
    expected = await reference()
    service = ScoringService(MODEL, Recorded())
    mine, other = StreamProgress(), StreamProgress()
    series = BARS[0].series
    await service.score(BARS[:80], {series: None}, mine)
    await service.score(BARS[:5], {series: None}, other)
    for score in await service.score(BARS[80:100], {}, mine):
        assert isinstance(score, Score)
        assert close(score, expected[score.quote_id])


async def test_what_comes_again_with_other_values_leaves_no_trace() -> None:
    """The gateway keeps the first values; so must the state."""
    expected = await reference()
    history = Recorded()
    service = ScoringService(MODEL, history)
    await score_and_record(service, history, BARS[:100])
    changed = dataclasses.replace(BARS[99], close=BARS[99].high, volume=9 * BARS[99].volume)
    await score_and_record(service, history, [changed])
    (score,) = await score_and_record(service, history, [BARS[100]])
    assert close(score, expected[BARS[100].quote_id])


async def test_scores_asked_for_without_a_cursor_leave_no_trace() -> None:
    expected = await reference()
    history = Recorded()
    service = ScoringService(MODEL, history)
    await score_and_record(service, history, BARS[:100])
    await service.score([dataclasses.replace(BARS[100], close=BARS[100].high)], {})
    for score in await score_and_record(service, history, BARS[100:110]):
        assert close(score, expected[score.quote_id])


async def test_quality_says_what_limits_a_score() -> None:
    service = ScoringService(MODEL, None)
    batch = [quote(i, split_ratio=None if i == 70 else 1.0) for i in range(150)]
    scores = [s for s in await service.score(batch, {}) if isinstance(s, Score)]
    assert scores[0].quality == (Quality.WARMING_UP,)
    assert scores[0].history_quotes == 0
    assert scores[69].quality == ()
    assert scores[70].quality == scores[130].quality == (Quality.UNADJUSTED,)
    assert scores[131].quality == (), "the bar has left the window"
    assert scores[149].history_quotes == 60


async def test_a_short_live_history_is_borrowed_and_says_so() -> None:
    class Borrowed:
        async def before(self, series: Series, event_time: datetime, limit: int) -> list[Quote]:
            return [quote(0, event_time=event_time - timedelta(minutes=limit - i)) for i in range(limit)]

    service = ScoringService(MODEL, Recorded(), Borrowed())
    batch = [quote(i + 1_000) for i in range(70)]
    scores = [s for s in await service.score(batch, {}) if isinstance(s, Score)]
    assert scores[0].quality == (Quality.FALLBACK,)
    assert scores[0].history_quotes == 60
    assert scores[59].quality == (Quality.FALLBACK,)
    assert scores[61].quality == ()
    replayed = await service.score([quote(1_000, tape="replay-1")], {})
    assert isinstance(replayed[0], Score)
    assert Quality.FALLBACK not in replayed[0].quality, "a replay is never completed from a live feed"


async def test_scoring_by_hand_changes_no_state() -> None:
    history = Recorded()
    service = ScoringService(MODEL, history)
    await score_and_record(service, history, BARS[:100])
    expected = (await reference())[BARS[100].quote_id]
    assert close(await service.score_one(BARS[100], None), expected)
    assert close(await service.score_one(BARS[100], BARS[40:100]), expected)
    asked = history.asked
    await score_and_record(service, history, [BARS[100]])
    assert history.asked == asked, "the state was still where the gateway's cursor is"
    with pytest.raises(InvalidQuoteError):
        await service.score_one(quote(0, low=-1.0), None)
