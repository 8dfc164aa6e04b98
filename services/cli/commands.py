"""What a user of `tapewatch` calls: the mesh on this machine, and its tools. `services.cli.main` is the entry point."""

import asyncio
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from services.cli.alert_commands import alerts_app
from services.cli.arguments import (
    Address,
    Feed,
    HowScored,
    Interval,
    Location,
    Scorers,
    Source,
    Speed,
    Symbols,
    host_port,
    mode_of,
    moment,
    split,
    up_options,
)
from services.cli.console import make_console
from services.cli.service_commands import dispatch_app, gateway_app, ingest_app, lake_app, model_app, scorer_app
from services.cli.settings import MeshSettings
from services.domain.errors import TapewatchError
from services.domain.threshold import PER_500_SYMBOL_DAYS, PER_DAY
from services.runtime.errors import exit_code_of
from services.runtime.exit_codes import EXIT_FAILED, EXIT_MISCONFIGURED

app = typer.Typer(
    name="tapewatch",
    help="Watches the market tape and raises explained alerts while manipulation is still happening.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, group in (
    ("ingest", ingest_app),
    ("dispatch", dispatch_app),
    ("scorer", scorer_app),
    ("gateway", gateway_app),
    ("model", model_app),
    ("alerts", alerts_app),
    ("lake", lake_app),
):
    app.add_typer(group, name=name)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands whose options are defined where the work is."""


class BudgetUnit(StrEnum):
    """What an alert budget counts."""

    PER_DAY = PER_DAY
    PER_500_SYMBOL_DAYS = PER_500_SYMBOL_DAYS


_MINISTACK = Path(".cache/servers/ministack/bin/ministack")
_LOCAL_ZIP = Path("dist/dispatch-lambda-local.zip")


@app.command("run")
def run_command(
    location: Location = "bokeh", symbols: Symbols = "", scorers: Scorers = 1, mode: HowScored = None
) -> None:
    """Replay a tape through the whole mesh on this machine, then end with a summary. Goes on where it was stopped."""
    from services.cli.run import run

    console = make_console()
    raise SystemExit(asyncio.run(run(MeshSettings(), location, split(symbols), scorers, mode_of(mode), console)))


@app.command("up")
def up_command(
    source: Feed = Source.REPLAY,
    location: Location = "bokeh",
    symbols: Symbols = "",
    interval: Interval = 60,
    speed: Speed = 0.0,
    scorers: Scorers = 1,
    mode: HowScored = None,
) -> None:
    """Start the whole mesh on this machine and keep it up until Ctrl-C."""
    from services.cli.run import up

    options = up_options(source, location, symbols, interval, speed, scorers, mode)
    raise SystemExit(asyncio.run(up(MeshSettings(), options, make_console())))


@app.command("up-aws-local")
def up_aws_local_command(
    source: Feed = Source.REPLAY,
    location: Location = "bokeh",
    symbols: Symbols = "",
    interval: Interval = 60,
    speed: Speed = 0.0,
    scorers: Scorers = 1,
    ministack: Annotated[Path, typer.Option(help="The ministack program.")] = _MINISTACK,
    mode: HowScored = None,
    function: Annotated[Path, typer.Option(help="The dispatch Lambda's zip, for this machine.")] = _LOCAL_ZIP,
    port: Annotated[int, typer.Option(min=1, max=65535, help="ministack's port, on loopback.")] = 4566,
) -> None:
    """Start the whole mesh on SQS, Lambda, DynamoDB, S3 and AppSync Events, with ministack for AWS, until Ctrl-C."""
    from services.cli.aws_local import up_aws_local

    options = up_options(source, location, symbols, interval, speed, scorers, mode)
    raise SystemExit(up_aws_local(ministack, function, port, options, make_console()))


@app.command("watch")
def watch_command(
    gateway: Address = "",
    symbols: Symbols = "",
    tape: Annotated[str, typer.Option(help="Only this tape; empty takes all.")] = "",
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Only alerts with at least this peak score.")] = 0.0,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the oldest change kept.")] = False,
    resume_token: Annotated[str, typer.Option(help="Go on after this token.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per change, with its resume token.")] = False,
) -> None:
    """Show alerts live from any gateway, across disconnects."""
    from services.cli.watch import watch

    settings = MeshSettings()
    address = gateway or settings.gateway_address
    with_symbols = split(symbols)
    asyncio.run(watch(address, settings, with_symbols, tape, min_score, from_start, resume_token, as_json))


@app.command("health")
def health_command(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", callback=host_port, help="The server to ask.")],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 3.0,
    service: Annotated[
        str, typer.Option(help="A health name, e.g. `tapewatch.canary` of dispatch; empty asks for the whole server.")
    ] = "",
) -> None:
    """Exit with 0 when the server is serving, with 1 when it is not, with 2 when it has no such name.

    A container's health check; why something is not serving the server says only to callers with its token.
    """
    from services.runtime.health import address_health

    try:
        health = asyncio.run(address_health(address, MeshSettings(), timeout, service))
    except TapewatchError as error:
        print(f"tapewatch health: {address}: {error.message}", file=sys.stderr)
        raise SystemExit(exit_code_of(error)) from error
    subject = f"{address} {service}".rstrip()
    print(f"{subject}: {health.words}")
    raise SystemExit(0 if health.serving else EXIT_FAILED)


@app.command("secret-files")
def secret_files_command() -> None:
    """Write TLS_CERT_PEM, TLS_KEY_PEM and TLS_CA_PEM to TLS_CERT_FILE, TLS_KEY_FILE and TLS_CA_FILE.

    For a container that runs before a service where secrets come as variables, as on ECS.
    """
    from services.runtime.secret_files import write_secret_files

    try:
        written = write_secret_files(os.environ)
    except TapewatchError as error:
        print(f"tapewatch secret-files: {error.message}", file=sys.stderr)
        raise SystemExit(EXIT_MISCONFIGURED) from error
    print("\n".join(map(str, written)))


@app.command("replay")
def replay_command(
    location: Location = "bokeh",
    tape: Annotated[str, typer.Option(help="Tape to play on; empty makes a new one. An interrupted one goes on.")] = "",
    symbols: Symbols = "",
    speed: Annotated[float, typer.Option(min=0, help="Event time over wall time; 0 is as fast as possible.")] = 0.0,
    start: Annotated[
        str, typer.Option(help="First event time, as 2026-11-20 or 2026-11-20T14:30Z; no zone: UTC.")
    ] = "",
    end: Annotated[str, typer.Option(help="Event time to end before, written alike.")] = "",
    ingest: Annotated[
        str, typer.Option("--ingest", callback=host_port, help="Ingest's host:port; empty takes INGEST_ADDRESS.")
    ] = "",
) -> None:
    """Replay an archive or a file through a running mesh, on a tape of its own."""
    from services.cli.replay import replay

    first, before = moment(start, "--start"), moment(end, "--end")
    settings = MeshSettings()
    address = ingest or settings.ingest_address
    raise SystemExit(
        asyncio.run(replay(address, settings, location, tape, split(symbols), speed, first, before, make_console()))
    )


@app.command("canary")
def canary_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Which; none means all.")] = None,
    deadline: Annotated[
        float, typer.Option(min=1, help="Seconds that an alert may take: 120 where scorers run, 1800 in task mode.")
    ] = 120.0,
) -> None:
    """Play known manipulations through a running mesh. Exits with 1 unless each alerts in time."""
    from services.cli.canary import canary

    raise SystemExit(asyncio.run(canary(MeshSettings(), names or [], deadline, make_console())))


@app.command("calibrate")
def calibrate_command(
    location: Annotated[
        str, typer.Option("--from", help="A lake, or `gateway`; empty takes the lake of the mesh on this machine.")
    ] = "",
    tape: Annotated[str, typer.Option(help="Tape; empty takes `live`, or the lake's only one.")] = "",
    budget: Annotated[float, typer.Option(min=0, help="Alerts that analysts have time for, in the unit.")] = 1.0,
    unit: Annotated[BudgetUnit, typer.Option(help="Alerts per 500 symbols and day, or alerts a day.")] = (
        BudgetUnit.PER_500_SYMBOL_DAYS
    ),
    model_version: Annotated[
        str, typer.Option(help="Whose scores; empty takes the only one there, or that which serves.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="Threshold file; default threshold-VERSION.json in TAPEWATCH_DIR.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of the trade-off; default in TAPEWATCH_DIR.")] = None,
    sample: Annotated[Path | None, typer.Option(help="CSV of bars below the line; default in TAPEWATCH_DIR.")] = None,
    sample_size: Annotated[int, typer.Option(min=0, help="Bars in the sample below the line.")] = 50,
    seed: Annotated[int, typer.Option(help="Decides the sample.")] = 1,
    reviewed: Annotated[Path | None, typer.Option(help="A sample whose `disposition` column is filled in.")] = None,
    export_labels: Annotated[
        Path | None, typer.Option(help="Write every bar that was decided, labelled, as Parquet for training.")
    ] = None,
    reload: Annotated[
        bool,
        typer.Option("--reload", help="Let the running scorers take the threshold now, and serve --model-version."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the trade-off, set nothing.")] = False,
) -> None:
    """Set the threshold by an alert budget, from recorded scores and analysts' decisions."""
    from services.cli.calibrate import CalibrateOptions, calibrate

    options = CalibrateOptions(
        location=location,
        tape=tape,
        budget=budget,
        unit=unit.value,
        model_version=model_version,
        output=output,
        plot=plot,
        sample=sample,
        sample_size=sample_size,
        seed=seed,
        reviewed=reviewed,
        export_labels=export_labels,
        reload=reload,
        dry_run=dry_run,
    )
    raise SystemExit(asyncio.run(calibrate(MeshSettings(), options, make_console())))


