"""The trade-off between alerts and threshold: as a PNG where matplotlib is installed, and on the terminal."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from services.cli.plot_file import open_pyplot
from services.domain.alert_budget import TradeOff, log_odds
from services.domain.threshold import PER_DAY

_BAR_CHARACTERS = 40
_ROWS = 12


def unit_words(unit: str) -> str:
    """The budget's unit as a reader says it."""
    return "alerts a day" if unit == PER_DAY else "alerts per 500 symbols a day"


def print_trade_off(console: Console, curve: TradeOff, unit: str, chosen: float, budget: float) -> None:
    """The curve at a dozen thresholds evenly spaced in log-odds, the chosen one among them."""
    table = Table("threshold", unit_words(unit), "detections", "", title="alerts over threshold", title_justify="left")
    most = math.log1p(float(curve.alerts.max()))
    for threshold in _thresholds(curve, chosen):
        i = int(np.searchsorted(-curve.thresholds, -threshold, side="right")) - 1
        alerts, detections = (float(curve.alerts[i]), int(curve.detections[i])) if i >= 0 else (0.0, 0)
        bar = "█" * round(_BAR_CHARACTERS * math.log1p(alerts) / most) if most else ""
        mark = " ← chosen" if threshold == chosen else ""
        style = "bold green" if threshold == chosen else "dim" if alerts > budget else ""
        table.add_row(f"{threshold:.6g}", f"{alerts:.3g}", f"{detections:,}", bar + mark, style=style)
    console.print(table)


def _thresholds(curve: TradeOff, chosen: float) -> Sequence[float]:
    odds = np.linspace(log_odds(float(curve.thresholds[0])), log_odds(float(curve.thresholds[-1])), _ROWS)
    return sorted({*(1.0 / (1.0 + np.exp(-odds))).tolist(), chosen}, reverse=True)


def save_plot(path: Path, curve: TradeOff, unit: str, chosen: float, served: float, budget: float) -> None:
    """Write the curve with the budget, the chosen and the served threshold as a PNG.

    Raises: NotConfiguredError and InvalidRequestError as `open_pyplot`.
    """
    plt = open_pyplot(path)
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.step([log_odds(t) for t in curve.thresholds], curve.alerts, where="post", color="black", label="alerts")
    axes.axhline(budget, color="tab:green", linestyle="--", label=f"budget {budget:g}")
    axes.axvline(log_odds(chosen), color="tab:green", label=f"chosen {chosen:.4g}")
    axes.axvline(log_odds(served), color="tab:grey", linestyle=":", label=f"until now {served:.4g}")
    ticks = [t for t in (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999) if _inside(t, curve)]
    axes.set_xticks([log_odds(t) for t in ticks], [f"{t:g}" for t in ticks])
    axes.set_yscale("log")
    axes.set_xlabel("threshold on the score")
    axes.set_ylabel(unit_words(unit))
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _inside(threshold: float, curve: TradeOff) -> bool:
    return bool(curve.thresholds[-1] <= threshold <= max(float(curve.thresholds[0]), 0.5))
