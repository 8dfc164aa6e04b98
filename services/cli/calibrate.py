"""`tapewatch calibrate`: the threshold that an alert budget allows, from recorded scores and analysts' decisions."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from services.cli.calibration_files import labelled, read_reviewed, write_labels, write_sample
from services.cli.calibration_plot import print_trade_off, save_plot, unit_words
from services.cli.model import on_every_scorer, serving_versions
from services.cli.plot_file import open_pyplot
from services.cli.score_archive import ScoreArchive, from_gateway, from_lake
from services.cli.settings import MeshSettings
from services.cli.staged_files import StagedFiles
from services.domain.alert import Disposition
from services.domain.alert_budget import (
    ScoredBars,
    TradeOff,
    below_the_line,
    count_alerts,
    lowest_of_sample,
    threshold_for,
    trade_off,
)
from services.domain.disposition_bands import Band, bands
from services.domain.errors import FieldViolation, InvalidRequestError, NotConfiguredError, TapewatchError
from services.domain.threshold import ThresholdCalibration, threshold_file
from services.runtime.errors import exit_code_of
from services.runtime.exit_codes import EXIT_FAILED
from tapewatch.scorer.v1 import model_service_pb2

if TYPE_CHECKING:
    from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceAsyncStub

GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """What the caller asks for. `location` is a lake, or "gateway"; empty paths take the mesh's folder.

    `export_labels` and `reviewed`, when set, write and read labelled bars. Without `model_version` the version that
    serves is meant. With `reload` the running scorers take the threshold at once, and serve the version; with `dry_run`
    no threshold is set.
    """

    location: str
    tape: str
    budget: float
    unit: str
    model_version: str
    output: Path | None
    plot: Path | None
    sample: Path | None
    sample_size: int
    seed: int
    reviewed: Path | None
    export_labels: Path | None
    reload: bool
    dry_run: bool


async def calibrate(settings: MeshSettings, options: CalibrateOptions, console: Console) -> int:
    """Calibrate, print what it means, write the files. The exit code."""
    try:
        return await _calibrate(settings, options, console)
    except TapewatchError as error:
        console.print(f"tapewatch calibrate: {error.message}", style="bold red", soft_wrap=True, highlight=False)
        return exit_code_of(error)


async def _calibrate(settings: MeshSettings, options: CalibrateOptions, console: Console) -> int:
    folder = settings.tapewatch_dir
    if options.plot is not None:
        open_pyplot(options.plot)  # before anything is written
    everything = await _read(settings, options)
    reviewed = {} if options.reviewed is None else read_reviewed(options.reviewed)
    if options.reviewed is not None:
        there = len(reviewed.keys() & set(everything.column("quote_id")))
        style = "" if there == len(reviewed) else "yellow"
        words = f"{there:,} of {len(reviewed):,} reviewed bars are on tape {everything.tape}"
        console.print(words, style=style, highlight=False)
    with StagedFiles() as files:
        if options.export_labels is not None:
            table = await asyncio.to_thread(labelled, everything, reviewed)
            await asyncio.to_thread(write_labels, files.add(options.export_labels), table)
            console.print(f"{table.num_rows:,} labelled bars → {options.export_labels}", highlight=False)
    version = await _version(settings, options, everything)
    archive = everything.of_model(version)
    bars = await asyncio.to_thread(archive.bars)
    served = archive.served_threshold
    curve = await asyncio.to_thread(trade_off, bars, options.unit, options.budget)
    threshold, expected = threshold_for(curve, options.budget)
    _print_source(console, archive, bars, version)
    print_trade_off(console, curve, options.unit, threshold, options.budget)
    console.print(
        f"threshold {threshold:.6g} gives {expected:.3g} {unit_words(options.unit)} (budget {options.budget:g}); "
        f"{_until_now(archive, bars, options.unit)}",
        highlight=False,
        soft_wrap=True,
    )
    _print_bands(console, bands(_decisions(archive, reviewed), served), served)
    if options.dry_run:
        return 0
    calibration = ThresholdCalibration(
        model_version=version,
        threshold=threshold,
        trained_threshold=await asyncio.to_thread(_trained_threshold, version, served),
        budget=options.budget,
        budget_unit=options.unit,
        expected_alerts=expected,
        source=archive.source,
        tape=archive.tape,
        quotes=len(bars),
        symbol_days=bars.symbol_days,
        create_time=datetime.now(UTC).replace(microsecond=0),
    )
    output = options.output or folder / threshold_file(version)
    sample = options.sample or folder / "below_the_line.csv"
    plot = options.plot or folder / "threshold.png"
    with StagedFiles() as files:
        files.add(output).write_text(calibration.to_json(), encoding="utf-8")
        rows = below_the_line(bars, threshold, options.sample_size, options.seed)
        await asyncio.to_thread(write_sample, files.add(sample), archive, rows)
        no_plot = _try_to_plot(files, plot, curve, options, threshold, served)
    low = lowest_of_sample(threshold)
    console.print(f"{len(rows)} bars with scores from {low:.4g} up to the threshold, to review → {sample}")
    console.print(
        f"no plot: {no_plot}" if no_plot else f"plot → {plot}", style="dim" if no_plot else "", highlight=False
    )
    console.print(f"threshold for model {version} → {output}", highlight=False)
    if options.reload:
        return await _reload(settings, calibration, console)
    loaded = (
        f"scorers take it when they load {version} next: at a start, or by tapewatch model reload, shadow or canary"
    )
    console.print(loaded, style="dim", soft_wrap=True, highlight=False)
    return 0


async def _version(settings: MeshSettings, options: CalibrateOptions, archive: ScoreArchive) -> str:
    """Whose threshold is set: the named version's, else that of the one that serves.

    Raises: InvalidRequestError when that is not clear, or a reload would let another version serve than serves now.
    """
    if options.model_version:
        return options.model_version
    reload = options.reload and not options.dry_run
    serving = await serving_versions(settings) if reload or len(archive.judged()) > 1 else set()
    version = archive.model_version(serving)
    if reload and serving != {version}:
        serves = f"{', '.join(sorted(serving))} serves" if serving else "no scorer answers"
        why = f"would let {version} serve, and {serves}: give --model-version {version} if that is meant"
        raise InvalidRequestError([FieldViolation("reload", why)])
    return version


def _until_now(archive: ScoreArchive, bars: ScoredBars, unit: str) -> str:
    """What the newest threshold in force gives, and how many others there were."""
    served, others = archive.served_threshold, archive.thresholds
    now = count_alerts(bars, served) / bars.exposure(unit)
    if len(others) == 1:
        return f"until now {served:.6g} with {now:.3g}"
    span = f"{len(others)} were in force, from {others[0]:.6g} to {others[-1]:.6g}"
    return f"{span}; the newest, {served:.6g}, would give {now:.3g}"


async def _read(settings: MeshSettings, options: CalibrateOptions) -> ScoreArchive:
    if options.location == GATEWAY:
        return await from_gateway(settings.gateway_address, settings, options.tape)
    location = options.location or str(settings.tapewatch_dir / "lake")
    return await asyncio.to_thread(from_lake, location, options.tape)


def _decisions(archive: ScoreArchive, reviewed: dict[str, Disposition]) -> list[tuple[float, Disposition]]:
    """Of this model's scores: each closed alert at its peak, each reviewed bar at its score."""
    own = set(archive.column("alert_id"))
    decided = [(d.peak_score, d.disposition) for d in archive.decisions.values() if d.alert_id in own]
    scores = zip(archive.column("quote_id"), archive.column("ensemble"), strict=True)
    return decided + [(score, reviewed[quote_id]) for quote_id, score in scores if quote_id in reviewed]


