"""What calibration leaves for analysts and for training: the below-the-line sample, and labelled bars."""

import csv
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.archive import lake
from services.archive.lake_decisions import Decision
from services.cli.score_archive import ScoreArchive
from services.domain.alert import Disposition
from services.domain.errors import FieldViolation, InvalidRequestError
from services.domain.quote import format_time

_SAMPLE_COLUMNS = ["quote_id", "symbol", "event_time", "open", "high", "low", "close", "volume", "ensemble"]
_DISPOSITION = "disposition"
FROM_ALERT = "alert"
FROM_SAMPLE = "below-the-line"
_LABEL_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("disposition", pa.string(), nullable=False),
    pa.field("label", pa.int8(), nullable=False),
    pa.field("label_origin", pa.string(), nullable=False),
    pa.field("label_time", pa.timestamp("us", tz="UTC")),
]
LABELS_SCHEMA = pa.schema([*lake.SCHEMA, *_LABEL_FIELDS])
"""A bar as in the lake, with what an analyst decided: `label` 1 for CONFIRMED, 0 for DISMISSED.

`label_origin` is "alert" for a detection of a closed alert (its alert's disposition is that of all its detections), or
"below-the-line" for a reviewed bar of the sample, whose `label_time` is null.
"""


def write_sample(path: Path, archive: ScoreArchive, rows: NDArray[np.int64]) -> None:
    """The sampled bars as CSV, with an empty `disposition` for the analyst to fill in: CONFIRMED or DISMISSED."""
    sample = archive.table.select(_SAMPLE_COLUMNS).take(rows).to_pylist()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_SAMPLE_COLUMNS, _DISPOSITION])
        writer.writeheader()
        for row in sample:
            moment: datetime = row["event_time"]
            writer.writerow({**row, "event_time": format_time(moment), _DISPOSITION: ""})


def read_reviewed(path: Path) -> dict[str, Disposition]:
    """The decisions in a sample's CSV, by quote_id; bars that nobody decided are left out.

    Raises: InvalidRequestError naming file and line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    reviewed = {}
    for line, row in enumerate(rows, 2):
        if row.get("quote_id") is None or row.get(_DISPOSITION) is None:
            raise _unreadable(path, f"line {line} lacks quote_id or {_DISPOSITION}")
        decided = row[_DISPOSITION].strip().upper()
        if not decided:
            continue
        if decided not in (Disposition.CONFIRMED.name, Disposition.DISMISSED.name):
            raise _unreadable(path, f"line {line} has disposition {decided!r}; CONFIRMED and DISMISSED are known")
        reviewed[row["quote_id"]] = Disposition[decided]
    return reviewed


def _unreadable(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("reviewed", f"{path}: {why}")])


def labelled(archive: ScoreArchive, reviewed: dict[str, Disposition]) -> pa.Table:
    """Every bar with a decision, rows of LABELS_SCHEMA in the archive's order."""
    rows = []
    for row in _decided(archive.table, archive.decisions, reviewed):
        decision = archive.decisions.get(row["alert_id"])
        disposition = decision.disposition if decision is not None else reviewed[row["quote_id"]]
        rows.append(
            {
                **row,
                "disposition": disposition.name,
                "label": int(disposition is Disposition.CONFIRMED),
                "label_origin": FROM_ALERT if decision is not None else FROM_SAMPLE,
                "label_time": None if decision is None else decision.time,
            }
        )
    return pa.Table.from_pylist(rows, schema=LABELS_SCHEMA)


def _decided(table: pa.Table, decisions: dict[str, Decision], reviewed: dict[str, Disposition]) -> Iterable[Any]:
    ids = zip(table["alert_id"].to_pylist(), table["quote_id"].to_pylist(), strict=True)
    chosen = [i for i, (alert_id, quote_id) in enumerate(ids) if alert_id in decisions or quote_id in reviewed]
    return table.take(np.array(chosen, dtype=np.int64)).to_pylist()


def write_labels(path: Path, table: pa.Table) -> None:
    """Write the labelled bars."""
    pq.write_table(table, path, compression="zstd")
