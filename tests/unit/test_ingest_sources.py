import asyncio
import importlib
import math
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.archive.yahoo import TooManyRequestsError, YahooBar, rows_of
from services.domain.errors import NotConfiguredError
from services.domain.quote import Quote, Series
from services.ingest.archive_source import ArchiveSource
from services.ingest.csv_file import CsvSource
from services.ingest.ports import QuoteSource, SourceBatch
from services.ingest.universe import LARGE_CAPS, SECTOR_FUNDS
from services.ingest.yahoo import TokenBucket, YahooSource

NOW = datetime(2026, 11, 20, 15, 31, 30, tzinfo=UTC)
BAR = YahooBar(NOW.replace(second=0), 10.0, 12.0, 9.0, 11.0, 100.0, currency="USD", previous_close=9.5)


def bar(minutes_ago: int, **fields: float) -> YahooBar:
    return replace(BAR, event_time=BAR.event_time - timedelta(minutes=minutes_ago), **fields)  # type: ignore[arg-type]


class Yahoo:
    """Answers as told, symbol by symbol; keeps who was asked and how long was slept."""

    def __init__(self, answers: dict[str, list[Sequence[YahooBar] | Exception]]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.slept: list[float] = []

    def __call__(
        self, symbol: str, interval_seconds: int, start: datetime | None = None, end: datetime | None = None
    ) -> Sequence[YahooBar]:
        self.asked.append(symbol)
        given = self.answers[symbol]
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def source(
        self,
        seen: dict[Series, datetime] | None = None,
        rate: float = 1e9,
        benchmark: str = "",
        sectors: dict[str, str] | None = None,
    ) -> YahooSource:
        return YahooSource(
            [symbol for symbol in self.answers if symbol not in {benchmark, *(sectors or {}).values()}],
            self,
            interval_seconds=60,
            requests_per_second=rate,
            seen=seen or {},
            clock=lambda: NOW,
            benchmark_symbol=benchmark,
            sectors=sectors or {},
            sleep=self.sleep,
            jitter=lambda: 1.0,
        )


async def take(source: QuoteSource, count: int) -> list[SourceBatch]:
    batches: AsyncIterator[SourceBatch] = source.batches()
    async with asyncio.timeout(60):
        return [await anext(batches) for _ in range(count)]


def series(symbol: str) -> Series:
    return Series("live", "yahoo_finance", symbol, 60)


async def test_closed_bars_are_given_once_and_the_forming_one_waits() -> None:
    yahoo = Yahoo({"AAPL": [[bar(3), bar(2), bar(1), bar(0)], [bar(1), bar(0)]]})
    first, second = await take(yahoo.source(), 2)
    assert [q.event_time for q in first.quotes] == [bar(3).event_time, bar(2).event_time, bar(1).event_time]
    assert second.quotes == []
    quote = first.quotes[0]
    assert quote.quote_id == "live/yahoo_finance/AAPL/60s/2026-11-20T15:28:00Z/0"
    assert (quote.currency, quote.previous_close, quote.split_ratio) == ("USD", 9.5, 1.0)


async def test_what_was_published_before_is_not_given_again() -> None:
    yahoo = Yahoo({"AAPL": [[bar(3), bar(2), bar(1)]]})
    (batch,) = await take(yahoo.source({series("AAPL"): bar(2).event_time}), 1)
    assert [q.event_time for q in batch.quotes] == [bar(1).event_time]


async def test_zero_volume_is_passed_on_missing_prices_are_not() -> None:
    yahoo = Yahoo({"AAPL": [[bar(3, volume=0.0), bar(2, close=math.nan), bar(1, volume=math.nan, split_ratio=2.0)]]})
    (batch,) = await take(yahoo.source(), 1)
    assert [(q.volume, q.split_ratio) for q in batch.quotes] == [(0.0, 1.0), (0.0, 2.0)]


async def test_one_broken_symbol_does_not_stop_the_others() -> None:
    yahoo = Yahoo({"AAPL": [[bar(1)]], "GONE": [ValueError("possibly delisted")], "MSFT": [[bar(1)]]})
    batches = await take(yahoo.source(), 3)
    assert [len(b.quotes) for b in batches] == [1, 0, 1]
    assert batches[1].failures == {series("GONE"): "ValueError: possibly delisted"}
    assert yahoo.asked.count("GONE") == 3
    assert [s for s in yahoo.slept if s > 0][:2] == [2.0, 4.0]  # exponential


async def test_a_failure_that_passes_is_no_failure() -> None:
    yahoo = Yahoo({"AAPL": [ConnectionError("reset"), [bar(1)]]})
    (batch,) = await take(yahoo.source(), 1)
    assert len(batch.quotes) == 1
    assert batch.failures == {}


async def test_the_benchmarks_return_over_the_same_minute_is_stamped() -> None:
    market = [bar(3, close=100.0), bar(2, close=101.0), bar(1, close=50.5, split_ratio=2.0)]
    yahoo = Yahoo({"AAPL": [[bar(3), bar(2), bar(1)]], "SPY": [market]})
    (batch,) = await take(yahoo.source(benchmark="SPY"), 1)
    assert yahoo.asked == ["SPY", "AAPL"]
    assert [q.benchmark_return for q in batch.quotes] == [None, pytest.approx(0.01), pytest.approx(0.0)]
    assert [q.benchmark_volume_ratio for q in batch.quotes] == [None] * 3  # too few bars to know what is usual


async def test_the_benchmarks_volume_is_stamped_against_its_usual_one() -> None:
    market = [bar(m, volume=300.0 if m == 1 else 100.0) for m in range(30, 0, -1)]
    yahoo = Yahoo({"AAPL": [[bar(1)]], "SPY": [market]})
    (batch,) = await take(yahoo.source(benchmark="SPY"), 1)
    assert [q.benchmark_volume_ratio for q in batch.quotes] == [pytest.approx(3.0)]


async def test_a_sectors_fund_is_asked_once_and_stamped_on_its_symbols_only() -> None:
    answers = {
        "AAPL": [[bar(2), bar(1)]],
        "JPM": [[bar(1)]],
        "MSFT": [[bar(1)]],
        "SPY": [[bar(2), bar(1)]],
        "XLK": [[bar(2, close=100.0), bar(1, close=103.0)]],
    }
    yahoo = Yahoo(answers)  # type: ignore[arg-type]
    source = yahoo.source(benchmark="SPY", sectors={"AAPL": "XLK", "MSFT": "XLK", "GE": "XLI"})
    apple, bank, microsoft = await take(source, 3)
    assert yahoo.asked == ["SPY", "XLK", "AAPL", "JPM", "MSFT"]  # XLI has no symbol that is polled
    assert [q.peer_return for q in apple.quotes] == [None, pytest.approx(0.03)]
    assert [q.peer_return for q in microsoft.quotes] == [pytest.approx(0.03)]
    assert [q.peer_return for q in bank.quotes] == [None]
    assert [q.benchmark_return for q in bank.quotes] == [pytest.approx(0.0)]


async def test_a_sectors_fund_that_cannot_be_read_holds_nothing_up() -> None:
    yahoo = Yahoo({"AAPL": [[bar(2), bar(1)]], "SPY": [[bar(2), bar(1)]], "XLK": [ConnectionError("reset")]})
    (batch,) = await take(yahoo.source(benchmark="SPY", sectors={"AAPL": "XLK"}), 1)
    assert [(q.peer_return, q.benchmark_return is None) for q in batch.quotes] == [(None, True), (None, False)]
    assert batch.failures == {}


async def test_a_benchmark_that_cannot_be_read_holds_nothing_up() -> None:
    yahoo = Yahoo({"AAPL": [[bar(1)]], "SPY": [ConnectionError("reset")]})
    (batch,) = await take(yahoo.source(benchmark="SPY"), 1)
    assert [q.benchmark_return for q in batch.quotes] == [None]
    assert batch.failures == {}


async def test_no_news_is_no_error() -> None:
    (batch,) = await take(Yahoo({"AAPL": [[]]}).source(), 1)
    assert (list(batch.quotes), dict(batch.failures)) == ([], {})


async def test_too_many_requests_end_the_round_and_lengthen_the_pause() -> None:
    refusal = TooManyRequestsError("429")
    yahoo = Yahoo({"AAPL": [[bar(1)]], "MSFT": [refusal, refusal, []], "IBM": [[]]})
    source = yahoo.source()
    batches = source.batches()
    assert len((await anext(batches)).quotes) == 1
    failures = (await anext(batches)).failures
    assert set(failures) == {series("MSFT"), series("IBM")}
    assert "asks to slow down" in failures[series("IBM")]
    assert yahoo.asked == ["AAPL", "MSFT"]  # tried once, and nobody after it
    await anext(batches)
    await anext(batches)
    for _ in range(3):
        assert not (await anext(batches)).failures
    await anext(batches)
    pauses = [s for s in yahoo.slept if s >= 30]
    assert pauses[:2] == [60 + 120, 60 + 240]
    assert pauses[2] == pytest.approx(60, abs=1)


def test_the_token_bucket_bounds_the_rate() -> None:
    bucket = TokenBucket(2.0, capacity=3)
    assert [bucket.delay(100.0) for _ in range(5)] == [0, 0, 0, 0.5, 1.0]
    assert bucket.delay(110.0) == 0


def test_frames_of_yfinance_are_read() -> None:
    pd = importlib.import_module("pandas")  # comes with yfinance, without types
    index = pd.DatetimeIndex(["2026-11-20 10:30"], tz="America/New_York")
    columns = {"Open": [1.0], "High": [2.0], "Low": [0.5], "Close": [1.5], "Volume": [7], "Stock Splits": [2.0]}
    (row,) = rows_of(pd.DataFrame(columns, index=index), {"currency": "USD", "previousClose": 1.25})
    moment = datetime(2026, 11, 20, 15, 30, tzinfo=UTC)
    assert row == YahooBar(moment, 1.0, 2.0, 0.5, 1.5, 7.0, 2.0, "USD", 1.25)
    assert rows_of(pd.DataFrame(), {}) == []


HEADER = "symbol,timestamp,open,high,low,close,volume\n"


def append(path: Path, *rows: str) -> None:
    path.write_text((path.read_text() if path.exists() else HEADER) + "".join(f"{row},1,1,1,1,1\n" for row in rows))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def ids(batch: SourceBatch) -> list[str]:
    return [f"{quote.symbol} {quote.event_time:%H:%M}" for quote in batch.quotes]


async def test_what_is_appended_to_a_csv_file_is_given(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    append(path, "A,2024-01-02T14:30:00Z", "A,2024-01-02T14:31:00Z", "B,2024-01-02T14:31:00Z")
    source = CsvSource(path, 0.01, {Series("live", "csv", "A", 60): datetime(2024, 1, 2, 14, 30, tzinfo=UTC)})
    batches = source.batches()
    assert ids(await anext(batches)) == ["A 14:31", "B 14:31"]
    assert ids(await anext(batches)) == []
    append(path, "A,2024-01-02T14:32:00Z")
    assert ids(await anext(batches)) == ["A 14:32"]
    assert {s.symbol for s in source.expected} == {"A", "B"}
    path.write_text("")
    broken = await anext(batches)
    assert "is empty" in next(iter(broken.failures.values()))
    append(path.parent / "new.csv")
    path.unlink()
    (path.parent / "new.csv").rename(path)
    append(path, "A,2024-01-02T14:33:00Z", "A,2024-01-02T14:34:00Z")
    assert ids(await anext(batches)) == ["A 14:33", "A 14:34"]


async def test_a_growing_csv_files_series_stay_the_same_and_a_bad_row_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    append(path, "B,2024-01-02T15:00:00Z")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nowhere")
    source = CsvSource(tmp_path, 0.01, {})
    batches = source.batches()
    given = list((await anext(batches)).quotes)
    for row in ("15:01:00Z", "15:03:00Z", "garbage", "15:05:00Z", "15:09:00Z"):
        append(path, f"B,2024-01-02T{row}")
        given += (await anext(batches)).quotes
    assert [f"{q.event_time:%H:%M}" for q in given] == ["15:00", "15:01", "15:03", "15:05", "15:09"]
    assert {q.series for q in given} == {Series("live", "csv", "B", 60)}
    seen = {given[-1].series: given[-1].event_time}
    append(path, "B,2024-01-02T15:30:00Z")
    (quote,) = (await anext(CsvSource(tmp_path, 0.01, seen).batches())).quotes
    assert quote.series == given[-1].series, "after a restart too"


def test_a_csv_source_without_usable_rows_is_refused_unless_it_has_none_yet(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    for text in ("", HEADER):
        path.write_text(text)
        assert CsvSource(path, 1, {}).expected == ()
    path.write_text("symbol,timestamp,open\nA,2024-01-02,1\n")
    with pytest.raises(NotConfiguredError, match=r"lacks the column\(s\) high.*set CSV_PATH to another file"):
        CsvSource(path, 1, {})


async def test_a_half_written_last_row_waits_for_its_newline(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_text(
        HEADER + "A,2024-01-02T14:29:00Z,1,1,1,1,1\nA,2024-01-02T14:30:00Z,1,1,1,1,1\nA,2024-01-02T14:31:00Z,9,9,9,9,1"
    )
    batches = CsvSource(path, 0.01, {}).batches()
    assert ids(await anext(batches)) == ["A 14:29", "A 14:30"]
    with path.open("a") as file:
        file.write("00\n")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    async with asyncio.timeout(60):
        while not (batch := await anext(batches)).quotes:
            pass
    assert [(quote.close, quote.volume) for quote in batch.quotes] == [(9.0, 100.0)]


async def test_a_csv_source_may_be_narrowed(tmp_path: Path) -> None:
    append(tmp_path / "bars.csv", "A,2024-01-02T14:30:00Z", "A,2024-01-02T14:31:00Z", "B,2024-01-02T14:31:00Z")
    (batch,) = await take(CsvSource(tmp_path / "bars.csv", 1, {}, ["B"]), 1)
    assert ids(batch) == ["B 14:31"]


def test_a_missing_csv_file_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotConfiguredError, match="set CSV_PATH to a CSV file or folder"):
        CsvSource(tmp_path / "nothing.csv", 1, {})


async def test_an_archive_is_given_from_a_row_on_in_batches(tmp_path: Path) -> None:
    append(tmp_path / "bars.csv", *(f"A,2024-01-02T14:{m}:00Z" for m in range(30, 40)))
    source = ArchiveSource(str(tmp_path / "bars.csv"), tape="run-1", stop=asyncio.Event(), first_row=3, batch_quotes=4)
    batches = [batch async for batch in source.batches()]
    assert source.total == 10
    assert [len(batch.quotes) for batch in batches] == [4, 3]
    quotes: list[Quote] = [quote for batch in batches for quote in batch.quotes]
    assert (quotes[0].event_time.minute, quotes[-1].event_time.minute) == (33, 39)


async def test_an_archives_quotes_carry_the_markets_return_also_behind_a_checkpoint_and_for_some_symbols(
    tmp_path: Path,
) -> None:
    lines = ["symbol,timestamp,open,high,low,close,volume"]
    for i in range(11):
        for minute, close in ((30, 100.0), (31, 100.0 + i), (32, 100.0 + i)):
            lines.append(f"S{i:02d},2024-01-02T14:{minute}:00Z,{close},{close},{close},{close},5")
    (tmp_path / "bars.csv").write_text("\n".join(lines) + "\n")

    async def stamped(**choice: Any) -> dict[str, float | None]:
        source = ArchiveSource(str(tmp_path / "bars.csv"), tape="run-1", stop=asyncio.Event(), **choice)
        return {q.quote_id: q.benchmark_return for batch in [b async for b in source.batches()] for q in batch.quotes}

    whole = await stamped()
    assert [whole[f"run-1/archive/S03/60s/2024-01-02T14:{m}:00Z/0"] for m in (30, 31, 32)] == [
        None,
        pytest.approx(0.05),  # the median of 0 % to 10 %
        pytest.approx(0.0),
    ]
    for part in (await stamped(first_row=13), await stamped(symbols=("S03",))):
        assert part.items() <= whole.items()


async def test_an_archives_quotes_carry_what_their_sector_did(tmp_path: Path) -> None:
    lines = ["symbol,timestamp,open,high,low,close,volume"]
    for i in range(10):
        for minute, close in ((30, 100.0), (31, 100.0 + i)):
            lines.append(f"S{i},2024-01-02T14:{minute}:00Z,{close},{close},{close},{close},5")
    (tmp_path / "bars.csv").write_text("\n".join(lines) + "\n")
    sectors = {"S0": "XLK", "S1": "XLK", "S2": "XLK", "S5": "XLK"}
    source = ArchiveSource(str(tmp_path / "bars.csv"), tape="run-1", stop=asyncio.Event(), sectors=sectors)
    found = {q.symbol: q.peer_return for batch in [b async for b in source.batches()] for q in batch.quotes}
    assert found["S0"] == pytest.approx(0.02)  # the median of 1 %, 2 % and 5 %
    assert found["S5"] == pytest.approx(0.01)
    assert found["S3"] is None


async def test_peers_are_stamped_beside_the_market_only(tmp_path: Path) -> None:
    """Nine symbols are no market: a model that has never seen peers alone is not shown them."""
    lines = ["symbol,timestamp,open,high,low,close,volume"]
    lines += [f"S{i},2024-01-02T14:{m}:00Z,9,9,9,9,5" for i in range(9) for m in (30, 31)]
    (tmp_path / "bars.csv").write_text("\n".join(lines) + "\n")
    sectors = {f"S{i}": "XLK" for i in range(9)}
    source = ArchiveSource(str(tmp_path / "bars.csv"), tape="run-1", stop=asyncio.Event(), sectors=sectors)
    found = [q for batch in [b async for b in source.batches()] for q in batch.quotes]
    assert len(found) == 18
    assert {(q.peer_return, q.benchmark_return) for q in found} == {(None, None)}


async def test_what_closes_during_a_round_waits_and_a_running_bar_of_the_market_is_never_stamped() -> None:
    """The market is asked while its newest bar still runs; by the time that the symbol is asked, it has closed."""
    answers = {"AAPL": [[bar(3), bar(2), bar(1)]], "SPY": [[bar(3), bar(2, close=101.0), bar(1, close=500.0)]]}
    yahoo = Yahoo(answers)  # type: ignore[arg-type]
    moments = iter([NOW - timedelta(seconds=60), *[NOW] * 9])
    source = YahooSource(
        ["AAPL"],
        yahoo,
        interval_seconds=60,
        requests_per_second=1e9,
        seen={},
        clock=lambda: next(moments),
        benchmark_symbol="SPY",
        sleep=yahoo.sleep,
        jitter=lambda: 1.0,
    )
    first, second = await take(source, 2)
    assert [q.event_time for q in first.quotes] == [bar(3).event_time, bar(2).event_time]
    assert [q.event_time for q in second.quotes] == [bar(1).event_time]
    assert second.quotes[0].benchmark_return == pytest.approx(500.0 / 101.0 - 1.0)


def test_every_large_cap_of_the_index_has_its_sectors_fund() -> None:
    assert set(LARGE_CAPS) - set(SECTOR_FUNDS) == {"BABA"}
    assert set(SECTOR_FUNDS) <= set(LARGE_CAPS)
