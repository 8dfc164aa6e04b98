"""What every store adapter must do, whatever is behind it."""

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from services.domain.alert import AlertChangeKind, AlertState, Disposition, add_detection, open_alert, triage
from services.domain.errors import ConflictError
from services.domain.score import RecordedQuote, ScoredQuote
from services.domain.typology import Typology
from services.gateway.dax import DaxDetections
from services.gateway.dynamodb import DynamoDbStore
from services.gateway.ports import (
    AlertQuery,
    AlertWrite,
    Archived,
    DetectionQuery,
    Page,
    Position,
    QuoteQuery,
    Store,
)
from services.gateway.sqlite import SqliteStore
from services.runtime.dynamodb_table import DynamoDbTable
from tests.gateway_quotes import NOW, START, adding, audit, opening, scored, spike
from tests.servers.dax_node import DaxNode
from tests.servers.process import CREDENTIALS, REGION

MakeStore = Callable[[], Store]
"""Opens the same data once more, as another gateway does."""

LATER = NOW + timedelta(minutes=1)


@pytest.fixture(params=["sqlite", "dynamodb_local", "ministack", "dynamodb_local through DAX"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeStore]:
    opened: list[Store] = []
    table = f"tapewatch-{uuid.uuid4().hex[:12]}"
    server, _, cached = request.param.partition(" through ")
    if server != "sqlite":
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", request.getfixturevalue(server).url)
        DynamoDbTable.connect(table, REGION).create()
    monkeypatch.setattr("services.gateway.dax._ANSWER_SECONDS", 30.0)  # a busy machine is no absent cluster
    node = DaxNode().start() if cached else None

    def make() -> Store:
        if server == "sqlite":
            opened.append(SqliteStore(tmp_path / "store.db"))
        else:
            cache = DaxDetections.connect(node.endpoint, table, REGION) if node else None
            if cache:
                cache.check()
            opened.append(DynamoDbStore(DynamoDbTable.connect(table, REGION), cache=cache))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
    if node:
        node.stop()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


def detect(store: Store, item: ScoredQuote) -> None:
    """Record a detection as the first of an alert, or in the latest one."""
    latest = store.latest_alert(item.quote.series, item.score.typology)
    write = opening(item) if latest is None else adding(item, latest)
    assert store.commit_detection(item, write, NOW) is None


def every(read: Callable[[int, Position | None], Page[RecordedQuote]], limit: int) -> list[ScoredQuote]:
    found: list[ScoredQuote] = []
    position: Position | None = None
    while True:
        page = read(limit, position)
        assert len(page.items) <= limit
        found += [recorded.scored for recorded in page.items]
        if page.next is None:
            return found
        position = page.next


def test_kept_quote_is_given_back_whole(store: Store) -> None:
    item = scored(0)
    assert store.put_scores([item], NOW) == [None]
    assert store.get_quote(item.quote.quote_id) == RecordedQuote(item, NOW, sequence=1)


def test_kept_detection_is_given_back_whole(store: Store) -> None:
    item = spike(0)
    write = opening(item)
    assert store.commit_detection(item, write, NOW) is None
    recorded = store.get_quote(item.quote.quote_id)
    assert recorded == RecordedQuote(item, NOW, sequence=1, alert_id=write.alert.alert_id)
    assert store.get_alert(write.alert.alert_id) == write.alert
    (change,) = store.changes_after(0, 10)
    assert (change.sequence, change.kind, change.alert) == (1, AlertChangeKind.OPENED, write.alert)
    assert (change.change_time, change.quote_id) == (NOW, item.quote.quote_id)
    assert store.list_alert_events(write.alert.alert_id, 10, None).items == [
        dataclasses.replace(write.event, sequence=1)
    ]


def test_detection_is_found_by_key_as_soon_as_it_is_there(store: Store) -> None:
    ordinary, detection = scored(0), spike(1)
    write = opening(detection)
    assert store.get_detection(detection.quote.quote_id) is None
    store.put_scores([ordinary], NOW)
    store.commit_detection(detection, write, NOW)
    recorded = RecordedQuote(detection, NOW, sequence=2, alert_id=write.alert.alert_id)
    assert [store.get_detection(detection.quote.quote_id) for _ in range(3)] == [recorded] * 3
    assert store.get_detection(ordinary.quote.quote_id) is None
    assert store.get_detection(detection.quote.quote_id.replace("Z", "+00:00")) is None
    assert store.get_detection("x") is None


def test_detection_stays_what_it_was_whatever_comes_after(make_store: MakeStore) -> None:
    store, other = make_store(), make_store()
    item = spike(0)
    write = opening(item)
    store.commit_detection(item, write, NOW)
    first = store.get_detection(item.quote.quote_id)
    assert first is not None
    differing = spike(0, 0.99)
    assert other.commit_detection(differing, opening(differing), LATER) is not None
    seen = triage(write.alert, LATER, comment="", state=AlertState.ACKNOWLEDGED)
    other.commit_triage(AlertWrite(seen, write.alert, audit(seen, write.alert, AlertChangeKind.TRIAGED, "ann")), LATER)
    for each in (store, other):
        again = each.get_detection(item.quote.quote_id)
        assert again is not None
        assert dataclasses.replace(again, record_count=1, mismatch_count=0) == first
        counted = each.get_quote(item.quote.quote_id)
        assert counted is not None, "strongly consistent"
        assert (counted.record_count, counted.mismatch_count) == (2, 1)
        alert = each.get_alert(write.alert.alert_id)
        assert alert is not None
        assert alert.etag == seen.etag


@pytest.mark.parametrize(
    "quote_id",
    ["", "x", "live/test/AAPL/60s/2024-03-14T14:30:00Z/1", "live/test/AAPL/60s/yesterday/0", "a/b/c/ds/e/f", "/////"],
)
def test_unknown_quote_is_none(store: Store, quote_id: str) -> None:
    store.put_scores([scored(0)], NOW)
    assert store.get_quote(quote_id) is None


def test_quote_is_found_by_its_own_id_only(store: Store) -> None:
    item = scored(0)
    store.put_scores([item], NOW)
    assert store.get_quote(item.quote.quote_id.replace("Z", "+00:00")) is None
    assert store.get_quote(item.quote.quote_id.replace("/60s/", "/060s/")) is None


def test_first_score_stays_and_repetitions_are_counted(store: Store) -> None:
    first, again, other = scored(0, 0.2), scored(0, 0.2 + 1e-7), scored(0, 0.3)
    store.put_scores([first], NOW)
    (existing,) = store.put_scores([again], LATER)
    assert existing is not None
    assert (existing.scored, existing.record_count, existing.mismatch_count) == (first, 2, 0)
    (existing,) = store.put_scores([other], LATER)
    assert existing is not None
    assert (existing.scored, existing.record_count, existing.mismatch_count) == (first, 3, 1)
    assert store.get_quote(first.quote.quote_id) == RecordedQuote(first, NOW, 1, record_count=3, mismatch_count=1)
    assert store.last_quote() == 1


def test_a_check_of_a_store_that_is_there_changes_nothing(store: Store) -> None:
    store.check()
    assert (store.last_change(), store.last_quote()) == (0, 0)


def test_repeated_detection_changes_nothing_but_the_count(store: Store) -> None:
    item = spike(0)
    detect(store, item)
    alert = store.latest_alert(item.quote.series, Typology.PRICE_SPIKE)
    assert alert is not None
    existing = store.commit_detection(item, adding(item, alert), LATER)
    assert existing is not None
    assert (existing.record_count, existing.alert_id) == (2, alert.alert_id)
    assert store.get_alert(alert.alert_id) == alert
    assert (store.last_change(), store.last_quote()) == (1, 1)


def test_repeated_detection_needs_no_current_alert(store: Store) -> None:
    item = spike(0)
    detect(store, item)
    detect(store, spike(1))
    stale = opening(item)
    existing = store.commit_detection(item, stale, LATER)
    assert existing is not None
    assert existing.record_count == 2
    assert store.last_change() == 2


def test_detection_that_was_no_detection_before_is_a_mismatch(store: Store) -> None:
    store.put_scores([scored(0, 0.79)], NOW)
    item = spike(0, 0.81)
    existing = store.commit_detection(item, opening(item), LATER)
    assert existing is not None
    assert (existing.mismatch_count, existing.alert_id) == (1, "")
    assert store.last_change() == 0


def test_sequences_have_no_gaps(store: Store) -> None:
    store.put_scores([scored(0), scored(1)], NOW)
    store.put_scores([scored(1), scored(2)], NOW)
    lost = spike(3)
    wrong = opening(spike(9), None)
    detect(store, spike(4))
    with pytest.raises(ConflictError):
        store.commit_detection(lost, AlertWrite(wrong.alert, None, wrong.event), NOW)
    detect(store, lost)
    store.put_scores([scored(5)], NOW)
    assert [r.sequence for r in store.quotes_after(0, 10)] == [1, 2, 3, 4, 5, 6]
    assert [c.sequence for c in store.changes_after(0, 10)] == [1, 2]


def test_conflicting_detection_writes_nothing(store: Store) -> None:
    first = spike(0)
    detect(store, first)
    seen = store.latest_alert(first.quote.series, Typology.PRICE_SPIKE)
    assert seen is not None
    detect(store, spike(1))
    late = spike(2)
    for write in (adding(late, seen), opening(late, None), opening(late, seen)):
        with pytest.raises(ConflictError):
            store.commit_detection(late, write, NOW)
    assert store.get_quote(late.quote.quote_id) is None
    assert store.cursors([late.quote.series]) == [START + timedelta(minutes=1)]
    assert (store.last_quote(), store.last_change()) == (2, 2)
    assert len(store.list_alerts(AlertQuery(), 10, None).items) == 1


def test_latest_alert_is_by_event_time_and_typology(store: Store) -> None:
    newer = spike(100)
    detect(store, newer)
    latest = store.latest_alert(newer.quote.series, Typology.PRICE_SPIKE)
    older = spike(0)
    assert store.commit_detection(older, opening(older, latest), NOW) is None
    assert store.latest_alert(newer.quote.series, Typology.PRICE_SPIKE) == latest
    assert store.latest_alert(newer.quote.series, Typology.RAMPING) is None
    assert store.latest_alert(spike(0, symbol="MSFT").quote.series, Typology.PRICE_SPIKE) is None
    assert store.latest_alert(spike(0, tape="replay-1").quote.series, Typology.PRICE_SPIKE) is None


def test_of_alerts_with_one_time_the_one_opened_last_is_the_latest(store: Store) -> None:
    first, revised = spike(0), scored(0, 0.95, revision=1, typology=Typology.PRICE_SPIKE)
    detect(store, first)
    opened = store.latest_alert(first.quote.series, Typology.PRICE_SPIKE)
    assert opened is not None
    closed = triage(opened, LATER, comment="no", state=AlertState.CLOSED, disposition=Disposition.DISMISSED)
    store.commit_triage(AlertWrite(closed, opened, audit(closed, opened, AlertChangeKind.TRIAGED, "ann")), LATER)
    assert store.commit_detection(revised, opening(revised, closed), LATER) is None
    latest = store.latest_alert(first.quote.series, Typology.PRICE_SPIKE)
    assert latest is not None
    assert latest.alert_id == open_alert(revised, NOW).alert_id


def test_triage_of_a_stale_alert_writes_nothing(store: Store) -> None:
    item = spike(0)
    detect(store, item)
    seen = store.latest_alert(item.quote.series, Typology.PRICE_SPIKE)
    assert seen is not None
    detect(store, spike(1))
    acknowledged = triage(seen, LATER, comment="", state=AlertState.ACKNOWLEDGED)
    with pytest.raises(ConflictError):
        store.commit_triage(AlertWrite(acknowledged, seen, audit(acknowledged, seen, AlertChangeKind.TRIAGED)), LATER)
    current = store.get_alert(seen.alert_id)
    assert current is not None
    assert (current.state, current.detection_count) == (AlertState.NEW, 2)
    assert store.last_change() == 2


def test_audit_trail_in_order_and_in_pages(store: Store) -> None:
    item = spike(0)
    detect(store, item)
    detect(store, spike(0, symbol="MSFT"))
    alert = store.latest_alert(item.quote.series, Typology.PRICE_SPIKE)
    assert alert is not None
    for i, state in enumerate((AlertState.ACKNOWLEDGED, AlertState.INVESTIGATING)):
        following = triage(alert, LATER, comment="", state=state, assignee=f"person {i}")
        event = audit(following, alert, AlertChangeKind.TRIAGED, "ann")
        store.commit_triage(AlertWrite(following, alert, event), LATER)
        alert = following
    first = store.list_alert_events(alert.alert_id, 2, None)
    assert first.next is not None
    second = store.list_alert_events(alert.alert_id, 2, first.next)
    assert second.next is None
    events = [*first.items, *second.items]
    assert [e.sequence for e in events] == [1, 3, 4]
    assert [(e.from_state, e.to_state) for e in events] == [
        (None, AlertState.NEW),
        (AlertState.NEW, AlertState.ACKNOWLEDGED),
        (AlertState.ACKNOWLEDGED, AlertState.INVESTIGATING),
    ]
    assert [e.assignee for e in events] == ["", "person 0", "person 1"]
    assert store.list_alert_events("al_unknown", 10, None) == Page([], None)


def test_cursor_is_the_newest_event_time_of_the_series(store: Store) -> None:
    items = [scored(5), scored(3), scored(9, symbol="MSFT"), scored(7, tape="canary"), scored(8, source="other")]
    store.put_scores(items, NOW)
    unknown = scored(0, symbol="IBM").quote.series
    series = [item.quote.series for item in items]
    minutes = [5, 5, 9, 7, 8]
    assert store.cursors([*series, unknown]) == [*(START + timedelta(minutes=m) for m in minutes), None]
    detect(store, spike(11))
    assert store.cursors(series[:1]) == [START + timedelta(minutes=11)]
    store.put_scores([scored(4)], NOW)
    assert store.cursors(series[:1]) == [START + timedelta(minutes=11)], "a late quote does not turn it back"


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("descending", [False, True])
def test_quotes_of_a_symbol_in_order_of_time(store: Store, limit: int, descending: bool) -> None:
    items = [scored(minute) for minute in range(6)] + [scored(2, revision=10), scored(2, revision=9)]
    store.put_scores([items[i] for i in (7, 3, 0, 5, 1, 6, 4, 2)], NOW)
    store.put_scores([scored(1, symbol="MSFT"), scored(1, tape="canary")], NOW)
    expected = sorted(items, key=lambda i: (i.quote.event_time, i.quote.revision), reverse=descending)
    query = QuoteQuery("live", "AAPL", descending=descending)
    assert every(lambda n, at: store.list_quotes(query, n, at), limit) == expected


@pytest.mark.parametrize("descending", [False, True])
def test_quotes_between_two_times(store: Store, descending: bool) -> None:
    store.put_scores([scored(minute) for minute in range(6)], NOW)
    start, end = START + timedelta(minutes=2), START + timedelta(minutes=4)
    query = QuoteQuery("live", "AAPL", "test", 60, start, end, descending)
    found = every(lambda n, at: store.list_quotes(query, n, at), 1)
    assert found == [scored(m) for m in ((3, 2) if descending else (2, 3))]


def test_quotes_of_one_source_and_interval(store: Store) -> None:
    store.put_scores([scored(0), scored(0, source="other"), scored(1, source="other")], NOW)
    query = QuoteQuery("live", "AAPL", source="other")
    assert every(lambda n, at: store.list_quotes(query, n, at), 1) == [
        scored(0, source="other"),
        scored(1, source="other"),
    ]
    assert store.list_quotes(QuoteQuery("live", "AAPL", interval_seconds=86_400), 10, None) == Page([], None)
    assert len(store.list_quotes(QuoteQuery("live", "AAPL", interval_seconds=60), 10, None).items) == 3


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_quotes_of_a_tape_by_symbol(store: Store, limit: int) -> None:
    items = [scored(m, symbol=s, tape="replay-1") for s in ("AAPL", "IBM", "MSFT") for m in range(2)]
    store.put_scores([*reversed(items), scored(0)], NOW)
    assert every(lambda n, at: store.list_quotes(QuoteQuery("replay-1"), n, at), limit) == items


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_detections_newest_first(store: Store, limit: int) -> None:
    ramp = scored(2, 0.9, typology=Typology.RAMPING)
    items = [spike(0), ramp, spike(1, symbol="MSFT"), spike(3, tape="canary"), spike(40)]
    for item in items:
        detect(store, item)
    store.put_scores([scored(5)], NOW)

    def found(query: DetectionQuery) -> list[ScoredQuote]:
        return every(lambda n, at: store.list_detections(query, n, at), limit)

    assert found(DetectionQuery()) == [items[4], items[1], items[2], items[0]], "canaries by name only"
    assert found(DetectionQuery(tape="canary")) == [items[3]]
    (canary,) = store.list_alerts(AlertQuery(tape="canary"), 2, None).items
    assert found(DetectionQuery(alert_id=canary.alert_id)) == [items[3]]
    assert found(DetectionQuery(symbol="MSFT")) == [items[2]]
    assert found(DetectionQuery(typology=Typology.RAMPING)) == [ramp]
    span = DetectionQuery(start_time=START + timedelta(minutes=1), end_time=START + timedelta(minutes=3))
    assert found(span) == [ramp, items[2]]
    alert = store.latest_alert(items[0].quote.series, Typology.PRICE_SPIKE)
    assert alert is not None
    assert found(DetectionQuery(alert_id=alert.alert_id)) == [items[4], items[0]]
    assert found(DetectionQuery(alert_id="al_unknown")) == []


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_alerts_newest_change_first(store: Store, limit: int) -> None:
    for item in (
        spike(0, 0.85),
        spike(0, 0.95, symbol="MSFT"),
        scored(0, 0.9, symbol="IBM", typology=Typology.RAMPING),
        spike(0, 0.9, tape="canary"),
        spike(1, 0.86),
    ):
        detect(store, item)
    ibm = store.latest_alert(scored(0, symbol="IBM").quote.series, Typology.RAMPING)
    assert ibm is not None
    seen = triage(ibm, LATER, comment="", state=AlertState.ACKNOWLEDGED)
    store.commit_triage(AlertWrite(seen, ibm, audit(seen, ibm, AlertChangeKind.TRIAGED)), LATER)

    def symbols(**query: object) -> list[str]:
        found: list[str] = []
        position: Position | None = None
        while True:
            page = store.list_alerts(AlertQuery(**query), limit, position)  # type: ignore[arg-type]
            found += [f"{alert.symbol} {alert.tape}" for alert in page.items]
            position = page.next
            if position is None:
                return found

    assert symbols() == ["IBM live", "AAPL live", "MSFT live"], "canaries by name only"
    assert symbols(tape="canary") == ["AAPL canary"]
    assert symbols(tape="live") == ["IBM live", "AAPL live", "MSFT live"]
    assert symbols(symbols=("MSFT", "IBM")) == ["IBM live", "MSFT live"]
    assert symbols(typologies=(Typology.RAMPING,)) == ["IBM live"]
    assert symbols(states=(AlertState.NEW,)) == ["AAPL live", "MSFT live"]
    assert symbols(min_peak_score=0.9) == ["IBM live", "MSFT live"]
    assert symbols(tape="live", states=(AlertState.ACKNOWLEDGED, AlertState.CLOSED)) == ["IBM live"]


def test_change_log_from_any_place(store: Store) -> None:
    for minute in range(5):
        detect(store, spike(minute))
    assert [c.sequence for c in store.changes_after(2, 2)] == [3, 4]
    assert [c.alert.detection_count for c in store.changes_after(0, 10)] == [1, 2, 3, 4, 5]
    assert store.changes_after(5, 10) == []
    assert store.last_change() == 5


def test_another_opening_sees_the_same_store(make_store: MakeStore) -> None:
    first, second = make_store(), make_store()
    assert first.store_id == second.store_id
    first.put_scores([scored(0)], NOW)
    assert second.get_quote(scored(0).quote.quote_id) is not None
    detect(second, spike(1))
    assert first.last_change() == 1
    first.close()
    third = make_store()
    assert (third.store_id, third.last_quote()) == (second.store_id, 2)


def test_what_was_written_does_not_follow_the_callers_list(store: Store) -> None:
    items = [scored(0)]
    store.put_scores(items, NOW)
    items[0] = scored(1)
    assert [r.scored for r in store.quotes_after(0, 10)] == [scored(0)]
    page = store.list_quotes(QuoteQuery("live"), 10, None)
    page.items.clear()
    assert len(store.list_quotes(QuoteQuery("live"), 10, None).items) == 1


def test_only_one_of_two_writers_opens_the_alert(make_store: MakeStore) -> None:
    stores = [make_store() for _ in range(4)]
    items = [spike(minute) for minute in range(4)]

    def attempt(i: int) -> bool:
        try:
            return stores[i].commit_detection(items[i], opening(items[i]), NOW) is None
        except ConflictError:
            return False

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(attempt, range(4)))
    assert won.count(True) == 1
    assert len(stores[0].list_alerts(AlertQuery(), 10, None).items) == 1
    assert stores[0].last_quote() == 1


