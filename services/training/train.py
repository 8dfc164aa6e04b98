"""Makes a model version: `python -m services.training.train --data bokeh --output DIR`."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.archive import location as location_reader
from services.archive.bars import Bars
from services.domain.errors import TapewatchError
from services.domain.feature_definitions import FEATURE_HASH, FEATURE_NAMES, FEATURES, WINDOW
from services.domain.model import (
    AUTOENCODER_FILE,
    CLASSIFIER_FILE,
    Calibration,
    FeatureUsual,
    ModelMetadata,
    log_odds,
    logistic,
    surprise,
)
from services.domain.stability import SCORE
from services.domain.typology import OBSERVABLE, Typology
from services.training import calibrate, dataset, networks, version_folder
from services.training.dataset import Part, Rows
from services.training.figures import STRONG, average_precision, event_recall, judged
from services.training.injection import MANIPULATED, TOUCHED

MIN_HISTORY_QUOTES = 30
ALERTS_PER_SYMBOL_DAY = 1.0 / 500.0
BUDGET_SHARE = 0.9
"""Share of the alert budget that the threshold uses up on validation bars: later times are never quite like them."""

SCORE_SHARES = 10
"""The score's quantiles that drift is measured against cut untouched validation bars into this many equal parts."""

_SHOWN_PROBLEMS = 5

app = typer.Typer(add_completion=False)
_console = Console(stderr=True, markup=False, emoji=False)  # messages quote what callers and files say


@dataclass(frozen=True, slots=True)
class Source:
    """One location's series, all of one bar length, by side of the split."""

    location: str
    interval_seconds: int
    history: list[Bars]
    sides: dict[Part, list[Bars]]
    trained: bool = True
    """Whether the networks learn from it; else it only calibrates them and measures them."""


def read_sources(locations: Sequence[str], calibration: Sequence[str] = ()) -> list[Source]:
    """The trainable series of each location, longest bars first; each location is split by its own time.

    Args:
        locations: What the networks learn from.
        calibration: Further locations, of other bar lengths, that only calibrate and measure.

    Raises: InvalidRequestError when a location cannot be read or is too small; TapewatchError when a side is empty.
    """
    found = []
    for number, location in enumerate([*locations, *calibration]):
        problems: list[str] = []
        history = dataset.trainable(location_reader.read(location, problems))
        for problem in problems[:_SHOWN_PROBLEMS]:
            _console.print(problem, style="yellow", highlight=False)
        if len(problems) > _SHOWN_PROBLEMS:
            _console.print(f"and {len(problems) - _SHOWN_PROBLEMS:,} more like these", style="yellow", highlight=False)
        lengths = Counter(bars.interval_seconds for bars in history)
        usual = lengths.most_common(1)[0][0]
        history = [bars for bars in history if bars.interval_seconds == usual]
        sides = dataset.split(history)
        for part, side in sides.items():
            if not side:
                raise TapewatchError(f"{location}: no series has more than {WINDOW} bars in the {part.value} period")
        found.append(Source(location, usual, history, sides, trained=number < len(locations)))
    found.sort(key=lambda source: -source.interval_seconds)
    if len({source.interval_seconds for source in found}) < len(found):
        raise TapewatchError("two locations hold bars of the same length: put them into one folder")
    return found


@dataclass(frozen=True, slots=True)
class Exported:
    """The two networks as TFLite files: float32, which are shipped, and with int8 weights, whose loss is measured."""

    autoencoder: bytes
    classifier: bytes
    autoencoder_quantised: bytes
    classifier_quantised: bytes


