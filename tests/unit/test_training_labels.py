"""Decided bars: from the file that calibration exports into the rows that training learns from."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.progress import Progress

from services.archive import bokeh
from services.archive.benchmark import benchmarks
from services.cli.calibration_files import LABELS_SCHEMA
from services.domain.errors import InvalidRequestError
from services.domain.typology import Typology
from services.training import dataset
from services.training.fit import Training
from services.training.injection import MANIPULATED, NORMAL
from services.training.labels import Labels, decided

APPLE = next(bars for bars in bokeh.read() if bars.symbol == "AAPL")
_NAMES = ("tape", "symbol", "interval_seconds", "event_time", "label", "typology")


def row(position: int, label: int, typology: str = "PRICE_SPIKE", **fields: Any) -> dict[str, Any]:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(APPLE.event_time[position].astype(np.int64)))
    given = ("run", "AAPL", APPLE.interval_seconds, moment, label, typology)
    return dict(zip(_NAMES, given, strict=True)) | fields


def write(path: Path, *rows: dict[str, Any]) -> Path:
    schema = pa.schema([LABELS_SCHEMA.field(name) for name in _NAMES])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path


def test_confirmed_and_dismissed_bars_become_rows_of_their_own_bars(tmp_path: Path) -> None:
    file = write(
        tmp_path / "labels.parquet", row(200, 1), row(300, 0, "UNSPECIFIED"), row(10, 1), row(400, 1, tape="canary")
    )
    labels = Labels.read(file)
    assert len(labels) == 3
    rows = decided(labels, bokeh.read(), benchmarks(bokeh.read())[APPLE.interval_seconds])
    assert rows.position.tolist() == [200, 300]  # 10 has too little history
    assert rows.label.tolist() == [MANIPULATED, NORMAL]
    assert rows.typology.tolist() == [Typology.PRICE_SPIKE, Typology.UNSPECIFIED]
    plain = dataset.untouched([APPLE])
    np.testing.assert_array_equal(rows.features, plain.features[[200 - dataset.LEAD, 300 - dataset.LEAD]])
    assert np.flatnonzero(labels.among([APPLE], plain)).tolist() == [200 - dataset.LEAD, 300 - dataset.LEAD]


def test_the_last_decision_on_a_bar_counts_and_another_file_is_another_training(tmp_path: Path) -> None:
    once = Labels.read(write(tmp_path / "a.parquet", row(200, 1)))
    twice = Labels.read(write(tmp_path / "b.parquet", row(200, 1), row(200, 0)))
    assert [confirmed for confirmed, _ in twice.of(APPLE).values()] == [False]
    assert once.digest != twice.digest


def test_a_training_tells_how_many_decisions_it_learns_from(tmp_path: Path) -> None:
    def told(*rows: dict[str, Any]) -> str:
        said: list[str] = []
        file = write(tmp_path / "labels.parquet", *rows)
        with Progress(disable=True) as progress:
            Training(
                ["bokeh"],
                seed=1,
                epochs=1,
                passes=1,
                members=1,
                progress=progress,
                labels=file,
                tell=lambda words, _: said.append(words),
            )
        return said[-1].removeprefix(f"{file}: ")

    good = row(200, 1), row(300, 0, "UNSPECIFIED")
    assert told(*good) == "2 of 2 decisions learnt"
    reason = "on bars that no --data holds, of symbols left out, or with fewer than 60 before them"
    assert told(*good, row(10, 1), row(200, 1, symbol="OTHER")) == f"2 of 4 decisions learnt; the others are {reason}"
    assert told(row(200, 1, symbol="OTHER")) == f"0 of 1 decisions learnt; they are {reason}"


@pytest.mark.parametrize(
    ("rows", "words"), [([row(200, 3)], "row 1 has label 3"), ([row(200, 1, "HOAX")], "typology 'HOAX'")]
)
def test_a_row_that_says_nothing_known_is_refused_with_its_number(
    tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        Labels.read(write(tmp_path / "labels.parquet", *rows))


def test_a_file_that_is_no_export_is_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"symbol": ["A"]}), tmp_path / "other.parquet")
    with pytest.raises(InvalidRequestError, match=r"other\.parquet lacks tape"):
        Labels.read(tmp_path / "other.parquet")
    (tmp_path / "empty.parquet").write_bytes(b"")
    with pytest.raises(InvalidRequestError, match=r"empty\.parquet is not a readable"):
        Labels.read(tmp_path / "empty.parquet")
    with pytest.raises(InvalidRequestError, match=r"missing\.parquet"):
        Labels.read(tmp_path / "missing.parquet")
