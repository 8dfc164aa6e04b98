"""The lake on a file system that pyarrow knows: a local folder, or S3 by URI."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from services.archive import lake as layout
from services.archive.filesystem import explain, is_lasting, make_folder, open_filesystem
from services.domain.alert import AlertChange
from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.domain.score import RecordedQuote
from services.runtime.durable_file import WRITING, replacing

_TIME = pa.timestamp("us", tz="UTC")
_CHANGE_FIELDS: "list[tuple[str, pa.DataType]]" = [
    ("sequence", pa.int64()),
    ("kind", pa.string()),
    ("change_time", _TIME),
    ("quote_id", pa.string()),
    ("alert_id", pa.string()),
    ("tape", pa.string()),
    ("source", pa.string()),
    ("symbol", pa.string()),
    ("interval_seconds", pa.int32()),
    ("typology", pa.string()),
    ("state", pa.string()),
    ("disposition", pa.string()),
    ("assignee", pa.string()),
    ("first_event_time", _TIME),
    ("last_event_time", _TIME),
    ("detection_count", pa.int32()),
    ("peak_score", pa.float64()),
    ("peak_quote_id", pa.string()),
    ("summary", pa.string()),
]
_CHECK = "write-check"
"""What `check` writes, beside the folders of parts."""

CHANGES_SCHEMA = pa.schema(_CHANGE_FIELDS)
"""An alert after each of its changes, as `changes/dt=YYYY-MM-DD/part-<first>-<last>.parquet`."""


def _change_row(change: AlertChange) -> dict[str, Any]:
    alert = change.alert
    own = {"sequence", "kind", "change_time", "quote_id", "typology", "state", "disposition"}
    row = {name: getattr(alert, name) for name in CHANGES_SCHEMA.names if name not in own}
    return row | {
        "sequence": change.sequence,
        "kind": change.kind.name,
        "change_time": change.change_time,
        "quote_id": change.quote_id,
        "typology": alert.typology.name,
        "state": alert.state.name,
        "disposition": alert.disposition.name,
    }


class FileSystemLake:
    """A `Lake` below `uri`: a folder's path or a file system URI.

    Readers see whole parts only.

    Raises: NotConfiguredError when the URI cannot be understood.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._filesystem, self._root = open_filesystem(uri, "LAKE_URI")

    def check(self) -> None:
        """Write an empty file at the root: another look would not show that parts can be written."""
        path = f"{self._root}/{_CHECK}"
        try:
            make_folder(self._filesystem, self._root)
            with self._filesystem.open_output_stream(path):
                pass
            if isinstance(self._filesystem, fs.LocalFileSystem):
                Path(path).unlink(missing_ok=True)  # on S3 it stays: to delete is a permission that nothing else needs
        except (OSError, pa.ArrowException) as error:
            why = explain(error, self._uri)
            if is_lasting(error):
                raise NotConfiguredError(
                    f"the lake cannot be written: {why}", "set LAKE_URI to another place, or to none, or mend that"
                ) from error
            raise DependencyUnavailableError("lake", why, retry_delay_seconds=2.0) from error

    def write_quotes(self, quotes: Sequence[RecordedQuote]) -> None:
        """One part per UTC day of recording."""
        self._write(layout.parts(quotes))

    def write_changes(self, changes: Sequence[AlertChange]) -> None:
        """One part per UTC day of change."""
        by_day: dict[str, list[AlertChange]] = defaultdict(list)
        for change in changes:
            by_day[change.change_time.astimezone(UTC).date().isoformat()].append(change)
        self._write(
            {
                layout.part_path(day, rows[0].sequence, rows[-1].sequence, folder="changes"): pa.Table.from_pylist(
                    [_change_row(row) for row in rows], schema=CHANGES_SCHEMA
                )
                for day, rows in by_day.items()
            }
        )

    def _write(self, parts: Mapping[str, pa.Table]) -> None:
        try:
            for path, table in parts.items():
                make_folder(self._filesystem, f"{self._root}/{path}".rpartition("/")[0])
                if isinstance(self._filesystem, fs.LocalFileSystem):
                    _replace(Path(self._root) / path, table)
                else:  # an object appears whole, when it is closed
                    pq.write_table(table, f"{self._root}/{path}", filesystem=self._filesystem, compression="zstd")
        except (OSError, pa.ArrowException) as error:
            raise DependencyUnavailableError("lake", explain(error, self._uri), retry_delay_seconds=2.0) from error


def _replace(target: Path, table: pa.Table) -> None:
    """Write the file so that readers see all of it or nothing, and that it is on disk before progress is noted.

    What a killed writer of this very part left behind is removed.
    """
    with replacing(target) as file:
        pq.write_table(table, file, compression="zstd")
    for left_behind in target.parent.glob(f"{target.name}.*{WRITING}"):
        left_behind.unlink(missing_ok=True)