class Training:
    """One training run: its sources, settings and progress bars."""

    def __init__(
        self,
        locations: Sequence[str],
        calibration: Sequence[str] = (),
        *,
        seed: int,
        epochs: int,
        passes: int,
        members: int,
        progress: Progress,
    ) -> None:
        self.seed, self.epochs, self.passes, self.members = seed, epochs, passes, members
        self.progress = progress
        self.sources = read_sources(locations, calibration)
        trained = [source.interval_seconds for source in self.sources if source.trained]
        settings = json.dumps(
            {"seed": seed, "epochs": epochs, "passes": passes, "members": members, "trained": trained}
        )
        everything = [bars for source in self.sources for bars in source.history]
        self.fingerprint = dataset.fingerprint(everything, settings)

    @property
    def trained(self) -> list[Source]:
        """The sources that the networks learn from."""
        return [source for source in self.sources if source.trained]

    def rows(self, source: Source, part: Part, *, seed: int | None = None, only_near: int | None = None) -> Rows:
        """A side's rows: untouched without a seed, else injected by it."""
        side = source.sides[part]
        what = "untouched" if seed is None else f"injected ({seed})"
        task = self.progress.add_task(
            f"features of {source.interval_seconds} s bars, {part.value}, {what}", total=len(side)
        )

        def advance() -> None:
            self.progress.advance(task)

        if seed is None:
            return dataset.untouched(side, advance)
        return dataset.injected(side, seed, advance=advance, only_near=only_near)

    def watch(self, words: str) -> networks.Progress:
        """A progress bar over the epochs."""
        task = self.progress.add_task(words, total=self.epochs)

        def advance(_: int, losses: dict[str, float]) -> None:
            loss = losses.get("loss", float("nan"))
            self.progress.update(task, advance=1, description=f"{words}, loss {loss:.4f}")

        return advance

    def networks(self, normals: list[Rows], typologies: tuple[Typology, ...] = OBSERVABLE) -> Exported:
        """The trained autoencoder and classifier as TFLite files.

        Args:
            normals: The untouched training rows of each source that is trained on.
            typologies: Those injected; evaluation leaves one out.
        """
        rng = np.random.default_rng(self.seed)
        share = 300_000 // len(normals)
        sample = dataset.concatenate([rows.where(rng.permutation(len(rows))[:share]) for rows in normals])
        standard = networks.standardise(sample.features)
        networks.tensorflow().config.experimental.enable_op_determinism()
        autoencoder = networks.train_autoencoder(
            sample.features,
            standard,
            seed=self.seed,
            epochs=self.epochs,
            bottleneck=10,
            progress=self.watch("autoencoder"),
        )
        parts = []
        for source, normal in zip(self.trained, normals, strict=True):
            near = dataset.concatenate(
                [
                    dataset.injected(
                        source.sides[Part.TRAIN], self.seed * 1_000 + k, only_near=12, typologies=typologies
                    )
                    for k in range(self.passes)
                ]
            )
            positive = int((near.label == MANIPULATED).sum())
            parts += [near, normal.where(rng.permutation(len(normal))[: 3 * max(1, positive)])]
        rows = dataset.concatenate(parts)
        rows = rows.where(~dataset.unjudged(rows))
        rows = rows.where(rng.permutation(len(rows)))
        kinds = np.array([int(t) for t in OBSERVABLE])
        label = (rows.label == MANIPULATED).astype(np.float32)
        kind = np.searchsorted(kinds, rows.typology.astype(np.int64))
        classifier = networks.mean_of(
            [
                networks.train_classifier(
                    rows.features,
                    label,
                    kind,
                    np.ones(len(rows), np.float32),
                    standard,
                    kinds=len(kinds),
                    seed=self.seed + k,
                    epochs=self.epochs,
                    progress=self.watch(f"classifier {k + 1} of {self.members}"),
                    name=f"member_{k}",
                )
                for k in range(self.members)
            ]
        )
        return Exported(
            networks.export(autoencoder),
            networks.export(classifier),
            networks.export(autoencoder, quantised=True),
            networks.export(classifier, quantised=True),
        )


class Outputs:
    """What the two files say of rows: raw errors, probabilities, likeliest typologies; and the bars' length."""

    def __init__(self, features: NDArray[np.float32], autoencoder: bytes, classifier: bytes) -> None:
        self.errors = networks.run_tflite(autoencoder, features)[:, 0]
        raw = networks.run_tflite(classifier, features)
        self.probability = raw[:, 0]
        self.typology = np.array([int(t) for t in OBSERVABLE])[np.argmax(raw[:, 1:], axis=1)]
        self.length = features[:, FEATURE_NAMES.index("bar_length")].astype(np.float64)

    def margin(self, calibration: Calibration, *, autoencoder: bool = True, classifier: bool = True) -> calibrate.Array:
        """The ensemble's log-odds, or those of one half alone."""
        return calibration.margin(
            calibration.percentile(self.errors) if autoencoder else None,
            self.probability if classifier else None,
            self.length,
        )


@dataclass(frozen=True, slots=True)
class Held:
    """A source's held-out rows of one side, untouched and injected, with what the files say of them."""

    untouched: Rows
    plain: Outputs
    touched: Rows
    marked: Outputs


