"""The model card's plots. matplotlib is imported on use only."""

from pathlib import Path
from typing import Any

import numpy as np

from services.domain.model import logistic
from services.domain.typology import OBSERVABLE
from services.training import calibrate, figures
from services.training.evaluation import Version
from services.training.held_out import Held
from services.training.injection import MANIPULATED, NORMAL, STRENGTHS


def matplotlib() -> Any:
    """pyplot, drawing to files. Raises: ModuleNotFoundError when matplotlib is not installed."""
    import matplotlib as library

    library.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Writes and closes a figure."""
    figure.tight_layout()
    # No date in the file: an equal plot is an equal file.
    figure.savefig(path, dpi=80, metadata={"Software": None})
    matplotlib().close(figure)


def equities(folder: Path, seconds: int, version: Version, held: Held) -> None:
    """Precision and recall, recall over strength, calibration, and alerts over the threshold, of one bar length."""
    plt = matplotlib()
    calibration = version.metadata.calibration
    margin, plain = held.marked.margin(calibration), held.plain.margin(calibration)
    rows = held.touched
    manipulated = rows.label == MANIPULATED

    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, groups in (
        (axes[0], [(f"strength {s:g}", manipulated & (rows.strength == np.float32(s))) for s in STRENGTHS]),
        (axes[1], [(t.words, manipulated & (rows.typology == int(t)) & (rows.strength >= 4)) for t in OBSERVABLE]),
    ):
        for name, positive in groups:
            shown = positive | (rows.label == NORMAL)
            order = np.argsort(-margin[shown], kind="stable")
            hits = np.cumsum(positive[shown][order])
            if hits[-1]:
                axis.plot(hits / hits[-1], hits / np.arange(1, len(hits) + 1), label=name, linewidth=1)
        axis.set(xlabel="recall of bars", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
        axis.legend(fontsize=7)
    axes[0].set_title("by strength")
    axes[1].set_title("by typology, strength 4 and more")
    save(figure, folder / f"precision-recall-{seconds}s.png")

    figure, axis = plt.subplots(figsize=(6.5, 4))
    for name, cells in figures.recall_table(rows, margin >= version.line):
        axis.plot(
            STRENGTHS, [recall for recall, _ in cells], marker="o", label=name, linewidth=2 if name == "all" else 1
        )
    axis.set(xlabel="strength in deviations", ylabel="recall of events at the shipped threshold", ylim=(0, 1.02))
    axis.legend(fontsize=7)
    save(figure, folder / f"recall-{seconds}s.png")

    figure, axis = plt.subplots(figsize=(5, 4))
    judged = figures.judged(rows)
    # Offsets move the score of short bars for the alert budget: the fitted probability is what is calibrated.
    score = logistic(
        margin[judged] + np.interp(held.marked.length[judged], calibration.length_knots, calibration.both.offsets)
    )
    edges = np.linspace(0, 1, 11)
    place = np.clip(np.digitize(score, edges) - 1, 0, 9)
    counts = np.bincount(place, minlength=10)
    full = counts >= 20
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axis.plot(
        (np.bincount(place, score, 10) / np.maximum(counts, 1))[full],
        (np.bincount(place, manipulated[judged], 10) / np.maximum(counts, 1))[full],
        marker="o",
    )
    axis.set(xlabel="score", ylabel="share manipulated (1.5 % of all bars are)", xlim=(0, 1), ylim=(0, 1))
    save(figure, folder / f"calibration-{seconds}s.png")

    figure, axis = plt.subplots(figsize=(6.5, 4))
    lines = np.linspace(version.line - 3, version.line + 4, 40)
    days = calibrate.symbol_days(held.untouched)
    axis.plot(logistic(lines), [500 * calibrate.count_alerts(held.untouched, plain >= line) / days for line in lines])
    axis.axvline(version.metadata.threshold, color="grey", linewidth=1)
    axis.set(xlabel="threshold", ylabel="alerts per 500 symbols and day, untouched bars", yscale="log")
    save(figure, folder / f"alerts-{seconds}s.png")
