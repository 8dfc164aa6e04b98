"""What a training reads: locations of bars, each split into its sides."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from services.archive import location as location_reader
from services.archive.bars import Bars
from services.archive.benchmark import Benchmark, benchmarks
from services.archive.errors import unreadable
from services.archive.problems import SHOWN, Problem, by_kind, listed
from services.domain.errors import InvalidRequestError, TapewatchError
from services.domain.feature_definitions import WINDOW
from services.training import dataset
from services.training.dataset import Part

Tell = Callable[[str, Sequence[str]], None]
"""Takes a line about the data, and all that the line only counts."""


@dataclass(frozen=True, slots=True)
class Source:
    """One location's series, all of one bar length, by side of the split."""

    location: str
    interval_seconds: int
    history: list[Bars]
    sides: dict[Part, list[Bars]]
    benchmark: Benchmark
    """The market's returns over these bars, of all symbols; it has no times where too few symbols print."""
    trained: bool = True
    """Whether the networks learn from it; else it only calibrates them and measures them."""


def read_sources(
    locations: Sequence[str],
    calibration: Sequence[str] = (),
    tell: Tell = lambda words, counted: None,
    sectors: Mapping[str, str] = MappingProxyType({}),
) -> list[Source]:
    """The trainable series of each location, longest bars first; each location is split by its own time.

    Args:
        locations: What the networks learn from.
        calibration: Further locations, of other bar lengths, that only calibrate and measure.
        tell: Called with what is left out and why, by kind, and with how many symbols are used, of each location.
        sectors: By symbol; a symbol without one has the symbols as peers that move most like it.

    Raises: InvalidRequestError when a location cannot be read or is too small, of the field `data` or
    `calibration_data`; TapewatchError when a side is empty.
    """
    found = []
    for number, location in enumerate([*locations, *calibration]):
        trained = number < len(locations)
        try:
            found.append(_source(location, tell, sectors, trained))
        except InvalidRequestError as error:
            field = "data" if trained else "calibration_data"
            raise InvalidRequestError([replace(violation, field=field) for violation in error.violations]) from error
    found.sort(key=lambda source: -source.interval_seconds)
    if len({source.interval_seconds for source in found}) < len(found):
        raise TapewatchError("two locations hold bars of the same length: put them into one folder")
    return found


def _source(location: str, tell: Tell, sectors: Mapping[str, str], trained: bool) -> Source:
    """One location. Raises: as `read_sources`."""
    problems: list[Problem] = []
    left_out: dict[str, list[str]] = {}

    def leave_out(bars: Bars, why: str) -> None:
        left_out.setdefault(why, []).append(bars.symbol)

    try:
        everything = location_reader.read(location, problems)
        history = dataset.trainable(everything, leave_out)
        if not history:
            raise unreadable(location, f"has no symbol with more than {2 * WINDOW} usable bars, and volume in a tenth")
        lengths = Counter(bars.interval_seconds for bars in history)
        usual = lengths.most_common(1)[0][0]
        for bars in history:
            if bars.interval_seconds != usual:
                leave_out(bars, f"bars of {bars.interval_seconds} s, and most are of {usual} s")
        history = [bars for bars in history if bars.interval_seconds == usual]
        sides = dataset.split(history)
        used = {bars.symbol for side in sides.values() for bars in side}
        for bars in history:
            if bars.symbol not in used:
                leave_out(bars, f"not more than {WINDOW} bars in the period of their side of the split")
    finally:
        for words, counted in by_kind(problems):
            tell(words, counted)
        for why, symbols in left_out.items():
            several = "1 symbol" if len(symbols) == 1 else f"{len(symbols):,} symbols"
            tell(f"{location}: {several} left out, {why}: {listed(symbols)}", symbols[SHOWN:])
    known = {bars.symbol for bars in everything} | {problem.symbol for problem in problems if problem.symbol}
    tell(f"{location}: used {len(used):,} of {len(known):,} symbols, with bars of {usual} s", ())
    for part, side in sides.items():
        if not side:
            raise TapewatchError(
                f"{location}: no series has more than {WINDOW} bars in the {part.value} period: it needs more symbols, "
                "or a longer history"
            )
    market = benchmarks((bars for bars in everything if bars.interval_seconds == usual), sectors)[usual]
    return Source(location, usual, history, sides, market, trained)