def _print_source(console: Console, archive: ScoreArchive, bars: ScoredBars, version: str) -> None:
    days = len(set(bars.day.tolist()))
    console.print(
        f"{len(bars):,} scores of model {version} on tape {archive.tape} from {archive.source}: "
        f"{bars.symbol_days:,} symbol-days on {days:,} days",
        highlight=False,
        soft_wrap=True,
    )


def _print_bands(console: Console, found: Sequence[Band], served: float) -> None:
    if not any(band.closed for band in found):
        console.print(
            "no alert of these scores is closed yet (tapewatch alerts close): precision by score band follows"
        )
        return
    title = f"decisions by score, threshold until now {served:.4g}"
    table = Table("score", "confirmed", "dismissed", "precision", "95 % interval", title=title, title_justify="left")
    for band in reversed(found):
        precision, interval = band.precision, band.interval
        table.add_row(
            f"{band.low:.4g} – {min(band.high, 1.0):.4g}" + (" (below the line)" if band.high <= served else ""),
            str(band.confirmed),
            str(band.dismissed),
            "" if precision is None else f"{precision:.2f}",
            "" if interval is None else f"{interval[0]:.2f} – {interval[1]:.2f}",
        )
    console.print(table)


def _try_to_plot(
    files: StagedFiles, path: Path, curve: TradeOff, options: CalibrateOptions, threshold: float, served: float
) -> str:
    """Draw the trade-off. Returns why there is no plot; empty when there is one.

    Raises: NotConfiguredError when a plot that was asked for by name cannot be drawn.
    """
    try:
        open_pyplot(path)
    except NotConfiguredError as error:
        if options.plot is not None:
            raise
        return error.message
    save_plot(files.add(path), curve, options.unit, threshold, served, options.budget)
    return ""


def _trained_threshold(version: str, otherwise: float) -> float:
    """The threshold that training set, from the registry here; `otherwise` when the version is not in it."""
    from services.scorer.registry import PACKAGED_MODELS, ModelRegistry
    from services.scorer.settings import ScorerSettings

    try:
        return ModelRegistry(ScorerSettings().model_dir or PACKAGED_MODELS).metadata(version).threshold
    except TapewatchError:
        return otherwise


async def _reload(settings: MeshSettings, calibration: ThresholdCalibration, console: Console) -> int:
    """Let every scorer of the pool read its threshold again. The exit code."""
    elsewhere = []

    async def call(stub: "ModelServiceAsyncStub") -> str:
        request = model_service_pb2.ReloadModelRequest(version=calibration.model_version)
        model = (await stub.ReloadModel(request)).model
        if model.threshold == calibration.threshold:
            return f"judges at {model.threshold:.6g}"
        elsewhere.append(model)
        return f"judges at {model.threshold:.6g}: it reads another THRESHOLD_DIR"

    code = await on_every_scorer(settings, call, console)
    return EXIT_FAILED if elsewhere else code
