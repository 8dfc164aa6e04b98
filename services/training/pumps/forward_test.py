"""Measures a kept pump model on recordings that came later: `python -m services.training.pumps.forward_test`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from services.domain.errors import ModelUnusableError, TapewatchError
from services.runtime.errors import exit_code_of
from services.training.networks import run_tflite
from services.training.pumps import models, protocol, recordings
from services.training.pumps.protocol import PumpFigures
from services.training.pumps.version import read

app = typer.Typer(add_completion=False)
_console = Console(stderr=True, markup=False, emoji=False)  # messages quote what callers and files say


def measure(folder: Path, version: Path) -> PumpFigures:
    """The figures of a kept version's file at its own thresholds, on recordings that it was not made of.

    Args:
        folder: Where EVENTS_FILE and FEATURES_FILE of `recordings` are, of other events.
        version: The version's folder.

    Raises:
        ModelUnusableError: It is damaged, was made for other columns, or of these recordings.
        TapewatchError: The recordings cannot be read.
    """
    metadata, content = read(version)
    if metadata.recordings == recordings.digest(folder):
        raise ModelUnusableError(str(version), f"was made of the recordings in {folder}: it would be measured on them")
    pumps = recordings.read(folder)
    model = models.trees(pumps, models.Feed(metadata.feed))
    if model.names != tuple(column.name for column in metadata.columns):
        raise ModelUnusableError(str(version), "was made for other columns: train it again")
    scores = run_tflite(content, model.inputs)
    onset = protocol.onset_score(pumps, np.arange(len(scores)), scores[:, 0], metadata.course_seconds)
    verdicts = protocol.Verdicts(
        score=onset,
        chosen=onset >= metadata.onset_threshold,
        alerting=scores[:, 1] >= metadata.alert_threshold,
        onset_parts=(" + ".join(metadata.onset_parts),),
        alert_parts=(" + ".join(metadata.alert_parts),),
    )
    return protocol.figures(pumps, verdicts)[0]


@app.command()
def forward_test(
    model: Annotated[Path, typer.Option(help="A version's folder.")],
    pumps: Annotated[Path, typer.Option(help="Folder of labelled pumps that the version was not made of.")],
) -> None:
    """Measures a kept version's TFLite file on pumps that it was not made of."""
    try:
        found = measure(pumps, model)
    except TapewatchError as error:
        _console.print(error.message, style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(exit_code_of(error)) from error
    for name, value in asdict(found).items():
        typer.echo(f"{name} = {value:.4f}" if isinstance(value, float) else f"{name} = {value}")


if __name__ == "__main__":
    app()