def test_writers_racing_on_one_alert_count_every_detection_once(make_store: MakeStore) -> None:
    stores = [make_store(), make_store()]
    per_writer = 15

    def write(number: int) -> int:
        conflicts = 0
        for minute in range(per_writer):
            item = spike(minute * 2 + number)
            while True:
                latest = stores[number].latest_alert(item.quote.series, Typology.PRICE_SPIKE)
                try:
                    stores[number].commit_detection(item, adding(item, latest) if latest else opening(item), NOW)
                    break
                except ConflictError:
                    conflicts += 1
        return conflicts

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    (alert,) = stores[0].list_alerts(AlertQuery(), 10, None).items
    assert alert.detection_count == 2 * per_writer
    assert [c.sequence for c in stores[1].changes_after(0, 100)] == list(range(1, 2 * per_writer + 1))
    assert [r.sequence for r in stores[1].quotes_after(0, 100)] == list(range(1, 2 * per_writer + 1))
    assert alert.version == 2 * per_writer


def test_racing_writers_number_without_gaps_and_readers_see_prefixes(make_store: MakeStore) -> None:
    writers, reader = [make_store() for _ in range(3)], make_store()
    batches = 10

    def write(number: int) -> None:
        for batch in range(batches):
            writers[number].put_scores([scored(batch * 5 + i, symbol=f"S{number}") for i in range(5)], NOW)

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(write, number) for number in range(3)]
        while not all(future.done() for future in futures):
            sequences = [r.sequence for r in reader.quotes_after(0, 1_000)]
            assert sequences == list(range(1, len(sequences) + 1))
        for future in futures:
            future.result()
    assert [r.sequence for r in reader.quotes_after(0, 1_000)] == list(range(1, 3 * batches * 5 + 1))


