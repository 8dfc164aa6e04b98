"""What analysts decided, from the lake's change log: `changes/dt=YYYY-MM-DD/part-<first>-<last>.parquet`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.archive.errors import unreadable
from services.archive.filesystem import explain, open_filesystem
from services.archive.lake import part_paths
from services.domain.alert import AlertState, Disposition
from services.domain.errors import NotConfiguredError

_FOLDER = "changes"
_COLUMNS = ["sequence", "alert_id", "tape", "state", "disposition", "change_time", "peak_score"]


@dataclass(frozen=True, slots=True)
class Decision:
    """A closed alert: what was decided, and when. `peak_score` is the alert's."""

    alert_id: str
    disposition: Disposition
    peak_score: float
    time: datetime


def read_decisions(location: str, tape: str) -> dict[str, Decision]:
    """The closed alerts of a tape by alert_id; none when the lake has no changes yet.

    Raises: InvalidRequestError naming a damaged part.
    """
    try:
        filesystem, root = open_filesystem(location)
        paths = part_paths(filesystem, f"{root.removesuffix('/quotes')}/{_FOLDER}")
    except (OSError, NotConfiguredError) as error:
        raise unreadable(location, f"cannot be read: {explain(error, location)}") from error
    newest: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            with filesystem.open_input_file(path) as source:
                rows = pq.ParquetFile(source).read(columns=_COLUMNS).to_pylist()
        except (pa.ArrowException, KeyError, OSError) as error:
            raise unreadable(path, f"is not a part of a lake's change log: {error}") from error
        for row in rows:
            known = newest.get(row["alert_id"])
            if row["tape"] == tape and (known is None or known["sequence"] < row["sequence"]):
                newest[row["alert_id"]] = row
    return {
        alert_id: Decision(alert_id, Disposition[row["disposition"]], row["peak_score"], row["change_time"])
        for alert_id, row in newest.items()
        if row["state"] == AlertState.CLOSED.name
    }
