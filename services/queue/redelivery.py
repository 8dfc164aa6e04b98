"""When a message that was returned is delivered again: soon at first, for what failed may be back in a moment."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Returned(NamedTuple):
    """A delivered message that must come again."""

    receipt_handle: str
    group_id: str
    receive_count: int


def deliver_again(
    returned: Iterable[Returned],
    wait_seconds: Callable[[int], float | None],
    change_visibility: Callable[[list[str], float], None],
) -> None:
    """Set when the messages are delivered again; all of a group at once, so that they keep their order.

    Args:
        returned: In the order in which they were delivered.
        wait_seconds: How long a group waits whose first message was delivered so often. None leaves it to the queue.
        change_visibility: The queue's.
    """
    counts: dict[str, int] = {}
    handles: dict[int, list[str]] = defaultdict(list)
    for message in returned:
        count = counts.setdefault(message.group_id, message.receive_count)
        handles[count].append(message.receipt_handle)
    for count, group in handles.items():
        if (seconds := wait_seconds(count)) is not None:
            change_visibility(group, seconds)
