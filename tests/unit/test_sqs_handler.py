"""The Lambda handler: partial batches, invalid and transient told apart, order within a group."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.domain.errors import DependencyUnavailableError
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
    return scorer, recorder, letters, SqsBatchHandler(scorer, recorder, letters, "market_queue.fifo")


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
