"""Waiting before another try."""

from services.runtime.backoff import backoff_seconds


def test_backoff_rises_to_its_longest_and_is_never_zero() -> None:
    for failures in (1, 2, 5, 1_000):
        values = [backoff_seconds(failures) for _ in range(100)]
        full = min(5.0, 0.1 * 2 ** min(failures - 1, 20))
        assert full / 2 <= min(values) < max(values) <= full
