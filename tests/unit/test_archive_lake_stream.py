import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.archive import lake, lake_stream, location
from services.archive.lake_stream import LakeStream
from services.domain.errors import InvalidRequestError
from services.domain.quote import Quote
from services.domain.score import RecordedQuote, Score, ScoredQuote
from services.domain.typology import Typology

START = datetime(2026, 11, 20, 14, 30, tzinfo=UTC)
SYMBOLS = ("AAPL", "IBM", "MSFT")


def recorded(sequence: int, quote: Quote) -> RecordedQuote:
    score = Score(quote.quote_id, 0.5, 0.9, False, "1", "abc", START, typology=Typology.RAMPING, history_quotes=60)
    return RecordedQuote(ScoredQuote(quote, score), START, sequence, alert_id="")


def write(root: Path, items: list[RecordedQuote]) -> None:
    for path, table in lake.parts(items).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / path, row_group_size=64)


@pytest.fixture
def tangled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parts that overlap in time, with revisions, two sources and intervals, twins, another tape; slices are small."""
    rng = random.Random(7)
    quotes = [
        Quote(
            symbol=rng.choice(SYMBOLS),
            event_time=START + timedelta(seconds=20 * rng.randrange(150)),
            open=10.0,
            high=12.0,
            low=9.0,
            close=10.0 + i % 7 / 7,
            volume=float(i),
            interval_seconds=rng.choice((60, 300)),
            tape="live" if i % 10 else "run-1",
            source=rng.choice(("yahoo", "grpc")),
            revision=rng.choice((0, 0, 1)),
            trades=i if i % 3 else None,
            ingest_time=START,
        )
        for i in range(900)
    ]
    items = [recorded(i, quote) for i, quote in enumerate(quotes)]
    items += [
        recorded(2_000 + i, replace(quote, volume=-1.0)) for i, quote in enumerate(quotes[:100])
    ]  # never the first
    for at in range(0, len(items), 250):
        write(tmp_path, items[max(0, at - 20) : at + 250])  # a writer that was killed writes rows again
    monkeypatch.setattr(lake_stream, "SLICE_ROWS", 100)
    return tmp_path


def test_the_order_is_that_of_the_lake_read_at_once_whatever_the_slices(tangled: Path) -> None:
    expected = lake.read_quotes(str(tangled))
    stream = LakeStream(str(tangled))
    assert stream.total == len(expected) < 900
    assert list(stream.quotes()) == expected
    assert [q.volume for q in stream.quotes()] == [q.volume for q in expected]
    assert min(q.volume for q in stream.quotes()) >= 0.0
    assert list(LakeStream(str(tangled), "run-1").quotes()) == lake.read_quotes(str(tangled), "run-1")
    assert list(LakeStream(f"{tangled}#run-1").quotes()) == lake.read_quotes(str(tangled), "run-1")


def test_a_replay_goes_on_at_every_row_where_it_stopped(tangled: Path) -> None:
    expected = lake.read_quotes(str(tangled))
    stream = LakeStream(str(tangled))
    for row in (0, 1, 99, 100, 101, 400, len(expected) - 1, len(expected), len(expected) + 5):
        assert list(stream.quotes(row)) == expected[row:]


def test_a_time_range_and_symbols_take_what_lies_in_them(tangled: Path) -> None:
    start, end = START + timedelta(minutes=20, seconds=20), START + timedelta(minutes=40, seconds=40)
    expected = [q for q in lake.read_quotes(str(tangled)) if start <= q.event_time < end and q.symbol != "IBM"]
    stream = LakeStream(str(tangled), symbols=["MSFT", "AAPL"], start=start, end=end)
    assert {start, end - timedelta(seconds=20)} <= {q.event_time for q in expected}
    assert (stream.total, list(stream.quotes()), list(stream.quotes(50))) == (len(expected), expected, expected[50:])
    assert stream.symbols == set(SYMBOLS)


def test_a_range_without_quotes_is_said(tangled: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(InvalidRequestError, match=r"holds no quotes from 2027-01-01T00:00:00Z$"):
        location.quotes(str(tangled), tape="again", start=datetime(2027, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidRequestError, match="does not hold TSLA"):
        location.quotes(str(tangled), tape="again", symbols=["TSLA"])
    bars = tmp_path_factory.mktemp("bars") / "bars.csv"
    lines = [f"{s},2024-01-02T14:{m}:00Z,1,1,1,1,{m}" for s in "AB" for m in range(30, 40)]
    bars.write_text("\n".join(["symbol,timestamp,open,high,low,close,volume", *lines]) + "\n")
    day = datetime(2024, 1, 2, 14, tzinfo=UTC)
    total, quotes = location.quotes(
        str(bars), tape="again", start=day.replace(minute=33), end=day.replace(minute=36), first_row=1
    )
    assert total == 6
    assert [(q.symbol, q.volume) for q in quotes] == [("B", 33), ("A", 34), ("B", 34), ("A", 35), ("B", 35)]
    with pytest.raises(InvalidRequestError, match=r"holds no quotes before 2024-01-02T14:00:00Z$"):
        location.quotes(str(bars), tape="again", end=day)


def test_a_part_that_goes_while_it_is_played_is_named(tangled: Path) -> None:
    quotes: Iterator[Quote] = LakeStream(str(tangled)).quotes()
    next(quotes)
    for part in tangled.rglob("*.parquet"):
        part.unlink()
    with pytest.raises(InvalidRequestError, match=r"part-\d+-\d+\.parquet is not a part of a lake"):
        list(quotes)


def test_a_part_without_a_column_that_is_needed_is_named_before_anything_is_played(tangled: Path) -> None:
    part = max(tangled.rglob("*.parquet"))
    pq.write_table(pq.ParquetFile(part).read().drop_columns(["close"]), part)
    with pytest.raises(InvalidRequestError, match=f"{part.name} is not a part of a lake: 'close'"):
        LakeStream(str(tangled))


_PLAY = """
import resource, sys
from services.archive import location
location.quotes(sys.argv[2], tape="again")  # imports, and what Arrow takes once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total, quotes = location.quotes(sys.argv[1], tape="again")
played = sum(1 for _ in quotes)
assert played == total, (played, total)
print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_does_not_grow_with_the_lake(tmp_path: Path) -> None:
    quote = Quote("AAPL", START, 10.0, 12.0, 9.0, 11.0, 5.0, tape="live", source="test", ingest_time=START)
    (small := tmp_path / "small").mkdir()
    write(small, [recorded(0, quote)])
    rows = lake.to_table([recorded(0, quote)]).take(pa.array([0] * 10_000))
    for part in range(10):  # 100,000 quotes, of which 4 KB each would be 400 MB
        times = [START + timedelta(minutes=part * 10_000 + i) for i in range(10_000)]
        ids = [replace(quote, event_time=moment).quote_id for moment in times]
        for name, column in (
            ("event_time", pa.array(times, rows.schema.field("event_time").type)),
            ("quote_id", pa.array(ids)),
            ("sequence", pa.array(range(part * 10_000, (part + 1) * 10_000), pa.int64())),
        ):
            rows = rows.set_column(rows.schema.names.index(name), lake.SCHEMA.field(name), column)
        path = tmp_path / "large" / lake.part_path("2026-11-20", part * 10_000, (part + 1) * 10_000 - 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path)
    done = subprocess.run(
        [sys.executable, "-c", _PLAY, str(tmp_path / "large"), str(small)], capture_output=True, text=True, check=True
    )
    total, grown = map(int, done.stdout.split())
    assert total == 100_000
    assert grown < 150e6, f"{grown / 1e6:.0f} MB"
