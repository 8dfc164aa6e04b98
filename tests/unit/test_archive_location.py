import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.archive import csv_bars, location, parquet_bars
from services.archive.problems import Problem
from services.domain.errors import InvalidRequestError
from services.domain.quote import DAY_SECONDS

KAGGLE = "Date,Open,High,Low,Close,Adj Close,Volume\n"
GENERIC = "symbol,timestamp,open,high,low,close,volume\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_kaggles_columns(tmp_path: Path) -> None:
    rows = "2020-01-02,10.0,11.0,9.0,10.0,5.0,100\n2020-01-03,10.0,11.0,9.0,10.0,5.5,200\n"
    (bars,) = location.read(str(write(tmp_path / "aapl.csv", KAGGLE + rows)))
    assert (bars.symbol, bars.interval_seconds, bars.currency, len(bars)) == ("AAPL", DAY_SECONDS, "", 2)
    assert bars.event_time.tolist() == np.array(["2020-01-02", "2020-01-03"], "M8[us]").tolist()
    assert bars.volume.tolist() == [100.0, 200.0]
    assert bars.split_ratio.tolist() == [1.0, 1.1]  # a dividend: the adjusted close rose and the close did not


def test_a_generic_file_of_many_symbols(tmp_path: Path) -> None:
    text = (
        "timestamp,symbol,open,high,low,close,volume,previous_close,split_ratio,interval_seconds,currency\n"
        "2024-01-02T14:30:00Z,MSFT,10,11,9,10,5,9.5,,300,USD\n"
        "2024-01-02T09:30:00-05:00,NA,1,1,1,1,5,,2.0,60,EUR\n"
        "2024-01-02T14:35:00Z,MSFT,10,11,9,10,5,,1.0,300,USD\n"
    )
    msft, na = csv_bars.read(write(tmp_path / "bars.csv", text))
    assert (msft.symbol, msft.interval_seconds, msft.currency) == ("MSFT", 300, "USD")
    assert np.isnan(msft.split_ratio).tolist() == [True, False]
    assert (na.symbol, na.interval_seconds, na.currency) == ("NA", 60, "EUR")
    assert na.event_time.tolist() == np.array(["2024-01-02T14:30"], "M8[us]").tolist()
    assert na.split_ratio.tolist() == [2.0]


