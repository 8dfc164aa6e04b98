"""What a training says of the bars that it does not use."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.archive.bars import Bars
from services.archive.problems import Problem, by_kind
from services.domain.errors import InvalidRequestError
from services.training.sources import Source, read_sources
from tests.daily_bars import series


def write(path: Path, *history: Bars) -> Path:
    columns = {
        "symbol": pa.array([bars.symbol for bars in history for _ in range(len(bars))]),
        "date": pa.array(np.concatenate([bars.event_time for bars in history])),
    }
    for name in ("open", "high", "low", "close", "volume"):
        columns[name] = pa.array(np.concatenate([getattr(bars, name) for bars in history]))
    pq.write_table(pa.table(columns), path)
    return path


def told(*locations: Path, calibration: Sequence[str] = ()) -> tuple[list[Source], list[tuple[str, list[str]]]]:
    said: list[tuple[str, list[str]]] = []
    found = read_sources(
        [str(location) for location in locations],
        calibration,
        lambda words, counted: said.append((words, list(counted))),
    )
    return found, said


def test_each_symbol_that_is_not_used_is_named_with_its_reason(tmp_path: Path) -> None:
    long = [series(400, i, symbol=f"S{i}") for i in range(3)]
    short = [series(122, i, symbol=f"T{i}") for i in range(5)]
    minutes = replace(long[0], symbol="MIN", event_time=np.datetime64("2024-01-02", "us") + np.arange(400) * 60_000_000)
    index = replace(long[0], symbol="^X", volume=np.zeros(400))
    apple = replace(long[0], symbol="AAPL")
    path = write(tmp_path / "bars.parquet", *long, *short, minutes, index, apple)
    (source,), said = told(path)
    assert [bars.symbol for bars in source.history] == ["S0", "S1", "S2"]
    assert said == [
        (f"{path}: 5 symbols left out, fewer than 123 bars: T0, T1, T2 and 2 more", ["T3", "T4"]),
        (f"{path}: 1 symbol left out, volume in less than a tenth of the bars: ^X", []),
        (
            f"{path}: 1 symbol left out, never trained on where there are others, because `make run` replays them: "
            "AAPL",
            [],
        ),
        (f"{path}: 1 symbol left out, bars of 60 s, and most are of 86400 s: MIN", []),
        (f"{path}: used 3 of 11 symbols, with bars of 86400 s", []),
    ]


def test_a_symbol_without_bars_in_its_sides_period_is_not_said_to_be_used(tmp_path: Path) -> None:
    late = series(400, 5, symbol="LATE")
    late = replace(
        late, **{n: getattr(late, n)[260:] for n in ("event_time", "open", "high", "low", "close", "volume")}
    )
    path = write(tmp_path / "bars.parquet", *(series(400, i, symbol=f"S{i}") for i in range(40)), late)
    (source,), said = told(path)
    sides = {bars.symbol for side in source.sides.values() for bars in side}
    unused = [bars.symbol for bars in source.history if bars.symbol not in sides]
    assert unused
    assert f"{len(unused)} symbol left out, not more than 61 bars in the period of their side of the split: " in (
        said[0][0].replace("symbols", "symbol")
    )
    assert said[-1][0].endswith(f"used {41 - len(unused)} of 41 symbols, with bars of 86400 s")


def test_the_reasons_are_told_also_when_nothing_is_left(tmp_path: Path) -> None:
    path = write(tmp_path / "bars.parquet", series(100, 1, symbol="A"))
    said: list[str] = []
    with pytest.raises(
        InvalidRequestError, match=r"bars\.parquet has no symbol with more than 122 usable bars"
    ) as raised:
        read_sources([str(path)], tell=lambda words, _: said.append(words))
    assert said == [f"{path}: 1 symbol left out, fewer than 123 bars: A"]
    assert raised.value.violations[0].field == "data"


def test_an_error_names_the_option_that_gave_the_location(tmp_path: Path) -> None:
    good = write(tmp_path / "bars.parquet", series(400, 1, symbol="A"))
    for locations, calibration, field in (
        ([str(tmp_path / "gone.csv")], [], "data"),
        ([str(good)], [str(tmp_path / "gone.csv")], "calibration_data"),
    ):
        with pytest.raises(InvalidRequestError, match=r"gone\.csv' does not exist") as raised:
            read_sources(locations, calibration)
        assert [violation.field for violation in raised.value.violations] == [field]


def test_of_each_kind_of_problem_a_few_are_shown_and_the_others_counted() -> None:
    late = [Problem(f"bars.csv, row {i}", "is late", "A") for i in range(5)]
    files = [Problem(f"{i}.csv", f"lacks column {i}; left out", kind="a file left out") for i in range(4)]
    assert by_kind([late[0], *files, *late[1:]]) == [
        ("bars.csv, row 0: A is late", ()),
        ("bars.csv, row 1: A is late", ()),
        ("bars.csv, row 2: A is late", ()),
        ('and 2 more of the kind "is late"', ["bars.csv, row 3: A is late", "bars.csv, row 4: A is late"]),
        ("0.csv lacks column 0; left out", ()),
        ("1.csv lacks column 1; left out", ()),
        ("2.csv lacks column 2; left out", ()),
        ('and 1 more of the kind "a file left out"', ["3.csv lacks column 3; left out"]),
    ]
