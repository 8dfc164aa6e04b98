"""Score, then record: order, exactly-once within a batch, and which failures block what."""

import pytest

from services.domain.errors import (
    DependencyUnavailableError,
    FieldViolation,
    InvalidQuoteError,
    PredecessorFailedError,
)
from services.domain.score import Score
from services.pipeline.score_then_record import score_then_record
from tests.pipeline_fakes import FakeRecorder, FakeScorer, quote


async def test_scores_are_recorded_in_order_with_fresh_cursors() -> None:
    scorer, recorder = FakeScorer(), FakeRecorder()
    first, second = [quote(i) for i in range(3)], [quote(i) for i in range(3, 5)]
    for batch in (first, second):
        results = await score_then_record(batch, scorer, recorder)
        assert all(isinstance(result, Score) for result in results)
    assert [item.quote for item in recorder.recorded] == first + second
    assert scorer.batches[0][1] == {first[0].series: None}
    assert scorer.batches[1][1] == {first[0].series: first[-1].event_time}


async def test_an_equal_quote_is_scored_and_recorded_once() -> None:
    scorer, recorder = FakeScorer(), FakeRecorder()
    results = await score_then_record([quote(0), quote(1), quote(0)], scorer, recorder)
    assert len(results) == 3
    assert results[0] == results[2]
    assert len(recorder.recorded) == 2


async def test_a_transient_failure_blocks_the_rest_of_its_series_only() -> None:
    scorer, recorder = FakeScorer(), FakeRecorder()
    batch = [quote(0), quote(0, "MSFT"), quote(1), quote(1, "MSFT"), quote(2)]
    scorer.failures[batch[2].quote_id] = DependencyUnavailableError("scorer", "busy")
    results = await score_then_record(batch, scorer, recorder)
    assert [type(r) for r in results] == [Score, Score, DependencyUnavailableError, Score, PredecessorFailedError]
    assert [item.quote for item in recorder.recorded] == [batch[0], batch[1], batch[3]]


async def test_an_invalid_quote_blocks_nothing() -> None:
    scorer, recorder = FakeScorer(), FakeRecorder()
    batch = [quote(0), quote(1), quote(2)]
    scorer.failures[batch[1].quote_id] = InvalidQuoteError([FieldViolation("high", "is wrong")])
    results = await score_then_record(batch, scorer, recorder)
    assert [type(r) for r in results] == [Score, InvalidQuoteError, Score]
    assert [item.quote for item in recorder.recorded] == [batch[0], batch[2]]


async def test_a_recording_failure_is_the_result() -> None:
    scorer, recorder = FakeScorer(), FakeRecorder()
    recorder.failures[quote(1).quote_id] = DependencyUnavailableError("store", "locked")
    results = await score_then_record([quote(0), quote(1)], scorer, recorder)
    assert [type(r) for r in results] == [Score, DependencyUnavailableError]


async def test_without_gateway_nothing_is_scored() -> None:
    scorer, recorder = FakeScorer(), FakeRecorder()
    recorder.away = True
    with pytest.raises(DependencyUnavailableError):
        await score_then_record([quote(0)], scorer, recorder)
    assert not scorer.batches


async def test_an_empty_batch_asks_nobody() -> None:
    recorder = FakeRecorder()
    recorder.away = True
    assert await score_then_record([], FakeScorer(), recorder) == []
