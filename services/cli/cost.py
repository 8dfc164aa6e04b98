"""`tapewatch cost`: what a month on AWS costs, design by design."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.plot_file import open_pyplot
from services.costs.model import DESIGNS, Load, Prices, crossovers, read_prices, total

_SYMBOLS = sorted({max(1, round(10 ** (i / 20))) for i in range(81)})
_OLD_CLAIM = (0.6, 0.8)


def cost(load: Load, region: str, prices_file: Path | None, plot: Path | None, console: Console) -> int:
    """Print the designs' costs, which to choose, and the cross-overs; draw them when asked. The exit code."""
    pyplot = None if plot is None else open_pyplot(plot)
    prices, provenance = read_prices(region, prices_file)
    months = {name: design(load, prices) for name, design in DESIGNS.items()}
    parts = list(next(iter(months.values())))
    table = Table("design", *parts, "month", "against polling", title=f"{load.quotes:,.0f} quotes a month, USD")
    reference = sum(months["polling"].values())
    for name, month in months.items():
        whole = sum(month.values())
        saved = f"{1 - whole / reference:+.0%}".replace("+", "saves ").replace("-", "costs +")
        table.add_row(name, *(f"{month[part]:,.2f}" for part in parts), f"{whole:,.2f}", saved)
    console.print(table)
    best = min(months, key=lambda name: sum(months[name].values()))
    console.print(Text.assemble("Choose: ", (best, "bold"), f" ({provenance}; --prices FILE takes your own)."))
    _claim(months, reference, console)
    changes = crossovers(load, prices, _SYMBOLS)
    steps = [f"{name} from {count:,} symbols" for count, name in changes]
    console.print(f"Cheapest by load, everything else as it is: {', then '.join(steps)} (looked at up to 10,000).")
    if plot is not None:
        _draw(pyplot, load, prices, plot)
        console.print(f"Plot: {plot}")
    return 0


def _claim(months: dict[str, dict[str, float]], reference: float, console: Console) -> None:
    low, high = _OLD_CLAIM
    for name in ("task per batch", "task per message"):
        saved = 1 - sum(months[name].values()) / reference
        verdict = "true here" if low <= saved else "not true here"
        console.print(f"Old claim, {low:.0%} to {high:.0%} cheaper than polling; {name}: {verdict} ({saved:+.0%}).")


def _draw(pyplot: Any, load: Load, prices: Prices, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, design in DESIGNS.items():
        axes.loglog(_SYMBOLS, [total(design, replace(load, symbols=n), prices) for n in _SYMBOLS], label=name)
    for count, name in crossovers(load, prices, _SYMBOLS)[1:]:
        axes.axvline(count, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(f"{name}\nfrom {count:,}", (count, axes.get_ylim()[0]), fontsize=8, va="bottom")
    axes.axvline(load.symbols, color="black", linewidth=0.8)
    axes.set_xlabel(f"symbols, one quote each {load.interval_seconds:g} s")
    axes.set_ylabel("USD a month")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