def test_one_quote_from_many_threads_is_kept_once(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: store.put_scores([scored(0)], NOW)[0], range(24)))
    assert results.count(None) == 1
    recorded = store.get_quote(scored(0).quote.quote_id)
    assert recorded is not None
    assert (recorded.record_count, recorded.mismatch_count) == (24, 0)


def test_progress_of_the_lake(store: Store) -> None:
    assert store.archived("quotes") == Archived(0, None)
    store.begin_part("quotes", 0, 10)
    assert store.archived("quotes") == Archived(0, 10)
    assert store.archived("changes") == Archived(0, None)
    with pytest.raises(ConflictError):
        store.begin_part("quotes", 0, 7)
    store.end_part("quotes", 10)
    assert store.archived("quotes") == Archived(10, None)
    with pytest.raises(ConflictError):
        store.begin_part("quotes", 0, 10)
    store.begin_part("quotes", 10, 12)
    store.end_part("quotes", 10)
    assert store.archived("quotes") == Archived(10, 12), "a straggler's end of an earlier part changes nothing"


def test_closing_twice_is_harmless(make_store: MakeStore) -> None:
    store = make_store()
    store.put_scores([scored(0)], NOW)
    store.last_quote()
    store.close()
    store.close()


def test_add_detection_keeps_peak_through_the_store(store: Store) -> None:
    for minute, ensemble in enumerate((0.9, 0.99, 0.85)):
        detect(store, spike(minute, ensemble))
    alert = store.latest_alert(spike(0).quote.series, Typology.PRICE_SPIKE)
    expected = add_detection(add_detection(open_alert(spike(0), NOW), spike(1, 0.99), NOW), spike(2, 0.85), NOW)
    assert alert == expected