def test_times_without_an_offset_are_utc_and_the_interval_is_the_usual_distance(tmp_path: Path) -> None:
    rows = "".join(f"A,2024-01-02 14:{m:02d}:00,1,1,1,1,1\n" for m in (30, 31, 32, 40, 41))
    (bars,) = location.read(str(write(tmp_path / "bars.csv", GENERIC + rows)))
    assert bars.interval_seconds == 60
    assert bars.event_time[0] == np.datetime64("2024-01-02T14:30")
    assert np.isnan(bars.split_ratio).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bars.csv is empty"),
        (GENERIC, "bars.csv holds no rows"),
        ("symbol,timestamp,open,high,close\nA,2024-01-02,1,1,1\n", r"bars.csv lacks the column\(s\) low, volume"),
        ("symbol,open,high,low,close,volume\nA,1,1,1,1,1\n", r"lacks the column\(s\) date or timestamp"),
        (GENERIC + "A,yesterday,1,1,1,1,1\n", "bars.csv holds no usable row: .*row 2: A is left out"),
        (GENERIC + "A,2024-01-02,1,1\n", "bars.csv holds no rows"),
        (GENERIC + "A,7,1,1,1,1,1\n", "bars.csv holds int64 where times should be"),
        (GENERIC + "A,2024-01-02,,,,,\n", "bars.csv holds no usable row: .*row 2: A is left out: none of its rows"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        location.read(str(write(tmp_path / "bars.csv", text)))


def test_an_archives_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = write(tmp_path / "bars.csv", GENERIC + "A,2024-01-02,1,1,1,1,1\nA,2024-01-03,1,1,1,1,1")
    assert [len(bars) for bars in location.read(str(path))] == [2]
    assert [len(bars) for bars in location.read(str(path), growing={"A": 60})] == [1]
    assert [len(bars) for bars in location.read(str(tmp_path), growing={"A": 60})] == [1]


def test_one_bad_row_costs_only_itself_and_is_named_by_its_place(tmp_path: Path) -> None:
    text = GENERIC + (
        "A,2024-01-02,1,1,1,1,1\n"
        "A,yesterday,1,1,1,1,1\n"
        "A,2024-01-04,1,1\n"
        "A,2024-01-05,1,1,x,1,1\n"
        "B,2024-01-05,1,1,1,1,many\n"
        "A,2024-01-06,1,1,1,1,1\n"
    )
    problems: list[Problem] = []
    a, b = location.read(str(write(tmp_path / "bars.csv", text)), problems)
    assert (a.event_time.astype("M8[D]").astype(str).tolist(), len(b)) == (["2024-01-02", "2024-01-06"], 1)
    assert b.volume.tolist() == [0.0]
    assert [str(problem).removeprefix(f"{tmp_path}/bars.csv, ") for problem in problems] == [
        "row 4: has not the header's 7 columns; left out",
        "row 3: A has no readable time, such as 2020-01-31 or 2020-01-31T14:30:00Z; left out",
        "row 5: A has a price that is missing or no number; left out",
        "row 6: B has a volume that is missing, no number or negative; counted as 0",
    ]


def test_the_length_of_a_growing_files_bars_stays_once_it_is_found(tmp_path: Path) -> None:
    def lengths(times: str, known: dict[str, int]) -> list[tuple[str, int, int]]:
        rows = "".join(f"{row.split()[0]},2024-01-02T{row.split()[1]}:00Z,1,1,1,1,1\n" for row in times.split(", "))
        path = write(tmp_path / "bars.csv", GENERIC + rows)
        problems: list[Problem] = []
        found = [(b.symbol, b.interval_seconds, len(b)) for b in location.read(str(path), problems, growing=known)]
        assert len(problems) == (0 if found else 1)
        return found

    assert lengths("A 15:00", {}) == []
    assert lengths("A 15:00, A 15:01", {}) == [("A", 60, 2)]
    assert lengths("A 15:00, A 15:01, A 15:05, A 15:09", {"A": 60}) == [("A", 60, 4)]
    assert lengths("A 15:00, A 15:01, B 15:01", {}) == [("A", 60, 2), ("B", 60, 1)], "the other symbols' length"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("/" + "a" * 30_000, r"longer than 4,096 characters$"),
        ("/" + "a/" * 200 + "b" * 300, "does not exist"),  # a name that is too long for a file
        ("bars\0.csv", "does not exist"),
        ("/dev/zero", "/dev/zero' is neither a regular file nor a folder"),
        ("file:///dev/zero", "is neither a regular file nor a folder"),
        ("file:///nowhere/at/all", "does not exist"),
        ("mock://lake", "has none of the schemes s3, "),
        ("hdfs://host/lake", "has none of the schemes s3, "),
        ("http://169.254.169.254/latest", "has none of the schemes s3, "),
    ],
)
def test_a_location_that_cannot_be_one_is_refused_by_every_door(where: str, message: str) -> None:
    for door in (location.check, location.read, lambda place: location.quotes(place, tape="run-1")):
        with pytest.raises(InvalidRequestError, match=f"^location: .*{message}") as raised:
            door(where)
        assert len(raised.value.message) < 400


