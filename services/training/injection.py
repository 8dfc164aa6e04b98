"""Manipulations put into real bars: documented, seeded, with a strength in deviations.

Strength s is how many of its own usual deviations the defining quantity is moved by. Deviations are classical standard
deviations over the 60 bars before the event, of log returns (sigma) and of log volume (sigma_v, within 0.2 to 1.5). A
move over L bars has the deviation sigma sqrt(L), so a pump of strength 4 over 4 bars lifts the price by 8 sigma. Log
volume is raised by at most ln 50. The real bar stays underneath: displacements are added to logarithms of its prices,
its shadows and its volume's own noise remain, and a missing volume stays missing: a volume spike is put where there is
volume only. Half of the price spikes and a quarter of the pumps and trashes move in part before the bar opens. Strength
0 adds 0.

| typology | price | volume | labelled bars |
|---|---|---|---|
| pump and dump | up over 1-5 bars, back 50-100 % over 1-4 | 1-4 bars before the price, then with it | rise and fall |
| trash and cash | down over 1-5 bars, back 40-90 % over 1-4 bars | with it | fall and recovery |
| ramping | 5-12 even steps in one direction, stays | a little | from the middle of the way on |
| marking the close | close displaced at the bar's end, next open back | a little | the marked bar |
| momentum ignition | within 1-2 bars out and back by 70-100 % | with it | these bars |
| price spike | one bar, stays or half of it returns | from none to the full strength | that bar |
| volume spike | none | 1-2 bars | these bars |

Bars that an event touches but that nobody could judge yet (accumulation, the first half of a ramp, the open after a
marked close) carry label TOUCHED and count neither as manipulated nor as normal.
"""

import zlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from services.archive.bars import Bars
from services.domain.feature_definitions import WINDOW
from services.domain.typology import OBSERVABLE, Typology

Array = NDArray[np.float64]

STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
MAX_SHARE = 0.015
"""Most labelled bars of a series."""

NORMAL, MANIPULATED, TOUCHED = 0, 1, -1

_LOOK_BACK = WINDOW - 1
_SPACING = 25
"""Fewest untouched bars between two events of a series."""
_MAX_LOG_VOLUME = float(np.log(50.0))


@dataclass(frozen=True, slots=True)
class Event:
    """One injected manipulation: bars start to stop (exclusive) of its series are touched."""

    typology: Typology
    strength: float
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Injected:
    """A series with manipulations in it.

    `label` int8 (n,): NORMAL, MANIPULATED or TOUCHED; `event` int64 (n,): index into `events`, -1 for none.
    """

    bars: Bars
    label: NDArray[np.int8]
    event: NDArray[np.int64]
    events: tuple[Event, ...]


@dataclass(slots=True)
class _Plan:
    """Displacements of an event's bars, in logarithms; `closing[i]` and `opening[i]` are the levels at bar i's ends."""

    opening: Array
    closing: Array
    volume: Array
    label: NDArray[np.int8]
    above: Array = field(init=False)
    below: Array = field(init=False)

    def __post_init__(self) -> None:
        self.above = np.zeros(len(self.closing))
        self.below = np.zeros(len(self.closing))


def _plan(closing: Array, volume: Array, label: NDArray[np.int8]) -> _Plan:
    return _Plan(np.concatenate([[0.0], closing[:-1]]), closing, volume, label)


def _marks(length: int, value: int = MANIPULATED) -> NDArray[np.int8]:
    return np.full(length, value, dtype=np.int8)


def _drive_and_return(rng: np.random.Generator, rise: float, lift: float, *, quiet: int, back: float) -> _Plan:
    """Quiet bars with volume only, a drive of `rise` (times the root of its bars), and a return of share `back`."""
    drive, fall = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    total = rise * np.sqrt(drive)
    way = np.cumsum(rng.dirichlet(np.full(drive, 3.0)))
    home = 1.0 - back * np.cumsum(rng.dirichlet(np.full(fall, 3.0)))
    whisper = rng.uniform(0.0, 0.08, quiet)
    closing = total * np.concatenate([whisper, way, home])
    volume = lift * np.concatenate(
        [rng.uniform(0.3, 0.6, quiet), rng.uniform(0.6, 1.0, drive), rng.uniform(0.4, 0.9, fall)]
    )
    return _plan(closing, volume, np.concatenate([_marks(quiet, TOUCHED), _marks(drive + fall)]))


def _gapped(plan: _Plan, rng: np.random.Generator, chance: float) -> _Plan:
    """With this chance, a part of each bar's displacement happens before the bar opens: over night, in a halt."""
    if rng.random() < chance:
        share = rng.uniform(0.0, 1.0)
        plan.opening += share * (plan.closing - plan.opening)
    return plan


