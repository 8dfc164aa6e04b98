"""The Lambda handler: partial batches, invalid and transient told apart, order within a group."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.pipeline.ports import Carried, QueuedQuote
from services.pipeline.score_then_record import ScoreThenRecord
from services.pipeline.sqs_handler import SqsBatchHandler
from services.queue import market_message
from services.queue.ports import DeadLetter
from tests.pipeline_fakes import FakeRecorder, FakeScorer, quote

EVENTS = Path(__file__).resolve().parents[1] / "events"


class Letters:
    def __init__(self) -> None:
        self.kept: list[DeadLetter] = []
        self.away = False

    def send_dead_letter(self, letter: DeadLetter) -> None:
        if self.away:
            raise DependencyUnavailableError("queue", "is away")
        self.kept.append(letter)


def event(*messages: tuple[str, str, str]) -> dict[str, Any]:
    """(message id, group, body) each."""
    return {
        "Records": [
            {
                "messageId": message_id,
                "body": body,
                "attributes": {"MessageGroupId": group},
                "messageAttributes": {},
                "eventSource": "aws:sqs",
            }
            for message_id, group, body in messages
        ]
    }


def body(i: int, symbol: str = "AAPL") -> str:
    return market_message.encode(quote(i, symbol)).body


def failed(response: dict[str, list[dict[str, str]]]) -> list[str]:
    return [item["itemIdentifier"] for item in response["batchItemFailures"]]


@pytest.fixture
def parts() -> tuple[FakeScorer, FakeRecorder, Letters, SqsBatchHandler]:
    scorer, recorder, letters = FakeScorer(), FakeRecorder(), Letters()
    return scorer, recorder, letters, SqsBatchHandler(ScoreThenRecord(scorer, recorder), letters, "market_queue.fifo")


async def test_a_good_batch_is_recorded_and_done(
    parts: tuple[FakeScorer, FakeRecorder, Letters, SqsBatchHandler],
) -> None:
    _, recorder, letters, handler = parts
    response = await handler(event(("1", "a", body(0)), ("2", "a", body(1)), ("3", "m", body(0, "MSFT"))))
    assert failed(response) == []
    assert len(recorder.recorded) == 3
    assert not letters.kept


async def test_poison_goes_to_the_dead_letters_and_neighbours_are_scored(
    parts: tuple[FakeScorer, FakeRecorder, Letters, SqsBatchHandler],
) -> None:
    _, recorder, letters, handler = parts
    response = await handler(event(("1", "a", body(0)), ("2", "a", "{"), ("3", "a", body(1))))
    assert failed(response) == []
    assert len(recorder.recorded) == 2
    (letter,) = letters.kept
    assert letter.body == "{"
    assert letter.group_id == "a"
    assert letter.reason


async def test_a_transient_failure_returns_the_rest_of_its_group(
    parts: tuple[FakeScorer, FakeRecorder, Letters, SqsBatchHandler],
) -> None:
    scorer, recorder, letters, handler = parts
    scorer.failures[quote(1).quote_id] = DependencyUnavailableError("scorer", "busy")
    response = await handler(
        event(
            ("1", "a", body(0)),
            ("2", "a", body(1)),
            ("3", "m", body(0, "MSFT")),
            ("4", "a", "poison behind a failure must wait its turn"),
            ("5", "a", body(2)),
        )
    )
    assert failed(response) == ["2", "4", "5"]
    assert [item.quote.symbol for item in recorder.recorded] == ["AAPL", "MSFT"]
    assert not letters.kept


@pytest.mark.parametrize("who", ["scorer", "gateway"])
async def test_everything_waits_when_a_service_is_away(
    parts: tuple[FakeScorer, FakeRecorder, Letters, SqsBatchHandler], who: str
) -> None:
    scorer, recorder, letters, handler = parts
    (scorer if who == "scorer" else recorder).away = True
    response = await handler(event(("1", "a", body(0)), ("2", "m", body(0, "MSFT"))))
    assert failed(response) == ["1", "2"]
    assert not letters.kept


async def test_a_dead_letter_that_cannot_be_kept_comes_again(
    parts: tuple[FakeScorer, FakeRecorder, Letters, SqsBatchHandler],
) -> None:
    _, recorder, letters, handler = parts
    letters.away = True
    response = await handler(event(("1", "a", "{"), ("2", "a", body(0)), ("3", "m", body(0, "MSFT"))))
    assert failed(response) == ["1", "2"]
    assert {item.quote.symbol for item in recorder.recorded} == {"AAPL", "MSFT"}


RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(EVENTS.glob("*.json"))}


@pytest.mark.parametrize("name", RECORDED)
async def test_the_old_producers_events(
    name: str, parts: tuple[FakeScorer, FakeRecorder, Letters, SqsBatchHandler]
) -> None:
    _, recorder, letters, handler = parts
    response = await handler(RECORDED[name])
    assert failed(response) == []
    count = len(RECORDED[name]["Records"])
    assert len(recorder.recorded) + len(letters.kept) == count
    if name.startswith("valid"):
        assert not letters.kept
    elif name.startswith("invalid"):
        assert not recorder.recorded
    else:
        assert letters.kept
        assert recorder.recorded


def traced(*traceparents: str) -> dict[str, Any]:
    given = event(*((f"m{i}", "g", body(i)) for i in range(len(traceparents))))
    for record, traceparent in zip(given["Records"], traceparents, strict=True):
        if traceparent:
            record["messageAttributes"] = {"traceparent": {"stringValue": traceparent, "dataType": "String"}}
    return given


FIRST, SECOND = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("traceparents", "parent"),
    [
        ((f"00-{FIRST}-b7ad6b7169203331-01",), FIRST),
        ((f"00-{FIRST}-b7ad6b7169203331-01", f"00-{FIRST}-b7ad6b7169203332-01"), FIRST),
        ((f"00-{FIRST}-b7ad6b7169203331-01", f"00-{SECOND}-b7ad6b7169203332-01"), None),
        ((f"00-{FIRST}-b7ad6b7169203331-01", ""), None),
        (("",), None),
        ((), None),
    ],
)
async def test_a_batch_is_within_the_trace_that_its_messages_share_and_linked_to_each(
    parts: tuple[FakeScorer, FakeRecorder, Letters, SqsBatchHandler],
    spans: InMemorySpanExporter,
    traceparents: tuple[str, ...],
    parent: str | None,
) -> None:
    await parts[3](traced(*traceparents), attributes={"faas.trigger": "pubsub"})
    (span,) = (span for span in spans.get_finished_spans() if span.name == "process market_queue.fifo")
    assert span.context is not None
    assert span.attributes is not None
    assert (span.parent and trace.format_trace_id(span.parent.trace_id)) == parent
    linked = {trace.format_trace_id(link.context.trace_id) for link in span.links}
    assert linked == {text[3:35] for text in traceparents if text}
    assert span.attributes["messaging.batch.message_count"] == len(traceparents)
    assert span.attributes["faas.trigger"] == "pubsub"
    assert span.attributes.get("messaging.message.id") == ("m0" if len(traceparents) == 1 else None)


async def test_out_of_time_the_rest_is_returned_and_poison_is_done(
    parts: tuple[FakeScorer, FakeRecorder, Letters, SqsBatchHandler],
) -> None:
    scorer, recorder, letters, handler = parts

    async def never(quotes: Any, cursors: Any) -> Any:
        await asyncio.Event().wait()

    scorer.score = never  # type: ignore[method-assign]
    given = event(("poison", "other", "{"), ("a", "AAPL", body(0)), ("b", "AAPL", body(1)))
    assert failed(await handler(given, seconds=0.05)) == ["a", "b"]
    assert [letter.body for letter in letters.kept] == ["{"]
    assert failed(await handler(given, seconds=-1.0)) == ["a", "b"], "no time at all: nothing is begun"
    assert recorder.recorded == []


async def test_what_somebody_must_mend_makes_everything_come_again() -> None:
    class Unusable:
        async def carry(self, messages: Sequence[QueuedQuote]) -> Sequence[Carried]:
            raise NotConfiguredError("the ledger", "LEDGER_TABLE")

    letters = Letters()
    response = await SqsBatchHandler(Unusable(), letters, "q")(event(("1", "a", body(0)), ("2", "b", "{")))
    assert failed(response) == ["1"]
    assert len(letters.kept) == 1