def test_binary_rubbish_is_one_clear_sentence(tmp_path: Path) -> None:
    for name in ("bars.csv", "bars.parquet"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00\x01" * 100)
        with pytest.raises(InvalidRequestError, match=f"{name} (is not a readable|lacks)"):
            location.read(str(tmp_path / name))


def test_rows_that_cannot_be_used_are_left_out_and_named(tmp_path: Path) -> None:
    text = GENERIC + (
        "A,2024-01-03,10,11,9,10,1\n"
        "A,2024-01-02,10,11,9,10,2\n"  # out of order
        "A,2024-01-04,10,9,11,10,3\n"  # high below low
        "A,2024-01-05,-1,11,9,10,4\n"
        "A,2024-01-06,NaN,11,9,10,5\n"
        "A,2024-01-03,10,11,9,10.5,6\n"  # the same time again
        "A,2024-01-07,10,11,9,10,-7\n"
        "B,2024-01-02,,,,,\n"
    )
    problems: list[Problem] = []
    (bars,) = location.read(str(write(tmp_path / "bars.csv", text)), problems)
    assert bars.close.tolist() == [10.0, 10.5, 10.0]
    assert bars.volume.tolist() == [2.0, 6.0, 0.0]
    said = "\n".join(map(str, problems))
    assert "row 4: A has prices outside its low to high; left out" in said
    assert "row 5: A has a price of 0 or less; left out" in said
    assert "row 6: A has a price that is missing or no number; left out" in said
    assert "row 8: A has a volume that is missing, no number or negative; counted as 0" in said
    assert "row 3: A is not in order of time; sorted" in said
    assert "row 2: A has a later row of the same time; that one counts" in said
    assert "row 9: B is left out: none of its rows is usable; the first has a price that is missing" in said
    assert said.count("B ") == 1


def test_a_symbol_of_mixed_currencies_is_left_out(tmp_path: Path) -> None:
    text = (
        "symbol,timestamp,open,high,low,close,volume,currency\n"
        "A,2024-01-02,1,1,1,1,1,USD\nA,2024-01-03,1,1,1,1,1,EUR\nB,2024-01-02,1,1,1,1,1,GBp\n"
    )
    problems: list[Problem] = []
    (bars,) = location.read(str(write(tmp_path / "bars.csv", text)), problems)
    assert (bars.symbol, bars.currency) == ("B", "GBp")
    assert re.search("row 2: A is left out: it has the currencies EUR, USD", str(problems[0]))


def test_a_row_without_a_currency_is_not_of_the_others_currency(tmp_path: Path) -> None:
    text = "symbol,timestamp,open,high,low,close,volume,currency\nA,2024-01-02,1,1,1,1,1,USD\nA,2024-01-03,1,1,1,1,1,\n"
    with pytest.raises(InvalidRequestError, match="row 2: A is left out: it has the currencies none, USD"):
        location.read(str(write(tmp_path / "bars.csv", text)))


def test_a_symbol_of_different_currencies_in_two_files_is_left_out(tmp_path: Path) -> None:
    header = "symbol,timestamp,open,high,low,close,volume,currency\n"
    write(tmp_path / "2023.csv", header + "A,2023-01-02,1,1,1,1,1,USD\nB,2023-01-02,1,1,1,1,1,USD\n")
    write(tmp_path / "2024.csv", header + "A,2024-01-02,2,2,2,2,1,EUR\nB,2024-01-02,1,1,1,1,1,USD\n")
    problems: list[Problem] = []
    (bars,) = location.read(str(tmp_path), problems)
    assert (bars.symbol, bars.currency, len(bars)) == ("B", "USD", 2)
    (problem,) = map(str, problems)
    assert problem == (f"{tmp_path}: A is left out: it has the currencies EUR (2024.csv), USD (2023.csv)")
    write(tmp_path / "2024.csv", header + "A,2024-01-02,2,2,2,2,1,EUR\nB,2024-01-02,1,1,1,1,1,\n")
    with pytest.raises(
        InvalidRequestError, match=r"holds nothing usable: .*A is left out: .*B is left out: .* none \("
    ):
        location.read(str(tmp_path))


def test_bars_of_one_time_in_two_files_are_told_with_their_files(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", GENERIC + "A,2020-01-02,1,1,1,1,1\nA,2020-01-03,1,1,1,1,1\nB,2020-01-02,1,1,1,1,1\n")
    write(tmp_path / "b.csv", GENERIC + "B,2020-01-03,1,1,1,1,1\n")
    write(tmp_path / "c.csv", GENERIC + "A,2020-01-03,2,2,2,2,1\nA,2020-01-06,2,2,2,2,1\n")
    problems: list[Problem] = []
    a, b = location.read(str(tmp_path), problems)
    assert (a.close.tolist(), len(b)) == ([1.0, 2.0, 2.0], 2)
    assert [str(problem) for problem in problems] == [
        f"{tmp_path}: A has 1 of its times in several files (a.csv, c.csv); the last file's bars count"
    ]


@pytest.mark.parametrize("header", ["Date,Open,High,Low,Close,close,Volume", "Date,Open,High,Low,Close,Close,Volume"])
def test_a_file_with_a_column_twice_is_refused_and_the_others_are_used(tmp_path: Path, header: str) -> None:
    write(tmp_path / "A.csv", f"{header}\n2020-01-02,1,1,1,1,1,1\n")
    write(tmp_path / "B.csv", KAGGLE + "2020-01-02,1,1,1,1,1,1\n2020-01-03,1,1,1,1,1,1\n")
    problems: list[Problem] = []
    (bars,) = location.read(str(tmp_path), problems)
    assert bars.symbol == "B"
    assert [str(problem) for problem in problems] == [f"{tmp_path}/A.csv has the column close twice; left out"]
    with pytest.raises(InvalidRequestError, match=r"A\.csv has the column close twice"):
        location.read(str(tmp_path / "A.csv"))


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    names = ["symbol", "date", "open", "high", "low", "close", "Close", "volume"]
    columns: list[pa.Array[Any]] = [pa.array(["A"]), pa.array([18264], pa.date32()), *[pa.array([1.0])] * 6]
    pq.write_table(pa.Table.from_arrays(columns, names=names), tmp_path / "bars.parquet")
    with pytest.raises(InvalidRequestError, match=r"bars\.parquet has the column close twice"):
        location.read(str(tmp_path))


def test_a_column_that_nobody_reads_may_be_there_twice(tmp_path: Path) -> None:
    text = "Date,Open,High,Low,Close,Volume,,\n2020-01-02,1,1,1,1,1,x,y\n"
    (bars,) = location.read(str(write(tmp_path / "A.csv", text)))
    assert len(bars) == 1


def test_volumes_with_thousands_separators_are_numbers(tmp_path: Path) -> None:
    rows = (
        'A,2024-01-02,1,1,1,1,"1,234,567"\nA,2024-01-03,"1,000.5","1,001.5","1,000.0","1,001.0","12,345"\n'
        'A,2024-01-04,1,1,1,1,"12,34"\nA,2024-01-05,"10,234","10,300","10,100","10,250",5\n'
    )
    problems: list[Problem] = []
    (bars,) = location.read(str(write(tmp_path / "bars.csv", GENERIC + rows)), problems)
    assert bars.volume.tolist() == [1_234_567.0, 12_345.0, 0.0]
    assert bars.open.tolist() == [1.0, 1_000.5, 1.0]
    said = [str(problem).removeprefix(f"{tmp_path}/bars.csv, ") for problem in problems]
    assert said == [
        "row 5: A has a price that is missing or no number; left out",  # 10.234 in half of Europe
        "row 4: A has a volume that is missing, no number or negative; counted as 0",
    ]


def test_symbols_are_stripped_and_in_capitals_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    rows = "".join(
        f"{symbol},2024-01-{day:02d},1,1,1,1,1\n"
        for day, symbol in enumerate(["aapl", "AAPL", " Aim ", "", "B#", "^gspc", "brk-b", "", "A" * 33], 2)
    )
    problems: list[Problem] = []
    history = location.read(str(write(tmp_path / "bars.csv", GENERIC + rows)), problems)
    assert [(bars.symbol, len(bars)) for bars in history] == [("AAPL", 2), ("AIM", 1), ("BRK-B", 1), ("^GSPC", 1)]
    assert sorted(str(problem).removeprefix(f"{tmp_path}/bars.csv, ") for problem in problems) == [
        "row 10: 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' is no symbol; left out",
        "row 5 (and 1 more): '' is no symbol; left out",
        "row 6: 'B#' is no symbol; left out",
    ]


def test_a_file_that_is_named_after_no_symbol_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "daily bars.csv", KAGGLE + "2020-01-02,1,1,1,1,1,1\n")
    with pytest.raises(InvalidRequestError, match=r"daily bars\.csv has no column symbol, and its name is no symbol"):
        location.read(str(path))


def test_kaggles_folders_are_named_where_they_are_not_read(tmp_path: Path) -> None:
    for folder in ("stocks", "etfs", "notes", ".hidden"):
        (tmp_path / folder).mkdir()
    for folder in ("stocks", "etfs", ".hidden"):
        write(tmp_path / folder / "A.csv", KAGGLE + "2020-01-02,1,1,1,1,1,1\n")
    folders = f"its folders etfs, stocks are not read: name one of them, such as {tmp_path}/etfs"
    with pytest.raises(InvalidRequestError, match=f"is a folder without CSV or Parquet files; {folders}"):
        location.read(str(tmp_path))
    (tmp_path / "etfs" / "A.csv").unlink()
    folders = f"its folder stocks is not read: name it, as {tmp_path}/stocks"
    write(tmp_path / "symbols_valid_meta.csv", "Symbol,Security Name\nA,Agilent\n")
    with pytest.raises(InvalidRequestError, match=f"holds nothing usable: symbols_valid_meta.csv lacks .*; {folders}"):
        location.read(str(tmp_path))
    write(tmp_path / "B.csv", KAGGLE + "2020-01-02,1,1,1,1,1,1\n")
    problems: list[Problem] = []
    (bars,) = location.read(str(tmp_path), problems)
    assert bars.symbol == "B"
    assert str(problems[0]) == f"{tmp_path}: {folders}"


def test_all_files_are_named_when_none_can_be_used(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "")
    write(tmp_path / "b.csv", "x,y\n1,2\n")
    with pytest.raises(InvalidRequestError, match=r"holds nothing usable: a\.csv is empty; b\.csv lacks") as raised:
        location.read(str(tmp_path))
    assert len(raised.value.violations) == 1
    for i in range(50):
        write(tmp_path / f"c{i}.csv", "")
    with pytest.raises(InvalidRequestError, match=r"; and 49 more$"):
        location.read(str(tmp_path))


def test_prices_off_by_rounding_are_mended(tmp_path: Path) -> None:
    text = GENERIC + "A,2024-01-02,10,10.0,9,10.000000001,1\n"
    (bars,) = location.read(str(write(tmp_path / "bars.csv", text)))
    assert bars.high[0] == bars.close[0] == 10.000000001


def test_a_folder_is_read_whole_and_its_broken_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "A.csv", KAGGLE + "2020-01-02,1,1,1,1,1,1\n2020-01-03,1,1,1,1,1,1\n")
    write(tmp_path / "B.csv", "")
    write(tmp_path / "notes.txt", "not read")
    table = pa.table(
        {
            "symbol": ["A", "C"],
            "date": pa.array([18264, 18264], pa.date32()),  # 2020-01-03
            **{name: [2.0, 3.0] for name in ("open", "high", "low", "close", "volume")},
        }
    )
    pq.write_table(table, tmp_path / "later.parquet")
    problems: list[Problem] = []
    a, c = location.read(str(tmp_path), problems)
    assert (a.symbol, a.close.tolist()) == ("A", [1.0, 2.0])
    assert (c.symbol, c.close.tolist()) == ("C", [3.0])
    assert [str(problem) for problem in problems] == [
        f"{tmp_path / 'B.csv'} is empty; left out",
        f"{tmp_path}: A has 1 of its times in several files (A.csv, later.parquet); the last file's bars count",
    ]


