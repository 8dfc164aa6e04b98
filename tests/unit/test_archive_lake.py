import random
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.archive import lake, location
from services.archive.filesystem import explain
from services.archive.problems import Problem
from services.domain.errors import InvalidRequestError
from services.domain.quote import Quote
from services.domain.score import Quality, Reason, RecordedQuote, Score, ScoredQuote
from services.domain.typology import Typology

START = datetime(2026, 11, 20, 14, 30, tzinfo=UTC)


def recorded(sequence: int, *, symbol: str = "AAPL", minute: int | None = None, **fields: object) -> RecordedQuote:
    quote = Quote(
        symbol=symbol,
        event_time=START + timedelta(minutes=sequence if minute is None else minute),
        open=10.0,
        high=12.0,
        low=9.0,
        close=11.0 + sequence / 7,
        volume=100.5,
        source="test",
    )
    quote = replace(quote, **fields)  # type: ignore[arg-type]
    score = Score(
        quote_id=quote.quote_id,
        ensemble=0.97,
        threshold=0.9,
        detection=True,
        model_version="1",
        feature_hash="abc",
        score_time=START,
        autoencoder_percentile=0.5,
        typology=Typology.RAMPING,
        typology_confidence=0.8,
        reasons=(Reason("return_z", 5.0, -2.0, 2.0, 0.3, "price change"),),
        quality=(Quality.PARTIAL_MODEL, Quality.UNADJUSTED),
        history_quotes=60,
    )
    return RecordedQuote(ScoredQuote(quote, score), START + timedelta(days=sequence // 100), sequence, alert_id="al_1")


def write(root: Path, items: list[RecordedQuote]) -> None:
    for path, table in lake.parts(items).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / path)


def test_rows_are_sorted_by_symbol_then_event_time() -> None:
    items = [recorded(i, symbol=symbol) for i, symbol in enumerate(["MSFT", "AAPL", "IBM", "AAPL", "MSFT"])]
    random.Random(1).shuffle(items)
    table = lake.to_table(items)
    assert table.schema == lake.SCHEMA
    assert table["symbol"].to_pylist() == ["AAPL", "AAPL", "IBM", "MSFT", "MSFT"]
    assert table["sequence"].to_pylist() == [1, 3, 2, 0, 4]


def test_every_field_is_kept() -> None:
    item = recorded(
        7,
        previous_close=9.5,
        currency="USD",
        trades=12,
        buy_volume=50.25,
        split_ratio=2.0,
        benchmark_return=-0.01,
        benchmark_volume_ratio=1.5,
        peer_return=0.02,
        peer_volume_ratio=0.75,
        ingest_time=START,
        batch_id="b",
        traceparent="00-1-2-01",
        revision=3,
    )
    (row,) = lake.to_table([item]).to_pylist()
    assert row["quote_id"] == item.scored.quote.quote_id
    assert row["typology"] == "RAMPING"
    assert row["quality"] == ["PARTIAL_MODEL", "UNADJUSTED"]
    assert row["reasons"][0]["text"] == "price change"
    assert row["autoencoder_percentile"] == 0.5
    assert row["classifier_probability"] is None
    assert (row["sequence"], row["record_time"], row["alert_id"]) == (7, item.record_time, "al_1")
    assert row["close"] == item.scored.quote.close


def test_quotes_come_back_as_they_were(tmp_path: Path) -> None:
    items = [recorded(i, symbol=symbol) for i, symbol in enumerate(["MSFT", "AAPL"] * 20)]
    items.append(recorded(40, revision=1, minute=3, previous_close=1.5, trades=3))
    write(tmp_path, items)
    expected = sorted((i.scored.quote for i in items), key=lambda q: (q.event_time, q.symbol, q.revision))
    assert lake.is_lake(str(tmp_path))
    assert lake.read_quotes(str(tmp_path)) == expected
    assert lake.read_quotes(str(tmp_path / "quotes")) == expected


def test_a_part_that_is_older_than_a_column_is_read_with_it_unknown(tmp_path: Path) -> None:
    items = [recorded(i, benchmark_volume_ratio=1.5) for i in range(3)]
    write(tmp_path, items)
    (part,) = tmp_path.rglob("*.parquet")
    table = pq.ParquetFile(part).read()
    pq.write_table(table.drop_columns(["benchmark_volume_ratio"]), part)
    expected = [replace(i.scored.quote, benchmark_volume_ratio=None) for i in items]
    assert lake.read_quotes(str(tmp_path)) == expected
    pq.write_table(table.drop_columns(["close"]), part)
    with pytest.raises(InvalidRequestError, match="not a part of a lake"):
        lake.read_quotes(str(tmp_path))


def test_one_part_a_day_with_deterministic_names(tmp_path: Path) -> None:
    assert sorted(lake.parts([recorded(i) for i in (99, 100, 98, 250)])) == [
        "quotes/dt=2026-11-20/part-000000000098-000000000099.parquet",
        "quotes/dt=2026-11-21/part-000000000100-000000000100.parquet",
        "quotes/dt=2026-11-22/part-000000000250-000000000250.parquet",
    ]


def test_a_quote_in_two_parts_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, [recorded(i) for i in range(5)])
    write(tmp_path, [recorded(i) for i in range(8)])
    assert len(lake.read_quotes(str(tmp_path))) == 8


