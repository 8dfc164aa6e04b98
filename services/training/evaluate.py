"""Measures a model version and writes its card: `python -m services.training.evaluate --data FILE --pumps FOLDER`."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.archive import version_folder
from services.domain.errors import NotConfiguredError, NotFoundError, TapewatchError
from services.training import card, evaluation, plots, provenance
from services.training import pumps as labelled_pumps
from services.training.console import LARGEST_MEMBERS, LARGEST_SEED, MOST_PASSES, refused, teller
from services.training.fit import Training
from services.training.held_out import Held
from services.training.pumps import section

SECTIONS = ("equities", "days", "left_out", "old_task", "pumps")
_OF_NO_BARS = {"pumps"}
"""Sections that are measured on no bars of `--data`."""
_MODELS = Path(__file__).parents[1] / "scorer" / "models"

app = typer.Typer(add_completion=False)
_console = Console(stderr=True, markup=False, emoji=False)  # messages quote what callers and files say


def newest(folder: Path) -> Path:
    """The newest version's folder. Raises: NotFoundError when there is none."""
    names = version_folder.names(folder)
    if not names:
        raise NotFoundError("model in", str(folder))
    return folder / names[0]


def figures_text(figures: dict[str, Any]) -> str:
    """Figures as JSON, which has no NaN: one that could not be measured is null."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: known(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [known(part) for part in value]
        return None if isinstance(value, float | np.floating) and not math.isfinite(value) else value

    return json.dumps(known(figures), indent=1, default=float, allow_nan=False) + "\n"


def read_figures(text: str) -> dict[str, Any]:
    """The figures in a text of `figures_text`, NaN where one could not be measured."""

    def number(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: number(part) for name, part in value.items()}
        if isinstance(value, list):
            return [number(part) for part in value]
        return math.nan if value is None else value

    return dict(number(json.loads(text)))


def measure(
    training: Training, version: evaluation.Version, pump_folder: Path | None, sections: list[str]
) -> tuple[dict[str, Any], list[Held]]:
    """The figures of these sections, and the test rows of each source when the equities are among them."""
    found: dict[str, Any] = {}
    held: list[Held] = []

    def begin(words: str) -> None:
        _console.print(words, highlight=False, soft_wrap=True)

    if "equities" in sections:
        found["equities"] = []
        for source in training.sources:
            begin(f"equities, {source.interval_seconds} s bars")
            figures, rows = evaluation.equities(training, source, version)
            found["equities"].append(figures)
            held.append(rows)
    history = training.sources[0].history
    if "days" in sections:
        begin("known days")
        if days := evaluation.known_days(training.sources[0], version):
            found["days"] = days
        else:
            begin("no known days: no ticker is on the test side")
    if "left_out" in sections:
        begin("a typology left out")
        found["left_out"] = evaluation.left_out(training, version)
    if "old_task" in sections:
        begin("the old system's task")
        found["old_task"] = evaluation.old_task(history, training.seed)
    if "pumps" in sections and pump_folder is not None:
        begin("labelled pumps, five folds by event")
        found["pumps"] = labelled_pumps.measure(pump_folder)
    return found, held


def _others(kept: Path, stamp: dict[str, Any], only: list[str]) -> dict[str, Any]:
    """The figures that are kept already.

    Raises: NotConfiguredError when they are of another version, or on other data and a section of `only` needs data.
    """
    if not kept.exists():
        return {}
    try:
        figures = read_figures(kept.read_text(encoding="utf-8"))
        said = (
            f"of {figures['version']} on {'; '.join(figures['data'])}" if "version" in figures else "of unknown origin"
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _measure_all(f"{kept} cannot be read ({error})") from error
    same = ["version"] if set(only) <= _OF_NO_BARS else ["version", "data_sha256"]
    if all(figures.get(name) == stamp[name] for name in same):
        return figures
    these = f"{stamp['version']} on {'; '.join(stamp['data'])}"
    raise _measure_all(f"{kept} holds figures {said}, which do not go with those of {these}")


def _measure_all(why: str) -> NotConfiguredError:
    return NotConfiguredError(
        why, "name that version and data by --model and --data, or measure all again: the same command without --only"
    )


@app.command()
def evaluate(
    data: Annotated[
        list[str] | None,
        typer.Option(
            help='"bokeh" (the default), a file, a folder or a lake, as for `train`; once for each bar length.'
        ),
    ] = None,
    pumps: Annotated[Path | None, typer.Option(help="Folder of the labelled pumps. Empty leaves them out.")] = None,
    model: Annotated[Path | None, typer.Option(help="A version's folder. Empty means the newest shipped.")] = None,
    output: Annotated[Path, typer.Option(help="The card; its figures and plots go into a folder beside it.")] = Path(
        "docs/model-card.md"
    ),
    only: Annotated[
        list[str] | None, typer.Option(help=f"Sections to measure again: {', '.join(SECTIONS)}. Empty means all.")
    ] = None,
    sectors: Annotated[Path | None, typer.Option(help="The file of sectors that the training had.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the training that is evaluated.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="For the training without one typology.")] = 6,
    passes: Annotated[int, typer.Option(min=1, max=MOST_PASSES, help="For the training without one typology.")] = 6,
    members: Annotated[
        int, typer.Option(min=1, max=LARGEST_MEMBERS, help="For the training without one typology.")
    ] = 3,
    verbose: Annotated[bool, typer.Option("--verbose", help="List each problem of the data.")] = False,
) -> None:
    """Measures a model version on bars of tickers and times it was not fitted on, and writes its card."""
    try:
        for name in only or ():
            if name not in SECTIONS:
                raise TapewatchError(f"{name!r} is none of the sections {', '.join(SECTIONS)}")
        plots.matplotlib()
        version = evaluation.load(model or newest(_MODELS))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=_console) as progress:
            training = Training(
                data or ["bokeh"],
                seed=seed,
                epochs=epochs,
                passes=passes,
                members=members,
                sectors=sectors,
                progress=progress,
                tell=teller(_console, verbose=verbose),
            )
            stamp = provenance.stamp(version.metadata, training.sources, sectors)
            folder = output.with_suffix("")
            kept = folder / "figures.json"
            others = _others(kept, stamp, only) if only else {}
            for caution in (stamp | others)["cautions"]:
                _console.print(f"careful: {caution}", style="yellow", highlight=False, soft_wrap=True)
            figures, held = measure(training, version, pumps, list(only or SECTIONS))
        folder.mkdir(parents=True, exist_ok=True)
        figures = stamp | others | figures
        kept.write_text(figures_text(figures), encoding="utf-8")
        for source, rows in zip(training.sources, held, strict=False):
            plots.equities(folder, source.interval_seconds, version, rows)
        if "pumps" in figures:
            section.draw(folder, figures["pumps"])
        output.write_text(card.render(version.metadata, figures, folder.name), encoding="utf-8")
    except ModuleNotFoundError as error:
        missing = NotConfiguredError(f"evaluation needs {error.name}", "install it with pip install -e '.[train]'")
        refused(_console, missing)
    except TapewatchError as error:
        refused(_console, error)
    typer.echo(f"{output}: {', '.join(name for name in SECTIONS if name in figures)}")


if __name__ == "__main__":
    app()