def calibrated(held: Sequence[Held]) -> tuple[Calibration, float, float]:
    """Calibration, threshold and the autoencoder's weight, from each source's validation rows, longest bars first.

    The threshold keeps the alert budget on the longest bars; offsets keep it on the others, and for the halves alone.
    """
    judged = [h.touched.label != TOUCHED for h in held]
    fit = calibrate.fit(
        np.concatenate([h.plain.errors for h in held]),
        np.concatenate([h.marked.errors[j] for h, j in zip(held, judged, strict=True)]),
        np.concatenate([h.marked.probability[j] for h, j in zip(held, judged, strict=True)]),
        np.concatenate([h.touched.label[j] == MANIPULATED for h, j in zip(held, judged, strict=True)]),
    )
    budget = BUDGET_SHARE * ALERTS_PER_SYMBOL_DAY
    halves = {"both": (True, True), "autoencoder_alone": (True, False), "classifier_alone": (False, True)}
    lines = {
        name: [
            calibrate.budget_margin(h.untouched, h.plain.margin(fit, autoencoder=ae, classifier=cl), budget)
            for h in held
        ]
        for name, (ae, cl) in halves.items()
    }
    # Outside these bounds the threshold would be 0 or 1 to the eye.
    line = float(np.clip(lines["both"][0], -6.0, 8.0))
    order = np.argsort([float(h.plain.length[0]) for h in held])
    shifted = {
        name: replace(getattr(fit, name), offsets=tuple(float(lines[name][i] - line) for i in order)) for name in halves
    }
    spread = (
        fit.both.autoencoder * float(np.std(surprise(fit.percentile(held[0].plain.errors)))),
        fit.both.classifier * float(np.std(log_odds(held[0].plain.probability))),
    )
    calibration = replace(fit, length_knots=tuple(float(held[i].plain.length[0]) for i in order), **shifted)
    return calibration, float(logistic(np.array([line]))[0]), spread[0] / max(sum(spread), 1e-12)


def measured(calibration: Calibration, threshold: float, held: Sequence[Held]) -> dict[str, float]:
    """Figures on each source's test rows, of tickers and times that nothing was fitted on."""
    line = float(np.log(threshold / (1.0 - threshold)))
    figures: dict[str, float] = {}
    for h in held:
        margins, marks = h.plain.margin(calibration), h.marked.margin(calibration)
        manipulated = h.touched.label == MANIPULATED
        strong = judged(h.touched, STRONG)
        hit = manipulated & (marks >= line)
        days = calibrate.symbol_days(h.untouched)
        right = h.marked.typology[hit] == h.touched.typology[hit]
        found = {
            "alerts_per_500_symbol_days": 500.0 * calibrate.count_alerts(h.untouched, margins >= line) / days,
            "average_precision_strength_4_up": average_precision(manipulated[strong], marks[strong]),
            "event_recall_strength_4_up": event_recall(h.touched, marks >= line, STRONG),
            "event_recall_all": event_recall(h.touched, marks >= line),
            "typology_accuracy_of_detected": float(right.mean()) if len(right) else 0.0,
            "untouched_bars": float(len(h.untouched)),
            "events": float(len(np.unique(h.touched.event[h.touched.event >= 0]))),
        }
        seconds = round(60.0 * float(np.exp(h.plain.length[0])))
        figures |= {f"test_{seconds}s_{name}": value for name, value in found.items()}
    return figures


def quantisation(exported: Exported, calibration: Calibration, test: Held) -> dict[str, float]:
    """What int8 weights cost: sizes, and the difference of scores and figures on test rows of the longest bars."""
    small = Outputs(test.touched.features, exported.autoencoder_quantised, exported.classifier_quantised)
    strong = judged(test.touched, STRONG)
    label = test.touched.label[strong] == MANIPULATED
    exact, rough = test.marked.margin(calibration), small.margin(calibration)
    return {
        "float32_bytes": float(len(exported.autoencoder) + len(exported.classifier)),
        "quantised_bytes": float(len(exported.autoencoder_quantised) + len(exported.classifier_quantised)),
        "quantised_mean_score_difference": float(np.abs(logistic(exact) - logistic(rough)).mean()),
        "quantised_average_precision_loss": average_precision(label, exact[strong])
        - average_precision(label, rough[strong]),
    }


def usual_ranges(normal: Rows) -> tuple[FeatureUsual, ...]:
    """Each feature's 5th percentile, median and 95th percentile on untouched training bars."""
    low, median, high = np.percentile(normal.features.astype(np.float64), [5.0, 50.0, 95.0], axis=0)
    return tuple(
        FeatureUsual(f.name, f"{f.phrase.replace('{value}', 'x')}: {f.description} [{f.unit.value}]", m, lo, hi)
        for f, lo, m, hi in zip(FEATURES, low.tolist(), median.tolist(), high.tolist(), strict=True)
    )