def test_live_is_read_unless_a_tape_is_named(tmp_path: Path) -> None:
    write(tmp_path, [recorded(0), recorded(1), recorded(2, tape="run-1")])
    assert len(lake.read_quotes(str(tmp_path))) == 2
    assert len(lake.read_quotes(str(tmp_path), "run-1")) == 1
    with pytest.raises(InvalidRequestError, match="does not hold the tape run-2, but live, run-1"):
        lake.read_quotes(str(tmp_path), "run-2")


def test_canaries_are_read_by_their_name_only(tmp_path: Path) -> None:
    write(tmp_path, [recorded(0, tape="run-1"), recorded(1, tape="canary"), recorded(2, tape="run-1")])
    assert {quote.tape for quote in lake.read_quotes(str(tmp_path))} == {"run-1"}
    assert {quote.tape for quote in lake.read_quotes(str(tmp_path), "canary")} == {"canary"}


def test_several_replays_without_live_must_be_named(tmp_path: Path) -> None:
    write(tmp_path, [recorded(0, tape="run-1"), recorded(1, tape="run-2")])
    with pytest.raises(InvalidRequestError, match=r"holds the tapes run-1, run-2 and not live: name one, as .*#run-1$"):
        lake.read(str(tmp_path))
    for root in (str(tmp_path), f"file://{tmp_path}"):
        location.check(f"{root}#run-2")
        count, quotes = location.quotes(f"{root}#run-2", tape="again")
        assert (count, [quote.tape for quote in quotes]) == (1, ["again"])
        with pytest.raises(InvalidRequestError, match="does not hold the tape run-3, but run-1, run-2"):
            location.quotes(f"{root}#run-3", tape="again")
    (tmp_path / "files").mkdir()
    with pytest.raises(InvalidRequestError, match="files#run-1' does not exist"):
        location.check(f"{tmp_path}/files#run-1")


def test_bars_take_the_newest_revision_and_the_longer_source(tmp_path: Path) -> None:
    items = [recorded(i, split_ratio=1.0) for i in range(4)]
    items += [recorded(4, minute=2, revision=1, close=9.25, split_ratio=None), recorded(5, source="other")]
    write(tmp_path, items)
    problems: list[Problem] = []
    (bars,) = lake.read(str(tmp_path), problems=problems)
    assert len(bars) == 4
    assert bars.close[2] == 9.25
    assert np.isnan(bars.split_ratio).tolist() == [False, False, True, False]
    assert bars.event_time[0] == np.datetime64("2026-11-20T14:30", "us")
    assert "AAPL has several sources; test is used, other not" in str(problems[0])


def test_a_series_of_several_currencies_is_left_out_and_named(tmp_path: Path) -> None:
    items = [recorded(i, currency="USD" if i < 5 else "EUR") for i in range(10)]
    write(tmp_path, items)
    with pytest.raises(InvalidRequestError, match=f"{tmp_path} holds nothing usable: .*AAPL is left out: .* EUR, USD"):
        lake.read(str(tmp_path))
    write(tmp_path, [recorded(20 + i, symbol="IBM") for i in range(3)])
    problems: list[Problem] = []
    (bars,) = lake.read(str(tmp_path), problems=problems)
    assert bars.symbol == "IBM"
    assert [str(problem) for problem in problems] == [f"{tmp_path}: AAPL is left out: it has the currencies EUR, USD"]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write(tmp_path, [recorded(0)])
    broken = tmp_path / "quotes/dt=2026-11-20/part-000000000002-000000000002.parquet"
    broken.write_bytes(b"")
    with pytest.raises(InvalidRequestError, match="part-000000000002"):
        lake.read(str(tmp_path))
    pq.write_table(pa.table({"a": [1]}), broken)
    with pytest.raises(InvalidRequestError, match="is not a part of a lake"):
        lake.read(str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert not lake.is_lake(str(tmp_path))
    with pytest.raises(InvalidRequestError, match="holds no parts of a lake"):
        lake.read(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "AWS Error UNKNOWN (HTTP status 400) during ListObjectsV2 operation: Unable to parse ExceptionName: "
        "ExpiredToken Message: The provided token has expired.",
        "AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.",
    ],
)
def test_expired_credentials_are_told_also_where_s3_says_nothing(text: str) -> None:
    assert re.search("s3://b/lake.*expired|expired.*s3://b/lake", explain(OSError(text), "s3://b/lake"))


def test_the_permission_that_s3_denied_is_named() -> None:
    for operation, permission in (("UploadPart", "s3:PutObject"), ("GetObject", "s3:GetObject")):
        text = f"When writing 'a' in bucket 'b': AWS Error ACCESS_DENIED during {operation} operation: no"
        assert f"credentials with {permission} (all that a lake needs: s3:GetObject," in explain(
            OSError(text), "s3://b"
        )
    assert "credentials with s3:GetObject, s3:PutObject and" in explain(OSError("HTTP status 403"), "s3://b")