@app.command("doctor")
def doctor_command() -> None:
    """Show what is configured, reachable, missing. Exits with 1 when something must be mended."""
    from services.cli.doctor import doctor

    raise SystemExit(asyncio.run(doctor(MeshSettings(), make_console())))


@app.command("cost")
def cost_command(
    symbols: Annotated[int, typer.Option(min=1, help="Symbols watched.")] = 29,
    interval: Annotated[float, typer.Option(min=1, help="Seconds between a symbol's quotes.")] = 60.0,
    hours: Annotated[float, typer.Option(min=0.1, max=24, help="Market hours a day.")] = 6.5,
    days: Annotated[float, typer.Option(min=1, max=31, help="Market days a month.")] = 21.0,
    batch: Annotated[int, typer.Option(min=1, help="Messages in one task's batch.")] = 10,
    off_hours_scorers: Annotated[
        int, typer.Option(min=0, help="Warm scorers outside market hours, as scorer.off_hours_minimum.")
    ] = 1,
    region: Annotated[
        str, typer.Option(help="Region: eu-central-1 or us-east-1; others with a table of your own (--prices).")
    ] = "eu-central-1",
    prices: Annotated[
        Path | None, typer.Option(help="Your own price table (JSON), in the form of services/costs/prices.json.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw cost over load into this file (.png, .svg).")] = None,
) -> None:
    """What a month on AWS costs: warm, polling, task per batch, task per message; which to choose."""
    from services.cli.cost import cost
    from services.costs.model import Load
    from services.domain.errors import TapewatchError

    load = Load(symbols, interval, hours, days, batch_messages=batch, off_hours_scorers=off_hours_scorers)
    try:
        raise SystemExit(cost(load, region, prices, plot, make_console()))
    except TapewatchError as error:
        print(f"tapewatch cost: {error.message}", file=sys.stderr)
        raise SystemExit(EXIT_MISCONFIGURED) from None


@app.command("train", context_settings=_PASS_ON, add_help_option=False)
def train_command(context: typer.Context) -> None:
    """Train a model version; `tapewatch train --help` lists its options."""
    from services.training.train import app as train

    train(context.args, prog_name="tapewatch train")


@app.command("evaluate", context_settings=_PASS_ON, add_help_option=False)
def evaluate_command(context: typer.Context) -> None:
    """Measure a model version and write its card; `tapewatch evaluate --help` lists its options."""
    from services.training.evaluate import app as evaluate

    evaluate(context.args, prog_name="tapewatch evaluate")


@app.command("settings")
def settings_command() -> None:
    """Print every setting of every service as a Markdown table: README's."""
    from services.cli.settings_table import table

    print(table())