def describe(training: Training) -> str:
    """What the model was trained on, in a sentence."""
    parts = []
    for source in training.sources:
        first = min(bars.event_time[0] for bars in source.history).astype("datetime64[D]")
        last = max(bars.event_time[-1] for bars in source.history).astype("datetime64[D]")
        bars = sum(map(len, source.history))
        parts.append(
            f"{len(source.history)} symbols with {bars:,} bars of {source.interval_seconds} s, {first} to {last} "
            f"({Path(source.location).stem}{'' if source.trained else ', for the calibration only'})"
        )
    return (
        f"{'; '.join(parts)}: of each the period of the first 60 % of the bars and, of 20 symbols and more, 60 % of "
        f"the symbols, with injected manipulations, seed {training.seed}"
    )


def command(training: Training) -> str:
    """The command that makes the same version again, and the versions of what it ran on."""
    options = [
        *(f"--data {Path(source.location).name}" for source in training.sources if source.trained),
        *(f"--calibration-data {Path(source.location).name}" for source in training.sources if not source.trained),
        *(f"--{name} {getattr(training, name)}" for name in ("seed", "epochs", "passes", "members")),
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
) -> ModelMetadata:
    """Trains, calibrates, measures and writes a version under `output`; nothing is left half-written.

    Args:
        locations: What the networks learn from, one for each bar length.
        output: Folder of model versions.
        calibration_locations: Further ones, of other bar lengths, for the calibration only.
        seed: Decides injection, weights and order.
        epochs: Passes over the rows.
        passes: Injections into the training series.
        members: Networks whose mean is the classifier; they take the seeds from `seed` on.
        console: Shows the progress.

    Raises:
        TapewatchError: The data cannot be used, or TensorFlow is missing.
    """
    networks.tensorflow()
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
        )
        normals = [training.rows(source, Part.TRAIN) for source in training.trained]
        exported = training.networks(normals)
        autoencoder, classifier = exported.autoencoder, exported.classifier
        validation, test = (
            [held_out(training, source, part, autoencoder, classifier) for source in training.sources]
            for part in (Part.VALIDATION, Part.TEST)
        )
    calibration, threshold, weight = calibrated(validation)
    figures = measured(calibration, threshold, test) | quantisation(exported, calibration, test[0])
    shares = np.arange(1, SCORE_SHARES) / SCORE_SHARES
    scores = np.quantile(logistic(validation[0].plain.margin(calibration)), shares)
    files = {AUTOENCODER_FILE: autoencoder, CLASSIFIER_FILE: classifier}
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    metadata = ModelMetadata(
        version=f"tw-{training.fingerprint[:10]}",
        features=usual_ranges(normals[0]),
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
        reference={SCORE: tuple(scores.tolist())},
        trained_by=command(training),
    )
    version_folder.write(output, metadata, files)
    return metadata


def held_out(training: Training, source: Source, part: Part, autoencoder: bytes, classifier: bytes) -> Held:
    """A source's held-out rows of one side and what the files say of them."""
    untouched = training.rows(source, part)
    touched = training.rows(source, part, seed=training.seed * 1_000 + (900 if part is Part.VALIDATION else 901))
    return Held(
        untouched,
        Outputs(untouched.features, autoencoder, classifier),
        touched,
        Outputs(touched.features, autoencoder, classifier),
    )


@app.command()
def train(
    data: Annotated[
        list[str] | None,
        typer.Option(
            help='"bokeh" (the default), a CSV or Parquet file or a folder of them; once for each bar length.'
        ),
    ] = None,
    calibration_data: Annotated[
        list[str] | None,
        typer.Option(help="Further data, of other bar lengths, that the networks do not learn from."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of model versions to add one to.")] = Path("models"),
    seed: Annotated[int, typer.Option(help="Decides injection, weights and order.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the rows.")] = 10,
    passes: Annotated[int, typer.Option(min=1, help="Injections into the training series.")] = 12,
    members: Annotated[int, typer.Option(min=1, help="Networks whose mean is the classifier.")] = 3,
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
        )
    except TapewatchError as error:
        _console.print(error.message, style="red", highlight=False)
        raise typer.Exit(1) from error
    typer.echo(f"{output / metadata.version}: threshold {metadata.threshold:.4f}")
    for name, value in metadata.metrics.items():
        typer.echo(f"  {name} = {value:.4f}")


if __name__ == "__main__":
    app()
