"""Makes a pump model: `python -m services.training.pumps.train --pumps DIR --output DIR`."""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from services.archive import version_folder
from services.domain.errors import NotConfiguredError, TapewatchError
from services.training import tree_tables
from services.training.console import LARGEST_SEED, refused
from services.training.dataset import instructions
from services.training.networks import tensorflow
from services.training.pumps import columns, models, protocol, recordings
from services.training.pumps.formulas import formula
from services.training.pumps.models import Feed
from services.training.pumps.version import MODEL_FILE, Column, PumpMetadata

app = typer.Typer(add_completion=False)
_console = Console(stderr=True, markup=False, emoji=False)  # messages quote what callers and files say


def run(folder: Path, output: Path, feed: Feed, *, seed: int) -> PumpMetadata:
    """Fits and chooses on all events, and writes a version under `output`; no version is left half-written.

    Args:
        folder: Where EVENTS_FILE and FEATURES_FILE of `recordings` are.
        output: Folder of versions.
        feed: What of the trades is known.
        seed: Of the trees.

    Raises:
        TapewatchError: TensorFlow is missing, or the recordings cannot be read.
    """
    tensorflow()
    digest = recordings.digest(folder)
    pumps = recordings.read(folder)
    model = models.trees(pumps, feed, seed=seed)
    chosen = protocol.choose(pumps, model.parts, model.choice, np.arange(len(pumps.label)))
    content = models.tflite(chosen, len(model.names))
    fingerprint = _fingerprint(digest, {"feed": feed, "seed": seed})
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    metadata = PumpMetadata(
        version=f"pumps-{fingerprint[:10]}",
        columns=_columns(pumps, model),
        chunk_seconds=pumps.width,
        history_seconds=columns.HISTORY_SECONDS,
        feed=feed,
        onset_parts=chosen.onset,
        alert_parts=chosen.alert,
        onset_threshold=chosen.onset_threshold,
        alert_threshold=chosen.alert_threshold,
        course_seconds=chosen.course_seconds,
        training_fingerprint=fingerprint,
        recordings=digest,
        trained_on=f"{len(pumps.names)} labelled pumps, {len(pumps.label):,} chunks of {pumps.width} s, "
        f"{pumps.symbol_days:.0f} symbol-days",
        trained_by=_command(feed, seed),
        train_time=datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC).replace(microsecond=0),
        metrics={
            "inner_folds_average_precision": chosen.average_precision,
            "inner_folds_detected_within_120_s": chosen.detected,
            "float32_bytes": float(len(content)),
        },
        checksums={MODEL_FILE: hashlib.sha256(content).hexdigest()},
    )
    version_folder.write(output, metadata, {MODEL_FILE: content})
    return metadata


def _columns(pumps: recordings.Pumps, model: models.Model) -> tuple[Column, ...]:
    away = (pumps.seconds < 0) | (pumps.seconds > protocol.AFTERMATH_SECONDS)
    low, median, high = np.percentile(model.inputs[away].astype(np.float64), [5.0, 50.0, 95.0], axis=0)
    return tuple(
        Column(name, formula(name), m, lo, hi)
        for name, m, lo, hi in zip(model.names, median.tolist(), low.tolist(), high.tolist(), strict=True)
    )


def _fingerprint(digest: str, settings: dict[str, object]) -> str:
    """SHA-256 of the recordings, of what the code that makes columns and models of them does, and of the settings."""
    found = hashlib.sha256((digest + json.dumps(settings)).encode())
    training = Path(tree_tables.__file__).parent
    domain = training.parent / "domain"
    code = [
        *domain.glob("feature*.py"),
        domain / "session_profile.py",
        training / "tree_tables.py",
        *(training / "pumps" / f"{name}.py" for name in ("columns", "models", "protocol", "recordings")),
    ]
    for path in sorted(code):
        found.update(path.name.encode() + instructions(path.read_text(encoding="utf-8")).encode())
    return found.hexdigest()


def _command(feed: Feed, seed: int) -> str:
    import sklearn  # type: ignore[import-untyped, unused-ignore]

    return (
        f"python -m services.training.pumps.train --feed {feed} --seed {seed} "
        f"(scikit-learn {sklearn.__version__}, TensorFlow {tensorflow().__version__}, NumPy {np.__version__})"
    )


@app.command()
def train(
    pumps: Annotated[Path, typer.Option(help="Folder of the labelled pumps.")],
    output: Annotated[Path, typer.Option(help="Folder of versions to add one to.")] = Path("pump-models"),
    feed: Annotated[Feed, typer.Option(help="What is known of the trades in a bar.")] = Feed.TRADES,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the trees.")] = 1,
) -> None:
    """Fits a model on all labelled pumps, its parts and thresholds chosen by inner folds, as one TFLite file."""
    try:
        metadata = run(pumps, output, feed, seed=seed)
    except ModuleNotFoundError as error:
        missing = NotConfiguredError(f"training needs {error.name}", "install it with pip install -e '.[train]'")
        refused(_console, missing)
    except TapewatchError as error:
        refused(_console, error)
    typer.echo(
        f"{output / metadata.version}: onset {' + '.join(metadata.onset_parts)}, threshold "
        f"{metadata.onset_threshold:.3f}; alert {' + '.join(metadata.alert_parts)}, threshold "
        f"{metadata.alert_threshold:.3f}"
    )
    for name, value in metadata.metrics.items():
        typer.echo(f"  {name} = {value:.4f}")


if __name__ == "__main__":
    app()
