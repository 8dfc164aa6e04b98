"""A batch's way through attempts: what counts against it, what forgives, when a message is given up."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.dispatch.batch import (
    MAX_CRASHES,
    Ending,
    Entry,
    NewBatch,
    TaskState,
    enter,
    entry_from_json,
    entry_to_json,
    hopeless,
    parse_id,
    ready,
    select,
    settle,
)
from services.dispatch.task_environment import (
    MAX_OVERRIDE_CHARACTERS,
    client_token,
    container_overrides,
    task_environment,
)

NOW = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)
CRASH, PASSES = Ending(True, "exit code 137"), Ending(False, "gateway: is away")


def entry(messages: int = 8, **changes: Any) -> Entry:
    made = enter(NewBatch("d1", ("a",), messages, "00-trace", "k=v"), ("before",), NOW)
    return dataclasses.replace(made, state=TaskState.RUNNING, attempt=1, attempt_messages=messages, **changes)


def test_it_survives_json() -> None:
    made = entry(dead=(1, 2), not_before=NOW + timedelta(microseconds=1))
    assert entry_from_json(json.loads(json.dumps(entry_to_json(made)))) == made


def test_its_id_says_when_it_entered() -> None:
    assert parse_id(entry().id) == (NOW, "d1")
    assert parse_id("x") is None


def test_it_is_ready_behind_nobody_and_in_its_time() -> None:
    waiting = dataclasses.replace(entry(), state=TaskState.WAITING)
    assert ready(waiting, frozenset({"other"}), NOW)
    assert not ready(waiting, frozenset({"before"}), NOW)
    assert not ready(dataclasses.replace(waiting, not_before=NOW + timedelta(seconds=1)), frozenset(), NOW)
    assert not ready(entry(), frozenset(), NOW)


def test_all_settled_is_recorded() -> None:
    done = settle(entry(), [], [3], Ending(False, ""), NOW)
    assert (done.state, done.settled, done.dead, done.stop_time) == (TaskState.RECORDED, 8, (3,), NOW)


def test_what_may_pass_waits_longer_and_longer_and_counts_against_nobody() -> None:
    now, tried = NOW, entry()
    waits = []
    for _ in range(20):
        tried = settle(tried, range(8), (), PASSES, now)
        assert tried.not_before is not None
        waits.append((tried.not_before - now).total_seconds())
    assert (tried.crashes, tried.most, tried.failures) == (0, 0, 20)
    assert 0.25 <= waits[0] <= 0.5
    assert 30 <= waits[-1] <= 60
    assert not hopeless(dataclasses.replace(tried, attempt_messages=1, crashes=99), PASSES)


def test_crashes_halve_the_attempt_and_progress_doubles_it() -> None:
    tried = entry()
    for _ in range(MAX_CRASHES):
        tried = settle(tried, range(8), (), CRASH, NOW)
    assert (tried.most, tried.crashes) == (4, 0)
    assert select(tried, range(8)) == [0, 1, 2, 3]
    tried = settle(dataclasses.replace(tried, attempt_messages=4), [4, 5, 6, 7], (), PASSES, NOW)
    assert (tried.most, tried.failures, tried.not_before) == (0, 0, None)
    assert select(tried, [4, 5, 6, 7]) == [4, 5, 6, 7]


@given(messages=st.integers(1, 200), poison=st.sets(st.integers(0, 199), max_size=4))
def test_poison_is_isolated_and_everything_else_recorded(messages: int, poison: set[int]) -> None:
    poison = {i for i in poison if i < messages}
    tried, recorded, dead, attempts = entry(messages), set[int](), set[int](), 0
    while tried.open:
        missing = [i for i in range(messages) if i not in recorded | dead]
        chosen = select(tried, missing)
        tried = dataclasses.replace(tried, attempt_messages=len(chosen))
        attempts += 1
        crashed = bool(poison & set(chosen))
        given_up: list[int] = []
        if not crashed:
            recorded |= set(chosen)
        elif hopeless(tried, CRASH):
            given_up = chosen
        dead |= set(given_up)
        left = [i for i in range(messages) if i not in recorded | dead]
        tried = settle(tried, left, given_up, CRASH if crashed else PASSES, NOW)
    assert dead == poison
    assert recorded == set(range(messages)) - poison
    assert attempts <= 1 + 2 * MAX_CRASHES * (len(poison) + 1) * 10


def test_a_token_belongs_to_one_attempt_of_one_entry() -> None:
    first = entry(attempt_digest="m1")
    others = [
        dataclasses.replace(first, attempt=2),
        dataclasses.replace(first, attempt_digest="m2"),
        dataclasses.replace(first, id="another"),
    ]
    tokens = {client_token(each) for each in (first, first, *others)}
    assert len(tokens) == 4
    assert all(len(token) == 64 for token in tokens)


def test_the_environment_carries_the_batch_while_it_fits() -> None:
    small = task_environment(entry(), "s3://b/m.json", b"[1]", "scorer")
    assert small == {
        "CORRELATION_ID": f"{entry().id}.1",
        "BATCH_SIZE": "8",
        "PROCESSING_MODE": "LAMBDA_TRIGGERED",
        "TRACEPARENT": "00-trace",
        "TRACESTATE": "k=v",
        "BATCH_MARKET_DATA": "[1]",
    }
    room = MAX_OVERRIDE_CHARACTERS - len(json.dumps(container_overrides("scorer", small | {"BATCH_MARKET_DATA": ""})))
    assert "BATCH_MARKET_DATA" in task_environment(entry(), "u", b"x" * room, "scorer")
    large = task_environment(entry(), "s3://b/m.json", b"x" * (room + 1), "scorer")
    assert large["BATCH_MANIFEST_URI"] == "s3://b/m.json"
    assert "BATCH_MARKET_DATA" not in large
    quoted = task_environment(entry(), "u", b'"' * (room // 2 + 1), "scorer")
    assert "BATCH_MARKET_DATA" not in quoted, "quotation marks are two characters in ECS's count"