def test_parquet_takes_times_of_every_kind(tmp_path: Path) -> None:
    moment = np.array(["2024-01-02T14:30", "2024-01-02T14:31"], "M8[us]")
    prices = {name: [1.0, 1.0] for name in ("open", "high", "low", "close", "volume")}
    for name, column in (
        ("time", pa.array(moment)),
        ("timestamp", pa.array(moment).cast(pa.timestamp("ns", "UTC"))),
        ("date", pa.array(moment).cast(pa.timestamp("ms"))),
        ("event_time", pa.array(["2024-01-02T14:30:00Z", "2024-01-02T15:31:00+01:00"])),
    ):
        pq.write_table(pa.table({"symbol": ["A", "A"], name: column, **prices}), tmp_path / f"{name}.parquet")
        (bars,) = location.read(str(tmp_path / f"{name}.parquet"))
        assert bars.event_time.tolist() == moment.tolist()
        assert bars.interval_seconds == 60


def test_a_dictionary_encoded_symbol_column_is_read(tmp_path: Path) -> None:
    prices = {name: [1.0, 2.0, 3.0] for name in ("open", "high", "low", "close", "volume")}
    symbols = pa.array(["B", "A", "B"]).dictionary_encode()
    dates = pa.array([18264, 18264, 18265], pa.date32())
    pq.write_table(pa.table({"symbol": symbols, "date": dates, **prices}), tmp_path / "bars.parquet")
    a, b = parquet_bars.read(tmp_path / "bars.parquet")
    assert (a.symbol, a.close.tolist(), b.symbol, b.close.tolist()) == ("A", [2.0], "B", [1.0, 3.0])


