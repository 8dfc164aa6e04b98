"""What only the DynamoDB store does, on AWS's own DynamoDB for developers."""

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta

import boto3
import pytest

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.gateway.dynamodb import DynamoDbStore
from services.gateway.dynamodb_items import quote_key
from services.gateway.main import create_table
from services.gateway.ports import AlertQuery, QuoteQuery
from services.runtime.dynamodb_table import DynamoDbTable
from tests.gateway_quotes import NOW, opening, scored, spike
from tests.servers.process import CREDENTIALS, REGION, Server

RETENTION = timedelta(days=7)


@pytest.fixture
def connect(dynamodb_local: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], DynamoDbTable]]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", dynamodb_local.url)
    monkeypatch.setenv("STORE_TABLE", f"tapewatch-{uuid.uuid4().hex[:12]}")
    name = f"tapewatch-{uuid.uuid4().hex[:12]}"
    opened: list[DynamoDbTable] = []

    def make() -> DynamoDbTable:
        opened.append(DynamoDbTable.connect(name, REGION))
        return opened[-1]

    yield make
    for table in opened:
        table.close()


@pytest.fixture
def table(connect: Callable[[], DynamoDbTable]) -> DynamoDbTable:
    made = connect()
    made.create()
    return made


def test_a_missing_table_is_one_sentence(connect: Callable[[], DynamoDbTable]) -> None:
    with pytest.raises(NotConfiguredError, match=rf"no table at tapewatch-\w+ in {REGION}.*STORE_TABLE.*AWS_REGION"):
        DynamoDbStore(connect())


def test_the_table_is_made_once(connect: Callable[[], DynamoDbTable], capsys: pytest.CaptureFixture[str]) -> None:
    assert [create_table(), create_table()] == [0, 0]
    assert "is there" in capsys.readouterr().out


def test_a_server_that_is_away_is_unavailable(table: DynamoDbTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:9")
    with pytest.raises(DependencyUnavailableError, match="Could not connect"):
        DynamoDbStore(DynamoDbTable.connect(table.name, REGION))


def test_more_quotes_than_a_transaction_takes(table: DynamoDbTable) -> None:
    store = DynamoDbStore(table)
    items = [scored(minute, symbol=f"S{minute % 7}") for minute in range(250)]
    assert store.put_scores(items[40:60], NOW) == [None] * 20
    results = store.put_scores(items, NOW)
    assert [i for i, existing in enumerate(results) if existing is not None] == list(range(40, 60))
    kept = store.quotes_after(0, 1_000)
    assert [r.sequence for r in kept] == list(range(1, 251))
    assert [r.scored for r in kept] == items[40:60] + items[:40] + items[60:]
    assert [r.sequence for r in store.quotes_after(89, 93)] == list(range(90, 183))
    assert len(store.list_quotes(QuoteQuery("live"), 1_000, None).items) == 250


def test_quotes_expire_and_detections_do_not(table: DynamoDbTable) -> None:
    now = NOW
    store = DynamoDbStore(table, RETENTION, clock=lambda: now)
    ordinary, detection = scored(0), spike(1)
    store.put_scores([ordinary], NOW)
    store.commit_detection(detection, opening(detection), NOW)
    assert len(store.list_quotes(QuoteQuery("live", "AAPL"), 10, None).items) == 2
    # DynamoDB deletes within days, so that what it still holds must not be seen.
    now = NOW + RETENTION
    assert store.get_quote(ordinary.quote.quote_id) is None
    assert store.get_quote(detection.quote.quote_id) is not None
    assert [r.scored for r in store.list_quotes(QuoteQuery("live", "AAPL"), 10, None).items] == [detection]
    assert store.last_quote() == 2, "the numbering goes on"


def test_quotes_that_expired_before_the_lake_had_them_are_an_error(table: DynamoDbTable) -> None:
    store = DynamoDbStore(table)
    store.put_scores([scored(0), scored(1)], NOW)
    boto3.client("dynamodb", region_name=REGION).delete_item(TableName=table.name, Key=quote_key(scored(0)))
    with pytest.raises(DependencyUnavailableError, match="STORE_RETENTION_DAYS"):
        store.quotes_after(0, 10)
    assert [r.scored for r in store.quotes_after(1, 10)] == [scored(1)]


def test_a_list_that_must_look_far_gives_short_pages(table: DynamoDbTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.dynamodb._MOST_LISTED", 3)
    store = DynamoDbStore(table)
    for symbol in ("MSFT", "A", "B", "C", "D"):
        store.commit_detection(spike(0, symbol=symbol), opening(spike(0, symbol=symbol)), NOW)
    query = AlertQuery(symbols=("MSFT",))
    first = store.list_alerts(query, 10, None)
    assert first.items == []
    assert first.next is not None
    second = store.list_alerts(query, 10, first.next)
    assert [alert.symbol for alert in second.items] == ["MSFT"]
    assert second.next is None
