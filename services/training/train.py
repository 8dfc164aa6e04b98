"""Makes a model version: `python -m services.training.train --data bokeh --output DIR`."""

import hashlib
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from services.archive.bars import Bars
from services.domain.errors import TapewatchError
from services.domain.feature_definitions import FEATURE_HASH, FEATURES, WINDOW
from services.domain.model import (
    AUTOENCODER_FILE,
    CLASSIFIER_FILE,
    METADATA_FILE,
    Calibration,
    FeatureUsual,
    Logistic,
    ModelMetadata,
    log_odds,
    logistic,
)
from services.domain.typology import OBSERVABLE
from services.training import calibrate, dataset, networks
from services.training.dataset import Part, Rows
from services.training.injection import MANIPULATED, NORMAL, TOUCHED

MIN_HISTORY_QUOTES = 30
ALERTS_PER_SYMBOL_DAY = 1.0 / 500.0
BUDGET_SHARE = 0.9
"""Share of the alert budget that the threshold uses up on validation bars: later times are never quite like them."""

app = typer.Typer(add_completion=False)
_console = Console(stderr=True)


class Training:
    """One training run: its data, settings and progress bars."""

    def __init__(self, data: str, *, seed: int, epochs: int, passes: int, progress: Progress) -> None:
        self.data, self.seed, self.epochs, self.passes = data, seed, epochs, passes
        self._progress = progress
        self.history = dataset.trainable(dataset.read(data))
        self.sides = dataset.split(self.history)
        for part, side in self.sides.items():
            if not side:
                raise TapewatchError(f"{data}: no series has more than {WINDOW} bars in the {part.value} period")
        settings = json.dumps({"seed": seed, "epochs": epochs, "passes": passes})
        self.fingerprint = dataset.fingerprint(self.history, settings)

    def _step(self, words: str, total: int) -> tuple[TaskID, Progress]:
        return self._progress.add_task(words, total=total), self._progress

    def rows(self, part: Part, *, seed: int | None = None, only_near: int | None = None) -> Rows:
        """A side's rows: untouched without a seed, else injected by it."""
        side = self.sides[part]
        what = "untouched" if seed is None else f"injected ({seed})"
        task, bar = self._step(f"features, {part.value}, {what}", len(side))
        if seed is None:
            return dataset.untouched(side, lambda: bar.advance(task))
        return dataset.injected(side, seed, advance=lambda: bar.advance(task), only_near=only_near)

    def watch(self, words: str) -> networks.Progress:
        """A progress bar over the epochs."""
        task, bar = self._step(words, self.epochs)

        def advance(_: int, losses: dict[str, float]) -> None:
            bar.update(task, advance=1, description=f"{words}, loss {losses.get('loss', float('nan')):.4f}")

        return advance

    def networks(self, normal: Rows) -> tuple[bytes, bytes]:
        """The trained autoencoder and classifier as TFLite files."""
        rng = np.random.default_rng(self.seed)
        sample = normal.features[rng.permutation(len(normal))[:300_000]]
        standard = networks.standardise(sample)
        networks.tensorflow().config.experimental.enable_op_determinism()
        autoencoder = networks.train_autoencoder(
            sample, standard, seed=self.seed, epochs=self.epochs, bottleneck=10, progress=self.watch("autoencoder")
        )
        near = dataset.concatenate(
            [self.rows(Part.TRAIN, seed=self.seed * 1_000 + k, only_near=12) for k in range(self.passes)]
        )
        positive = near.label == MANIPULATED
        negatives = normal.where(rng.permutation(len(normal))[: 3 * max(1, int(positive.sum()))])
        rows = dataset.concatenate([near, negatives])
        rows = rows.where(~dataset.unjudged(rows))
        order = rng.permutation(len(rows))
        rows = rows.where(order)
        label = (rows.label == MANIPULATED).astype(np.float32)
        kinds = np.array([int(t) for t in OBSERVABLE])
        classifier = networks.train_classifier(
            rows.features,
            label,
            np.searchsorted(kinds, rows.typology.astype(np.int64)),
            np.ones(len(rows), np.float32),
            standard,
            kinds=len(kinds),
            seed=self.seed,
            epochs=self.epochs,
            progress=self.watch("classifier"),
        )
        return networks.export(autoencoder), networks.export(classifier)


def _shifted(fit: Logistic, by: float) -> Logistic:
    return Logistic(fit.bias + by, fit.autoencoder, fit.classifier)