def _design(rng: np.random.Generator, typology: Typology, price: float, lift: float) -> _Plan:
    """The event's displacements; `price` is strength x sigma, `lift` is strength x sigma_v."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    if typology is Typology.PUMP_AND_DUMP:
        plan = _drive_and_return(rng, price, lift, quiet=int(rng.integers(1, 5)), back=rng.uniform(0.5, 1.0))
        return _gapped(plan, rng, 0.25)
    if typology is Typology.TRASH_AND_CASH:
        return _gapped(_drive_and_return(rng, -price, lift, quiet=0, back=rng.uniform(0.4, 0.9)), rng, 0.25)
    if typology is Typology.RAMPING:
        bars = int(rng.integers(5, 13))
        way = np.cumsum(rng.dirichlet(np.full(bars, 20.0)))
        label = np.where(way >= 0.5, MANIPULATED, TOUCHED).astype(np.int8)
        return _plan(side * price * np.sqrt(bars) * way, lift * rng.uniform(0.0, 0.25, bars), label)
    if typology is Typology.MARKING_THE_CLOSE:
        plan = _plan(np.array([side * price, 0.0]), np.array([lift * rng.uniform(0.0, 0.4), 0.0]), _marks(2))
        plan.opening[1] = 0.0
        plan.label[1] = TOUCHED
        return plan
    if typology is Typology.MOMENTUM_IGNITION:
        left = price * (1.0 - rng.uniform(0.7, 1.0))
        if rng.random() < 0.5:
            plan = _plan(np.array([side * left]), np.array([lift * rng.uniform(0.5, 1.0)]), _marks(1))
            (plan.above if side > 0 else plan.below)[0] = price - left
            return plan
        return _plan(np.array([side * price, side * left]), lift * rng.uniform(0.5, 1.0, 2), _marks(2))
    if typology is Typology.PRICE_SPIKE:
        stays = 1.0 if rng.random() < 0.5 else 0.5
        volume = np.array([lift * rng.uniform(0.0, 1.0), 0.0])
        plan = _plan(side * price * np.array([1.0, stays]), volume, _marks(2))
        plan.label[1] = TOUCHED
        return _gapped(plan, rng, 0.5)
    bars = int(rng.integers(1, 3))
    return _plan(np.zeros(bars), np.full(bars, lift), _marks(bars))


def _deviations(bars: Bars, start: int) -> tuple[float, float]:
    """Standard deviations of log returns and of log volume over the bars before `start`."""
    past = slice(max(0, start - _LOOK_BACK), start)
    ratio = np.where(np.isnan(bars.split_ratio[past]), 1.0, bars.split_ratio[past])
    steps = np.diff(np.log(bars.close[past])) + np.log(ratio[1:])
    volume = bars.volume[past]
    traded = volume[volume > 0]
    sigma = float(np.std(steps)) if len(steps) > 1 else 0.0
    sigma_v = float(np.std(np.log(traded))) if len(traded) > 1 else 0.2
    return max(sigma, 1e-4), float(np.clip(sigma_v, 0.2, 1.5))


def _apply(bars: Bars, plan: _Plan, start: int) -> None:
    """Adds the displacements to the bars from `start` on, in place; what remains at the end shifts all later bars."""
    stop = start + len(plan.closing)
    part = slice(start, stop)
    opened, close = np.log(bars.open[part]), np.log(bars.close[part])
    upper = np.log(bars.high[part]) - np.maximum(opened, close)
    lower = np.minimum(opened, close) - np.log(bars.low[part])
    opened, close = opened + plan.opening, close + plan.closing
    bars.open[part], bars.close[part] = np.exp(opened), np.exp(close)
    bars.high[part] = np.exp(np.maximum(opened, close) + upper + plan.above)
    bars.low[part] = np.exp(np.minimum(opened, close) - lower - plan.below)
    # exp(log(x)) may differ from x in the last bit: the bar stays well-formed.
    np.maximum(bars.high[part], np.maximum(bars.open[part], bars.close[part]), out=bars.high[part])
    np.minimum(bars.low[part], np.minimum(bars.open[part], bars.close[part]), out=bars.low[part])
    bars.volume[part] *= np.exp(np.minimum(plan.volume, _MAX_LOG_VOLUME))
    for column in (bars.open, bars.high, bars.low, bars.close):
        column[stop:] *= np.exp(plan.closing[-1])


def inject(
    bars: Bars,
    seed: int,
    *,
    typologies: tuple[Typology, ...] = OBSERVABLE,
    strengths: tuple[float, ...] = STRENGTHS,
    share: float = MAX_SHARE,
) -> Injected:
    """A copy of the series with manipulations at random places.

    Args:
        bars: The real series. Events start after its first 60 bars.
        seed: With the symbol, decides everything.
        typologies: Drawn from evenly.
        strengths: In deviations, drawn from evenly.
        share: Most labelled bars as a share of all, at most MAX_SHARE.

    Raises:
        ValueError: `share` is over MAX_SHARE.
    """
    if not 0.0 <= share <= MAX_SHARE:
        raise ValueError(f"share {share} is not within 0 to {MAX_SHARE}")
    rng = np.random.default_rng([seed, zlib.crc32(bars.symbol.encode())])
    n = len(bars)
    touched = replace(
        bars,
        **{name: getattr(bars, name).copy() for name in ("open", "high", "low", "close", "volume")},
    )
    label = np.zeros(n, dtype=np.int8)
    event_of = np.full(n, -1, dtype=np.int64)
    events: list[Event] = []
    budget = int(share * n)
    free = np.zeros(n, dtype=bool)
    free[_LOOK_BACK + 1 :] = True
    for _ in range(4 * budget):
        places = np.flatnonzero(free)
        if budget <= 0 or not len(places):
            break
        start = int(rng.choice(places))
        typology = typologies[int(rng.integers(len(typologies)))]
        strength = float(strengths[int(rng.integers(len(strengths)))])
        # Deviations of the untouched series: an earlier event nearby does not make this one larger.
        sigma, sigma_v = _deviations(bars, start)
        plan = _design(rng, typology, strength * sigma, strength * sigma_v)
        stop = start + len(plan.closing)
        marked = int(np.count_nonzero(plan.label == MANIPULATED))
        if stop > n or not free[start:stop].all() or marked > budget:
            continue
        if typology is Typology.VOLUME_SPIKE and not (bars.volume[start:stop] > 0).all():
            continue
        _apply(touched, plan, start)
        label[start:stop] = plan.label
        event_of[start:stop] = len(events)
        events.append(Event(typology, strength, start, stop))
        budget -= marked
        free[max(0, start - _SPACING) : stop + _SPACING] = False
    return Injected(touched, label, event_of, tuple(events))
