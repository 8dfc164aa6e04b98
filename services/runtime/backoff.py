"""How long to wait before trying again what failed for the moment."""

import random


def backoff_seconds(failures: int, first: float = 0.1, longest: float = 5.0) -> float:
    """The wait after `failures` failures in a row (1 or more), in seconds.

    Doubles from `first` to `longest`; half of it is jitter, so that callers neither keep step with each other nor ever
    try again at once.
    """
    return min(longest, first * 2.0 ** min(failures - 1, 64)) * random.uniform(0.5, 1.0)  # noqa: S311
