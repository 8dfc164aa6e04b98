"""What analysts decided, by score: how often an alert of a band was confirmed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.domain.alert import Disposition
from services.domain.alert_budget import log_odds, lowest_of_sample

_STEPS = (1.0, 2.0, 4.0)
"""Where the bands above the threshold end, in log-odds beyond it."""
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Band:
    """Scores from `low` to `high` (exclusive) with what was decided of them."""

    low: float
    high: float
    confirmed: int
    dismissed: int

    @property
    def closed(self) -> int:
        """Decisions."""
        return self.confirmed + self.dismissed

    @property
    def precision(self) -> float | None:
        """Share of the decisions that confirmed; None without decisions."""
        return self.confirmed / self.closed if self.closed else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the precision. Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209."""
        return wilson(self.confirmed, self.closed) if self.closed else None


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share.

    >>> tuple(round(x, 3) for x in wilson(9, 10))
    (0.596, 0.982)
    """
    share, z = successes / trials, _Z95
    middle = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def edges(threshold: float) -> list[float]:
    """Where bands begin and end: the below-the-line sample, then steps up from the threshold."""
    at = log_odds(threshold)
    above = [1.0 / (1.0 + math.exp(-(at + step))) for step in _STEPS]
    return [0.0, lowest_of_sample(threshold), threshold, *above, math.nextafter(1.0, 2.0)]


def bands(decisions: Iterable[tuple[float, Disposition]], threshold: float) -> list[Band]:
    """The bands around a threshold, lowest first, with the decisions (score, disposition) in each."""
    bounds: Sequence[float] = edges(threshold)
    counts = [[0, 0] for _ in bounds[1:]]
    for score, disposition in decisions:
        if disposition is Disposition.UNSPECIFIED:
            continue
        i = max(0, min(len(counts) - 1, sum(score >= bound for bound in bounds) - 1))
        counts[i][disposition is Disposition.DISMISSED] += 1
    return [
        Band(low, high, confirmed, dismissed)
        for low, high, (confirmed, dismissed) in zip(bounds, bounds[1:], counts, strict=False)
    ]
