"""Returned messages come again by group."""

import pytest

from services.dispatch.handler import SOON_RECEIVES, redelivery_seconds
from services.queue.redelivery import Returned, deliver_again


def test_a_group_comes_again_at_once_by_its_first_messages_count() -> None:
    changed: list[tuple[list[str], float]] = []
    returned = [Returned("a1", "A", 3), Returned("b1", "B", 1), Returned("a2", "A", 1), Returned("c1", "C", 9)]
    deliver_again(returned, {3: 4.0, 1: 1.0, 9: None}.get, lambda handles, seconds: changed.append((handles, seconds)))
    assert changed == [(["a1", "a2"], 4.0), (["b1"], 1.0)], "the queue's own timeout is left to C"


@pytest.mark.parametrize("receives", range(1, SOON_RECEIVES + 1))
def test_the_function_lets_messages_wait_longer_each_time(receives: int) -> None:
    longest = min(2.0 ** (receives - 1), 30.0)
    assert all(longest / 2 <= (redelivery_seconds(receives) or 0.0) <= longest for _ in range(20))


def test_later_the_function_leaves_them_to_the_queue() -> None:
    assert redelivery_seconds(SOON_RECEIVES + 1) is None
    assert redelivery_seconds(1_000) is None
