"""Known manipulations to play through the live path: each must alert, or the watch is blind.

Every canary is a series of daily or of one-minute bars, made from its own seed: a quiet history as long as the features
look back, then the manipulation. Only the times differ between two plays, so a canary that alerted yesterday and is
missed today says that something in between broke: a feed, a queue, a scorer, a model or its threshold.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from services.domain.feature_definitions import WINDOW
from services.domain.quote import CANARY_TAPE, DAY_SECONDS, Quote, Series
from services.domain.typology import Typology

QUIET_BARS = WINDOW - 1
_PRICE = 100.0
_VOLUME = 20_000.0
_LOG_VOLUME_DEVIATION = 0.25


@dataclass(frozen=True, slots=True)
class Bar:
    """One manipulated bar: its return as a logarithm, how far its extremes reach beyond, and its volume as a multiple.

    `above` and `below` are logarithms, 0 or more, beyond the higher and the lower of open and close.
    """

    move: float
    volume: float
    above: float = 0.0
    below: float = 0.0


@dataclass(frozen=True, slots=True)
class Canary:
    """One known manipulation. `typology` is what it is; the alert may call it otherwise.

    `deviation` is that of a quiet bar's logarithmic return.
    """

    name: str
    symbol: str
    typology: Typology
    seed: int
    bars: tuple[Bar, ...]
    interval_seconds: int = DAY_SECONDS
    deviation: float = 0.01


_DAILY = (
    Canary(
        "pump-and-dump",
        "CANARY.PUMP",
        Typology.PUMP_AND_DUMP,
        1,
        (
            *(Bar(0.002, 4.0),) * 2,
            *(Bar(0.072, 18.0),) * 4,
            *(Bar(-0.080, 14.0),) * 3,
        ),
    ),
    Canary(
        "trash-and-cash",
        "CANARY.TRASH",
        Typology.TRASH_AND_CASH,
        2,
        (
            *(Bar(-0.002, 5.0),) * 2,
            *(Bar(-0.040, 45.0),) * 4,
            *(Bar(0.036, 30.0),) * 3,
        ),
    ),
    Canary("price-spike", "CANARY.SPIKE", Typology.PRICE_SPIKE, 3, (Bar(0.20, 70.0), Bar(0.0, 2.0))),
    Canary(
        "momentum-ignition",
        "CANARY.IGNITE",
        Typology.MOMENTUM_IGNITION,
        4,
        (Bar(0.20, 45.0), Bar(-0.188, 40.0), Bar(0.0, 2.0)),
    ),
)


_PRINT_FAR_OFF = (Bar(0.42, 1.0), Bar(0.0, 2.0))
"""A price spike without volume: with much of it, one minute's jump looks like news, and alerts from some 6 % on."""


def _in_minutes(canary: Canary) -> Canary:
    """The same of one-minute bars: a quiet return is a tenth of a daily one, a manipulated one a seventh."""
    bars = _PRINT_FAR_OFF if canary.typology is Typology.PRICE_SPIKE else canary.bars
    return replace(
        canary,
        name=f"{canary.name}-1m",
        symbol=f"{canary.symbol}.1M",
        bars=tuple(replace(b, move=b.move / 7, above=b.above / 7, below=b.below / 7) for b in bars),
        interval_seconds=60,
        deviation=canary.deviation / 10,
    )


CANARIES = (*_DAILY, *map(_in_minutes, _DAILY))
"""All that are played, each of a series of its own."""


@dataclass(frozen=True, slots=True)
class PlayedCanary:
    """A canary at one play's times: `history` first, then `manipulated`, of one series of its own."""

    canary: Canary
    history: tuple[Quote, ...]
    manipulated: tuple[Quote, ...]

    @property
    def series(self) -> Series:
        """The series that both belong to."""
        return self.history[0].series


def at(canary: Canary, now: datetime) -> PlayedCanary:
    """The canary as if its last bar had begun at `now`, and of one-minute bars in the last US session's midday before.

    Which minute of the session a bar is in changes what is usual, and so the score: it is the same in every play. The
    source carries the time to the microsecond, so every play has a series, and with it a history, of its own.
    """
    source = f"canary-{now:%Y%m%dt%H%M%S%f}"
    rng = random.Random(canary.seed)  # noqa: S311
    last = len(canary.bars) + QUIET_BARS - 1
    end = now if canary.interval_seconds >= DAY_SECONDS else _last_midday(now)
    quotes: list[Quote] = []
    close = _PRICE
    for i in range(last + 1):
        bar = canary.bars[i - QUIET_BARS] if i >= QUIET_BARS else None
        opened = close
        close = opened * math.exp(rng.gauss(0.0, canary.deviation) + (bar.move if bar else 0.0))
        above = abs(rng.gauss(0.0, canary.deviation / 2)) + (bar.above if bar else 0.0)
        below = abs(rng.gauss(0.0, canary.deviation / 2)) + (bar.below if bar else 0.0)
        volume = _VOLUME * math.exp(rng.gauss(0.0, _LOG_VOLUME_DEVIATION)) * (bar.volume if bar else 1.0)
        quotes.append(
            Quote(
                tape=CANARY_TAPE,
                source=source,
                symbol=canary.symbol,
                interval_seconds=canary.interval_seconds,
                event_time=end - timedelta(seconds=canary.interval_seconds * (last - i)),
                open=opened,
                high=max(opened, close) * math.exp(above),
                low=min(opened, close) * math.exp(-below),
                close=close,
                volume=float(round(volume)),
                currency="USD",
                split_ratio=1.0,
            )
        )
    return PlayedCanary(canary, tuple(quotes[:QUIET_BARS]), tuple(quotes[QUIET_BARS:]))


def _last_midday(now: datetime) -> datetime:
    """The last 16:00 UTC of a weekday, 11:00 or 12:00 in New York, that is not after `now`.

    >>> _last_midday(datetime(2026, 11, 22, 20, 5, tzinfo=UTC)).isoformat()
    '2026-11-20T16:00:00+00:00'
    """
    midday = now.astimezone(UTC).replace(hour=16, minute=0, second=0, microsecond=0)
    while midday > now or midday.weekday() >= 5:
        midday -= timedelta(days=1)
    return midday


@dataclass(frozen=True, slots=True)
class CanaryOutcome:
    """What became of one canary: `delay_seconds` to its alert, or None with the `problem` when it was missed."""

    name: str
    delay_seconds: float | None
    alert_id: str = ""
    typology: Typology = Typology.UNSPECIFIED
    peak_score: float = 0.0
    problem: str = ""

    @property
    def alerted(self) -> bool:
        """Whether it alerted in time."""
        return self.delay_seconds is not None


def choose(names: Sequence[str]) -> tuple[Canary, ...]:
    """The canaries of these names; all when none is named. Raises: ValueError naming an unknown one."""
    by_name = {canary.name: canary for canary in CANARIES}
    if unknown := sorted(set(names) - by_name.keys()):
        raise ValueError(f"no canary named {', '.join(unknown)}; there are {', '.join(by_name)}")
    return tuple(by_name[name] for name in names) if names else CANARIES
