"""`tapewatch cost`: what a month on AWS costs, design by design."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from services.cli.plot_file import open_pyplot
from services.costs.model import DESIGNS, LEFT_OUT, MODES, Load, Prices, crossovers, read_prices, scoring, total

_SYMBOLS = sorted({max(1, round(10 ** (i / 20))) for i in range(81)})
_OLD_CLAIM = (0.6, 0.8)
_SAME = 0.005

Month = Mapping[str, float]
Months = Mapping[str, Month]


def cost(load: Load, region: str, prices_file: Path | None, plot: Path | None, console: Console) -> int:
    """Print the designs' costs, which to choose, and the cross-overs; draw them when asked. The exit code."""
    pyplot = None if plot is None else open_pyplot(plot)
    prices, provenance = read_prices(region, prices_file)
    months = {name: design(load, prices) for name, design in DESIGNS.items()}
    console.print(_table(months, f"{load.quotes:,.0f} quotes a month, USD"))
    _advise(months, provenance, console)
    scorers = f"{load.scorers} scorer{'s' if load.scorers > 1 else ''} in market hours, {load.off_hours_scorers} else"
    console.print(f"Warm: {scorers}. Always on: {load.gateways} gateways, ingest, dispatch, canaries, VPC endpoints.")
    console.print(f"Left out: {', '.join(LEFT_OUT)}.")
    _claim(months, console)
    changes = crossovers(load, prices, _SYMBOLS)
    steps = [f"{name} from {count:,} symbol{'s' if count > 1 else ''} on" for count, name in changes]
    console.print(f"Cheapest by load, everything else as it is: {', then '.join(steps)} (looked at up to 10,000).")
    if plot is not None:
        _draw(pyplot, load, prices, plot)
        console.print(f"Plot: {plot}")
    return 0


def _table(months: Months, title: str) -> Table:
    """A column for each design: they fit into 80 characters, and their parts would not."""
    table = Table("", *(Column(name, justify="right") for name in months), title=title)
    for part in next(iter(months.values())):
        table.add_row(part, *(f"{month[part]:,.2f}" for month in months.values()))
    table.add_section()
    table.add_row("month", *(f"{_whole(month):,.2f}" for month in months.values()), style="bold")
    table.add_row("against polling", *(_in_words(_saved(months, name, _whole)) for name in months))
    return table


def _advise(months: Months, provenance: str, console: Console) -> None:
    """The cheapest of what can be deployed; a polling scorer that costs less still is named."""
    best = min(MODES, key=lambda name: _whole(months[name]))
    mode = (f'dispatch.mode = "{MODES[best]}"', "bold")
    console.print(Text.assemble("Choose: ", mode, f" ({provenance}; --prices FILE takes your own)."))
    more = 1 - _whole(months["polling"]) / _whole(months[best])
    if more > 0:
        how = f"would save {more:.0%}" if more >= _SAME else "would cost the same"
        console.print(f"Polling {how}; `make deploy` does not set it up (USE_SQS_DATA_SOURCE on the scorers).")


def _whole(month: Month) -> float:
    return sum(month.values())


def _saved(months: Months, name: str, cost_of: Callable[[Month], float]) -> float:
    return 1 - cost_of(months[name]) / cost_of(months["polling"])


def _in_words(saved: float) -> str:
    if abs(saved) < _SAME:
        return "the same"
    return f"saves {saved:.0%}" if saved > 0 else f"costs {-saved:+.0%}"


def _claim(months: Months, console: Console) -> None:
    """The old system's claim was about what scoring costs; of the whole month it is less."""
    low, high = _OLD_CLAIM
    console.print(f"Old claim: {low:.0%} to {high:.0%} cheaper than polling, of what depends on who scores.")
    for name in months:
        if name == "polling":
            continue
        saved = _saved(months, name, scoring)
        where = "below" if saved < low else "above" if saved > high else "within"
        whole = _saved(months, name, _whole)
        console.print(f"  {name}: {where} the range ({_in_words(saved)}; of the whole month {_in_words(whole)}).")


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
