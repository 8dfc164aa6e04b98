"""What a training reads: locations of bars, each split into its sides."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from services.archive import location as location_reader
from services.archive.bars import Bars
from services.archive.benchmark import Benchmark, benchmarks
from services.domain.errors import TapewatchError
from services.domain.feature_definitions import WINDOW
from services.training import dataset
from services.training.dataset import Part

_SHOWN_PROBLEMS = 5


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
    tell: Callable[[str], None] = lambda _: None,
    sectors: Mapping[str, str] = MappingProxyType({}),
) -> list[Source]:
    """The trainable series of each location, longest bars first; each location is split by its own time.

    Args:
        locations: What the networks learn from.
        calibration: Further locations, of other bar lengths, that only calibrate and measure.
        tell: Called with what is left out and why.
        sectors: By symbol; a symbol without one has the symbols as peers that move most like it.

    Raises: InvalidRequestError when a location cannot be read or is too small; TapewatchError when a side is empty.
    """
    found = []
    for number, location in enumerate([*locations, *calibration]):
        problems: list[str] = []
        everything = location_reader.read(location, problems)
        history = dataset.trainable(everything)
        for problem in problems[:_SHOWN_PROBLEMS]:
            tell(problem)
        if len(problems) > _SHOWN_PROBLEMS:
            tell(f"and {len(problems) - _SHOWN_PROBLEMS:,} more like these")
        lengths = Counter(bars.interval_seconds for bars in history)
        usual = lengths.most_common(1)[0][0]
        history = [bars for bars in history if bars.interval_seconds == usual]
        sides = dataset.split(history)
        for part, side in sides.items():
            if not side:
                raise TapewatchError(f"{location}: no series has more than {WINDOW} bars in the {part.value} period")
        market = benchmarks((bars for bars in everything if bars.interval_seconds == usual), sectors)[usual]
        found.append(Source(location, usual, history, sides, market, trained=number < len(locations)))
    found.sort(key=lambda source: -source.interval_seconds)
    if len({source.interval_seconds for source in found}) < len(found):
        raise TapewatchError("two locations hold bars of the same length: put them into one folder")
    return found
