"""Commands of one service each: `tapewatch ingest …`, `dispatch …`, `scorer …`, `gateway …`, `model …`, `lake …`."""

import asyncio
import os
from enum import StrEnum
from typing import Annotated

import typer

from services.cli.arguments import host_port
from services.cli.console import make_console
from services.cli.settings import MeshSettings

ingest_app = typer.Typer(help="Sources in, durable quotes in the queue out.", no_args_is_help=True)
dispatch_app = typer.Typer(help="From the queue to a scorer, from the scorer to the gateway.", no_args_is_help=True)
scorer_app = typer.Typer(help="Judges quotes.", no_args_is_help=True)
lake_app = typer.Typer(help="Everything recorded, in Parquet.", no_args_is_help=True)
gateway_app = typer.Typer(help="Keeps quotes, scores, detections and alerts; streams alerts.", no_args_is_help=True)
model_app = typer.Typer(help="Which models judge: reload, shadow, canary, drift.", no_args_is_help=True)


@ingest_app.command("serve")
def ingest_serve() -> None:
    """Serve IngestService, and poll the configured source."""
    from services.ingest.main import main as serve

    raise SystemExit(serve())


@ingest_app.command("create-table")
def ingest_create_table() -> None:
    """Make the progress's DynamoDB table INGEST_TABLE where there is none, for local use."""
    from services.ingest.main import create_table

    raise SystemExit(create_table())


@dispatch_app.command("serve")
def dispatch_serve() -> None:
    """Serve DispatchService, and consume the queue unless EVENT_SOURCE is none."""
    from services.dispatch.main import main as serve

    raise SystemExit(serve())


@dispatch_app.command("dead-letters")
def dispatch_dead_letters(limit: Annotated[int, typer.Option(min=1, help="Most letters to show.")] = 100) -> None:
    """Show messages that can never be scored, with the reason."""
    from services.cli.dead_letters import show

    _use_mesh_queue()
    raise SystemExit(show(limit, make_console()))


class TaskStateName(StrEnum):
    """Where a batch of task mode stands."""

    WAITING = "waiting"
    LAUNCHING = "launching"
    RUNNING = "running"
    RECORDED = "recorded"


@dispatch_app.command("tasks")
def dispatch_tasks(
    state: Annotated[TaskStateName | None, typer.Option(help="Only these; empty shows all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most batches to show.")] = 50,
    address: Annotated[
        str, typer.Option("--dispatch", callback=host_port, help="Dispatch's host:port; empty takes DISPATCH_ADDRESS.")
    ] = "",
) -> None:
    """Show the batches of task mode, newest first: state, attempts, and what is in their way."""
    from services.cli.tasks import tasks

    settings = MeshSettings()
    where = address or settings.dispatch_address
    raise SystemExit(asyncio.run(tasks(settings, where, state.value if state else "", limit, make_console())))


@dispatch_app.command("create-table")
def dispatch_create_table() -> None:
    """Make the ledger's DynamoDB table LEDGER_TABLE where there is none, for local use."""
    from services.dispatch.open import create_table

    raise SystemExit(create_table())


@scorer_app.command("serve")
def scorer_serve() -> None:
    """Serve ScorerService and ModelService; with USE_SQS_DATA_SOURCE also consume the queue."""
    from services.scorer.main import main as serve

    raise SystemExit(serve())


@scorer_app.command("run-once")
def scorer_run_once() -> None:
    """Score and record the batch in BATCH_MARKET_DATA or BATCH_MANIFEST_URI, print a summary, and end."""
    from services.scorer.run_once import main as run_once

    raise SystemExit(run_once())


@model_app.command("list")
def model_list() -> None:
    """Show the versions in the registry, and which cannot judge and why."""
    from services.cli.model import listed

    raise SystemExit(asyncio.run(listed(MeshSettings(), make_console())))


@model_app.command("show")
def model_show() -> None:
    """Show what each scorer judges with, how its candidates do, and whether the tape drifts."""
    from services.cli.model import show

    raise SystemExit(asyncio.run(show(MeshSettings(), make_console())))


@model_app.command("reload")
def model_reload(version: Annotated[str, typer.Argument(help="Empty takes the newest that can judge.")] = "") -> None:
    """Serve a version, and read its threshold again."""
    from services.cli.model import reload

    raise SystemExit(asyncio.run(reload(MeshSettings(), version, make_console())))


@model_app.command("shadow")
def model_shadow(version: Annotated[str, typer.Argument()]) -> None:
    """Let a version judge every quote beside, alerting nothing."""
    from services.cli.model import shadow

    raise SystemExit(asyncio.run(shadow(MeshSettings(), version, make_console())))


@model_app.command("canary")
def model_canary(
    version: Annotated[str, typer.Argument()],
    weight: Annotated[float, typer.Option(help="Share of the series: above 0, at most 1.")] = 0.05,
) -> None:
    """Let a version judge a share of the series for real."""
    from services.cli.model import canary

    raise SystemExit(asyncio.run(canary(MeshSettings(), version, weight, make_console())))


@model_app.command("clear")
def model_clear() -> None:
    """Take shadow and canary away."""
    from services.cli.model import clear

    raise SystemExit(asyncio.run(clear(MeshSettings(), make_console())))


@gateway_app.command("serve")
def gateway_serve() -> None:
    """Serve DetectionService and AlertService, and write the lake."""
    from services.gateway.main import main as serve

    raise SystemExit(serve())


@gateway_app.command("create-table")
def gateway_create_table() -> None:
    """Make the DynamoDB table STORE_TABLE where there is none, for local use."""
    from services.gateway.main import create_table

    raise SystemExit(create_table())


class LakeFormat(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@lake_app.command("query")
def lake_query(
    sql: Annotated[str, typer.Argument(help="SQL over the tables `quotes` and `changes` (DuckDB).")],
    lake: Annotated[str, typer.Option("--lake", help="The lake; empty takes LAKE_URI, else the embedded mesh's.")] = "",
    how: Annotated[LakeFormat, typer.Option("--format", help="How to print rows.")] = LakeFormat.TABLE,
) -> None:
    """Ask the lake in SQL."""
    from services.cli.lake_query import query

    embedded = str(MeshSettings().tapewatch_dir / "lake")
    location = lake or os.environ.get("LAKE_URI") or embedded
    raise SystemExit(query(location, sql, how.value, make_console()))


def _use_mesh_queue() -> None:
    """The embedded mesh's queue, unless another one is configured."""
    os.environ.setdefault("QUEUE_PATH", str(MeshSettings().tapewatch_dir / "queue.db"))