class Outputs:
    """What the two files say of rows: raw errors and probabilities."""

    def __init__(self, rows: Rows, autoencoder: bytes, classifier: bytes) -> None:
        self.errors = networks.run_tflite(autoencoder, rows.features)[:, 0]
        raw = networks.run_tflite(classifier, rows.features)
        self.probability, self.kind = raw[:, 0], np.argmax(raw[:, 1:], axis=1)


def calibrated(untouched: Rows, plain: Outputs, touched: Rows, marked: Outputs) -> tuple[Calibration, float, float]:
    """Calibration, threshold and the autoencoder's weight, from validation rows.

    The halves alone are shifted so that the ensemble's threshold gives each the same number of alerts.
    """
    judged = touched.label != TOUCHED
    fit = calibrate.fit(
        plain.errors, marked.errors[judged], marked.probability[judged], touched.label[judged] == MANIPULATED
    )
    percentile = fit.percentile(plain.errors)
    budget = BUDGET_SHARE * ALERTS_PER_SYMBOL_DAY
    line = calibrate.budget_margin(untouched, fit.margin(percentile, plain.probability), budget)
    # A threshold of 1 would leave no score above it.
    line = float(min(max(line, -6.0), 12.0))
    alone_ae = calibrate.budget_margin(untouched, fit.margin(percentile, None), budget)
    alone_cl = calibrate.budget_margin(untouched, fit.margin(None, plain.probability), budget)
    shifted = Calibration(
        fit.error_knots,
        fit.percentile_knots,
        fit.both,
        _shifted(fit.autoencoder_alone, line - alone_ae),
        _shifted(fit.classifier_alone, line - alone_cl),
    )
    spread = (
        fit.both.autoencoder * float(np.std(calibrate.surprise(percentile))),
        fit.both.classifier * float(np.std(log_odds(plain.probability))),
    )
    return shifted, float(logistic(np.array([line]))[0]), spread[0] / max(sum(spread), 1e-12)


def average_precision(label: "np.ndarray[tuple[int], np.dtype[np.bool_]]", score: calibrate.Array) -> float:
    """Area under the precision-recall curve as the mean precision at each hit; ties count against the model."""
    order = np.lexsort((label, -score))
    hits = label[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean()) if hits.any() else float("nan")


def event_recall(rows: Rows, detected: "np.ndarray[tuple[int], np.dtype[np.bool_]]", least: float) -> float:
    """Share of events of at least this strength with a detection among their touched bars."""
    chosen = (rows.event >= 0) & (rows.strength >= least)
    events = np.unique(rows.event[chosen & (rows.label == MANIPULATED)])
    found = np.unique(rows.event[chosen & detected])
    return float(np.isin(events, found).mean()) if len(events) else float("nan")


def measured(
    calibration: Calibration, threshold: float, untouched: Rows, plain: Outputs, touched: Rows, marked: Outputs
) -> dict[str, float]:
    """Figures on test rows, of tickers and times that nothing was fitted on."""
    line = float(np.log(threshold / (1.0 - threshold)))
    margins = calibration.margin(calibration.percentile(plain.errors), plain.probability)
    marks = calibration.margin(calibration.percentile(marked.errors), marked.probability)
    strong = (touched.label == NORMAL) | ((touched.label == MANIPULATED) & (touched.strength >= 4.0))
    found = marks >= line
    kinds = np.array([int(t) for t in OBSERVABLE])[marked.kind]
    hit = (touched.label == MANIPULATED) & found
    return {
        "test_alerts_per_500_symbol_days": 500.0
        * calibrate.count_alerts(untouched, margins >= line)
        / calibrate.symbol_days(untouched),
        "test_detections_per_1000_bars": 1_000.0 * float((margins >= line).mean()),
        "test_average_precision_strength_4_up": average_precision(touched.label[strong] == MANIPULATED, marks[strong]),
        "test_event_recall_strength_4_up": event_recall(touched, found, 4.0),
        "test_event_recall_all": event_recall(touched, found, 0.0),
        "test_typology_accuracy_of_detected": float((kinds[hit] == touched.typology[hit]).mean()) if hit.any() else 0.0,
        "test_untouched_bars": float(len(untouched)),
        "test_events": float(len(np.unique(touched.event[touched.event >= 0]))),
    }