def test_locations_that_are_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="does not exist"):
        location.read(str(tmp_path / "nothing.csv"))
    with pytest.raises(InvalidRequestError, match="is a folder without CSV or Parquet files"):
        location.read(str(tmp_path))
    with pytest.raises(InvalidRequestError, match=r"notes\.txt. is none of \.csv, \.parquet, \.pq"):
        location.read(str(write(tmp_path / "notes.txt", "x")))
    write(tmp_path / "A.csv", "")
    with pytest.raises(InvalidRequestError, match=r"A\.csv is empty"):
        location.read(str(tmp_path))


def test_the_bundled_tape() -> None:
    total, quotes = location.quotes("bokeh", tape="run-1")
    played = list(quotes)
    assert total == len(played) == 12_154
    assert [(q.event_time, q.symbol) for q in played] == sorted((q.event_time, q.symbol) for q in played)
    assert {(q.tape, q.source, q.currency) for q in played} == {("run-1", "quandl_wiki", "USD")}
    total, quotes = location.quotes("bokeh", tape="run-1", symbols=["IBM", "FB"])
    assert {q.symbol for q in quotes} == {"FB", "IBM"}
    with pytest.raises(InvalidRequestError, match="bokeh does not hold TSLA"):
        location.quotes("bokeh", tape="run-1", symbols=["IBM", "TSLA"])
