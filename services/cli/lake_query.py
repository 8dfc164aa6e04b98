"""`tapewatch lake query`: SQL over the lake's Parquet, wherever it is."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.dataset as ds
from pyarrow import fs
from rich.console import Console
from rich.table import Table

from services.archive import lake
from services.archive.errors import unreadable
from services.archive.filesystem import explain, open_filesystem
from services.domain.errors import DependencyUnavailableError, NotConfiguredError, TapewatchError
from services.gateway.lake import CHANGES_SCHEMA
from services.runtime.errors import exit_code_of
from services.runtime.exit_codes import EXIT_FAILED, EXIT_MISCONFIGURED

if TYPE_CHECKING:
    import duckdb

TABLES = {"quotes": lake.SCHEMA, "changes": CHANGES_SCHEMA}
"""What a query may name: every scored quote, and every alert after each of its changes."""

_DAY = pa.field("dt", pa.string())
_OR_EMPTY = ", or nothing was written to it yet (the gateway writes each LAKE_FLUSH_SECONDS)"


def open_lake(location: str) -> "duckdb.DuckDBPyConnection":
    """A database with the lake's tables, `dt` among their columns; it reaches nothing but the lake.

    Raises: NotConfiguredError when DuckDB is missing or the location unknown; InvalidRequestError when there is
    nothing at it; DependencyUnavailableError when the lake cannot be read.
    """
    try:
        import duckdb
    except ImportError as error:
        raise NotConfiguredError(
            "a query of the lake needs DuckDB", "install it with pip install -e '.[lake]'"
        ) from error
    filesystem, root = open_filesystem(location, "LAKE_URI")
    connection = duckdb.connect(":memory:", config={"enable_external_access": "false"})
    try:
        # The paths, not the folders: what a killed writer left behind is no part.
        parts = {name: lake.part_paths(filesystem, f"{root}/{name}") for name in TABLES}
        # An empty lake has a folder; where there is none, the name is wrong.
        if not any(parts.values()) and filesystem.get_file_info(root).type is fs.FileType.NotFound:
            raise unreadable(
                location, "does not exist" + (_OR_EMPTY if isinstance(filesystem, fs.S3FileSystem) else "")
            )
        for name, schema in TABLES.items():
            connection.register(name, _dataset(filesystem, f"{root}/{name}", parts[name], schema))
    except (OSError, pa.ArrowException) as error:
        raise DependencyUnavailableError("lake", explain(error, location)) from error
    return connection


def _dataset(filesystem: fs.FileSystem, folder: str, paths: Sequence[str], schema: pa.Schema) -> Any:
    columns = schema.append(_DAY)
    if not paths:
        return columns.empty_table()
    return ds.dataset(
        list(paths),
        schema=columns,
        format="parquet",
        filesystem=filesystem,
        partitioning=ds.partitioning(pa.schema([_DAY]), flavor="hive"),
        partition_base_dir=folder,
    )


def query(location: str, sql: str, how: str, console: Console) -> int:
    """Print what the SQL selects, as `table`, `csv` or `json`. The exit code."""
    try:
        connection = open_lake(location)
    except TapewatchError as error:
        print(f"tapewatch: {error.message}", file=sys.stderr)
        return exit_code_of(error)
    import duckdb

    try:
        found = connection.sql(sql)
        rows = found.to_arrow_table() if found is not None else None
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        print(f"tapewatch: {error}", file=sys.stderr)
        # What the SQL says is wrong, or it wants what a query of the lake may not reach.
        refused = isinstance(error, duckdb.ProgrammingError | duckdb.PermissionException)
        return EXIT_MISCONFIGURED if refused else EXIT_FAILED
    finally:
        connection.close()
    if rows is not None:
        _show(rows, how, console)
    return 0


def _show(rows: pa.Table, how: str, console: Console) -> None:
    if how == "csv":
        csv.write_csv(rows, sys.stdout.buffer)
    elif how == "json":
        for row in rows.to_pylist():
            print(json.dumps(row, default=str, ensure_ascii=False))
    else:
        table = Table(*rows.column_names)
        for row in rows.to_pylist():
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)
        console.print(f"{rows.num_rows:,} rows")