def usual_ranges(normal: Rows) -> tuple[FeatureUsual, ...]:
    """Each feature's 5th percentile, median and 95th percentile on untouched training bars."""
    low, median, high = np.percentile(normal.features.astype(np.float64), [5.0, 50.0, 95.0], axis=0)
    return tuple(
        FeatureUsual(f.name, f"{f.phrase.replace('{value}', 'x')}: {f.description} [{f.unit.value}]", m, lo, hi)
        for f, lo, m, hi in zip(FEATURES, low.tolist(), median.tolist(), high.tolist(), strict=True)
    )


def describe(data: str, history: list[Bars], seed: int) -> str:
    """What the model was trained on, in a sentence."""
    first = min(bars.event_time[0] for bars in history).astype("datetime64[D]")
    last = max(bars.event_time[-1] for bars in history).astype("datetime64[D]")
    intervals = sorted({bars.interval_seconds for bars in history})
    name = data if data == "bokeh" else Path(data).name
    return (
        f"{len(history)} symbols, {sum(map(len, history)):,} bars of {', '.join(map(str, intervals))} s from {name}, "
        f"{first} to {last}: first 60 % of the time of 60 % of the symbols, with injected manipulations, seed {seed}"
    )


def run(data: str, output: Path, *, seed: int, epochs: int, passes: int, console: Console) -> ModelMetadata:
    """Trains, calibrates, measures and writes a version under `output`; nothing is left half-written.

    Raises: TapewatchError when the data cannot be used or TensorFlow is missing.
    """
    networks.tensorflow()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        training = Training(data, seed=seed, epochs=epochs, passes=passes, progress=progress)
        normal = training.rows(Part.TRAIN)
        autoencoder, classifier = training.networks(normal)
        held = {
            part: (training.rows(part), training.rows(part, seed=seed * 1_000 + 900 + i))
            for i, part in enumerate((Part.VALIDATION, Part.TEST))
        }
    outputs = {part: tuple(Outputs(rows, autoencoder, classifier) for rows in pair) for part, pair in held.items()}
    untouched, touched = held[Part.VALIDATION]
    calibration, threshold, weight = calibrated(
        untouched, outputs[Part.VALIDATION][0], touched, outputs[Part.VALIDATION][1]
    )
    metrics = measured(
        calibration,
        threshold,
        held[Part.TEST][0],
        outputs[Part.TEST][0],
        held[Part.TEST][1],
        outputs[Part.TEST][1],
    )
    files = {AUTOENCODER_FILE: autoencoder, CLASSIFIER_FILE: classifier}
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    metadata = ModelMetadata(
        version=f"tw-{training.fingerprint[:10]}",
        features=usual_ranges(normal),
        feature_hash=FEATURE_HASH,
        window_quotes=WINDOW,
        min_history_quotes=MIN_HISTORY_QUOTES,
        threshold=threshold,
        autoencoder_weight=weight,
        calibration=calibration,
        training_fingerprint=training.fingerprint,
        trained_on=describe(data, training.history, seed),
        train_time=datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC).replace(microsecond=0),
        metrics=metrics,
        checksums={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        typologies=OBSERVABLE,
    )
    write(output, metadata, files)
    return metadata


def write(output: Path, metadata: ModelMetadata, files: dict[str, bytes]) -> Path:
    """Writes a version's folder whole or not at all; an equal version is replaced."""
    output.mkdir(parents=True, exist_ok=True)
    target = output / metadata.version
    with tempfile.TemporaryDirectory(dir=output, prefix=".new-") as scratch:
        made = Path(scratch) / metadata.version
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        (made / METADATA_FILE).write_text(metadata.to_json(), encoding="utf-8")
        if target.exists():
            target.rename(Path(scratch) / "old")
        made.rename(target)
    return target


@app.command()
def train(
    data: Annotated[str, typer.Option(help='"bokeh", a Parquet file, or a folder of Parquet files.')] = "bokeh",
    output: Annotated[Path, typer.Option(help="Folder of model versions to add one to.")] = Path("models"),
    seed: Annotated[int, typer.Option(help="Decides injection, weights and order.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the rows.")] = 12,
    passes: Annotated[int, typer.Option(min=1, help="Injections into the training series.")] = 6,
) -> None:
    """Trains a model version on real bars with injected manipulations."""
    try:
        metadata = run(data, output, seed=seed, epochs=epochs, passes=passes, console=_console)
    except TapewatchError as error:
        _console.print(f"[red]{error.message}[/red]", highlight=False)
        raise typer.Exit(1) from error
    typer.echo(f"{output / metadata.version}: threshold {metadata.threshold:.4f}")
    for name, value in metadata.metrics.items():
        typer.echo(f"  {name} = {value:.4f}")


if __name__ == "__main__":
    app()
