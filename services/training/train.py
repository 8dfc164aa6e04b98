"""Makes a model version: `python -m services.training.train --data bokeh --output DIR`."""

import hashlib
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.archive import version_folder
from services.domain.errors import TapewatchError
from services.domain.feature_definitions import FEATURE_HASH, FEATURES, WINDOW
from services.domain.model import (
    AUTOENCODER_FILE,
    CLASSIFIER_FILE,
    Calibration,
    FeatureUsual,
    ModelMetadata,
    UsualBars,
    logistic,
)
from services.domain.stability import SCORE
from services.domain.typology import OBSERVABLE
from services.training import calibrate, networks, provenance
from services.training.checkpoint import Checkpoint
from services.training.console import LARGEST_MEMBERS, LARGEST_SEED, MOST_PASSES, refused, teller
from services.training.dataset import Part, Rows
from services.training.fit import ALERTS_PER_SYMBOL_DAY, Training
from services.training.held_out import BUDGET_SHARE, Held, calibrated, held_out, measured, quantisation, unseen

MIN_HISTORY_QUOTES = 30
SCORE_SHARES = 10
"""The score's quantiles that drift is measured against cut untouched validation bars into this many equal parts."""

app = typer.Typer(add_completion=False)
_console = Console(stderr=True, markup=False, emoji=False)  # messages quote what callers and files say


def usual_ranges(normal: Rows) -> tuple[FeatureUsual, ...]:
    """Each feature's 5th percentile, median and 95th percentile on untouched training bars."""
    low, median, high = np.percentile(normal.features.astype(np.float64), [5.0, 50.0, 95.0], axis=0)
    return tuple(
        FeatureUsual(f.name, f"{f.phrase.replace('{value}', 'x')}: {f.description} [{f.unit.value}]", m, lo, hi)
        for f, lo, m, hi in zip(FEATURES, low.tolist(), median.tolist(), high.tolist(), strict=True)
    )


def score_quantiles(held: Held, calibration: Calibration) -> tuple[float, ...]:
    """The score's evenly spaced quantiles on untouched bars."""
    shares = np.arange(1, SCORE_SHARES) / SCORE_SHARES
    found: list[float] = np.quantile(logistic(held.plain.margin(calibration)), shares).tolist()
    return tuple(found)


def describe(training: Training) -> str:
    """What the model was trained on, in a sentence."""
    parts = [
        f"{provenance.words(source)} "
        f"({Path(source.location).stem}{'' if source.trained else ', for the calibration only'})"
        for source in training.sources
    ]
    return (
        f"{'; '.join(parts)}: of each the period of the first 80 % of the bars and 60 % of the symbols (of fewer than "
        f"20 symbols all of them, and 60 % of the bars), with injected manipulations, seed {training.seed}"
    )


def too_few_days(interval_seconds: int, symbol_days: int) -> str:
    """A warning where the alert budget allows not even one alert on the bars that a threshold is set on; else empty."""
    needed = math.ceil(1.0 / (BUDGET_SHARE * ALERTS_PER_SYMBOL_DAY))
    if symbol_days >= needed:
        return ""
    return (
        f"the threshold of {interval_seconds} s bars is set on {symbol_days:,} symbol-days, where the alert budget "
        f"allows not one alert ({needed:,} would allow one): nobody knows how often it alerts. Train on more symbols "
        "or a longer history, or set a threshold later with `tapewatch calibrate`."
    )


def command(training: Training, **files: Path | None) -> str:
    """The command that makes the same version again, and the versions of what it ran on."""
    options = [
        *(f"--data {Path(source.location).name}" for source in training.sources if source.trained),
        *(f"--calibration-data {Path(source.location).name}" for source in training.sources if not source.trained),
        *(f"--{name} {getattr(training, name)}" for name in ("seed", "epochs", "passes", "members")),
        *(f"--{name} {path.name}" for name, path in files.items() if path is not None),
    ]
    return (
        f"tapewatch train {' '.join(options)} (TensorFlow {networks.tensorflow().__version__}, NumPy {np.__version__})"
    )


