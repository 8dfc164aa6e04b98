"""How long to wait before trying again what failed for the moment."""

import random
from typing import Final

from services.domain.errors import NotConfiguredError, TapewatchError

LONGEST_SECONDS: Final = 5.0
REPAIR_SECONDS: Final = 30.0
"""Longest wait for what somebody has to mend first: a permission, an expired credential, a table that is gone."""


def backoff_seconds(failures: int, first: float = 0.1, longest: float = LONGEST_SECONDS) -> float:
    """The wait after `failures` failures in a row (1 or more), in seconds.

    Doubles from `first` to `longest`; half of it is jitter, so that callers neither keep step with each other nor ever
    try again at once.
    """
    return min(longest, first * 2.0 ** min(failures - 1, 64)) * random.uniform(0.5, 1.0)  # noqa: S311


def pause_seconds(error: TapewatchError, failures: int, longest: float = LONGEST_SECONDS) -> float:
    """The wait of a loop that goes on after the error: longer where trying again cannot help by itself."""
    return backoff_seconds(failures, longest=REPAIR_SECONDS if isinstance(error, NotConfiguredError) else longest)