def run(
    locations: Sequence[str],
    output: Path,
    calibration_locations: Sequence[str] = (),
    *,
    seed: int,
    epochs: int,
    passes: int,
    members: int,
    console: Console,
    labels: Path | None = None,
    sectors: Path | None = None,
    verbose: bool = False,
) -> ModelMetadata:
    """Trains, calibrates, measures and writes a version under `output`; no version is left half-written.

    A run that is stopped leaves its networks in a hidden folder there, and the same run goes on behind the last epoch.

    Args:
        locations: What the networks learn from, one for each bar length.
        output: Folder of model versions.
        calibration_locations: Further ones, of other bar lengths, for the calibration only.
        seed: Decides injection, weights and order.
        epochs: Passes over the rows.
        passes: Injections into the training series.
        members: Networks whose mean is the classifier.
        console: Shows the progress.
        labels: File of bars that analysts decided, to learn from.
        sectors: File of sectors by symbol, whose other symbols are then a symbol's peers.
        verbose: Print each problem of the data, not a few of each kind.

    Raises:
        TapewatchError: The data cannot be used, or TensorFlow is missing.
    """
    networks.tensorflow()
    tell = teller(console, verbose=verbose)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        training = Training(
            locations,
            calibration_locations,
            seed=seed,
            epochs=epochs,
            passes=passes,
            members=members,
            progress=progress,
            labels=labels,
            sectors=sectors,
            tell=tell,
        )
        checkpoint = Checkpoint.of_run(output, training.fingerprint)
        normals = [training.rows(source, Part.TRAIN) for source in training.trained]
        exported = training.networks(normals, checkpoint=checkpoint)
        autoencoder, classifier = exported.autoencoder, exported.classifier
        validation, test = (
            [held_out(training, source, part, autoencoder, classifier) for source in training.sources]
            for part in (Part.VALIDATION, Part.TEST)
        )
        feeds = [unseen(training, source, exported) for source in training.sources]
    calibration, threshold, weight = calibrated(validation, feeds)
    figures = measured(calibration, threshold, test) | quantisation(exported, calibration, test[0])
    for source, kinds in zip(training.sources, feeds, strict=True):
        days = calibrate.symbol_days(kinds[0].rows)
        figures[f"threshold_{source.interval_seconds}s_symbol_days"] = float(days)
        if warning := too_few_days(source.interval_seconds, days):
            tell(warning, ())
    if missing := [name for name, value in figures.items() if not math.isfinite(value)]:
        tell(f"not measured, for want of test bars or events: {', '.join(missing)}", ())
        figures = {name: value for name, value in figures.items() if name not in missing}
    trained_validation = [held for held, source in zip(validation, training.sources, strict=True) if source.trained]
    files = {AUTOENCODER_FILE: autoencoder, CLASSIFIER_FILE: classifier}
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    metadata = ModelMetadata(
        version=f"tw-{training.fingerprint[:10]}",
        usual=tuple(
            UsualBars(source.interval_seconds, usual_ranges(normal), {SCORE: score_quantiles(held, calibration)})
            for source, normal, held in zip(training.trained, normals, trained_validation, strict=True)
        ),
        feature_hash=FEATURE_HASH,
        window_quotes=WINDOW,
        min_history_quotes=MIN_HISTORY_QUOTES,
        threshold=threshold,
        autoencoder_weight=weight,
        calibration=calibration,
        training_fingerprint=training.fingerprint,
        trained_on=describe(training),
        train_time=datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC).replace(microsecond=0),
        metrics=figures,
        checksums={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        typologies=OBSERVABLE,
        trained_by=command(training, labels=labels, sectors=sectors),
    )
    version_folder.write(output, metadata, files)
    checkpoint.discard()
    return metadata


@app.command()
def train(
    data: Annotated[
        list[str] | None,
        typer.Option(
            help='"bokeh" (the default), a CSV or Parquet file, a folder of them, or a lake (folder or s3://…, or one '
            "tape of it, LAKE#TAPE); once for each bar length."
        ),
    ] = None,
    calibration_data: Annotated[
        list[str] | None,
        typer.Option(help="Further data, of other bar lengths, that the networks do not learn from."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of model versions to add one to.")] = Path("models"),
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Decides injection, weights and order.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the rows.")] = 5,
    passes: Annotated[int, typer.Option(min=1, max=MOST_PASSES, help="Injections into the training series.")] = 24,
    members: Annotated[
        int, typer.Option(min=1, max=LARGEST_MEMBERS, help="Networks whose mean is the classifier.")
    ] = 3,
    labels: Annotated[
        Path | None, typer.Option(help="Bars that analysts decided: a file of `tapewatch calibrate --export-labels`.")
    ] = None,
    sectors: Annotated[
        Path | None,
        typer.Option(
            help="CSV file with the columns symbol and sector: a symbol's peers are then its sector's others. Empty "
            "means the symbols that move most like it."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="List each problem of the data.")] = False,
) -> None:
    """Trains a model version on real bars with injected manipulations."""
    try:
        metadata = run(
            data or ["bokeh"],
            output,
            calibration_data or [],
            seed=seed,
            epochs=epochs,
            passes=passes,
            members=members,
            console=_console,
            labels=labels,
            sectors=sectors,
            verbose=verbose,
        )
    except TapewatchError as error:
        refused(_console, error)
    typer.echo(f"{output / metadata.version}: threshold {metadata.threshold:.4f}")
    for name, value in metadata.metrics.items():
        typer.echo(f"  {name} = {value:.4f}")


if __name__ == "__main__":
    app()
