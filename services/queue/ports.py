"""The quote queue as its callers need it: first in first out per group, at least once, with dead letters.

The words and limits are those of SQS FIFO, so that a contract suite can hold every adapter to one behaviour. Adapters
block; callers run them in threads (`asyncio.to_thread`). Adapters are safe to call from several threads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

MAX_BODY_BYTES = 256 * 1024
DEDUPLICATION_SECONDS = 300


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to send. Within a group order is kept; an equal deduplication id within five minutes adds nothing."""

    body: str
    group_id: str
    deduplication_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message is durable in the queue; or an equal one already was (`deduplicated`, None when unknowable)."""

    message_id: str
    deduplicated: bool | None = None


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A delivered message, invisible to other receivers until acknowledged, released or timed out.

    `receive_count` is 1 on the first delivery. `sequence_number` rises within a group.
    """

    message_id: str
    receipt_handle: str
    body: str
    group_id: str
    deduplication_id: str
    sequence_number: str
    receive_count: int
    sent_time: datetime
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What waits, in messages."""

    ready: int
    in_flight: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that can never be processed, with the reason."""

    body: str
    group_id: str
    reason: str
    attributes: Mapping[str, str] = field(default_factory=dict)


class DeadLetters(Protocol):
    """Where messages go that can never be processed."""

    def send_dead_letter(self, letter: DeadLetter) -> None:
        """Keep the letter. Durable on return. Raises DependencyUnavailableError when the queue is away."""
        ...


class Queue(DeadLetters, Protocol):
    """A FIFO queue with groups. Every method raises DependencyUnavailableError when the queue is away or busy."""

    def send(self, messages: Sequence[OutgoingMessage]) -> list[SentMessage]:
        """Make messages durable, in order; all of them, or an error, after which any of them may be sent again.

        Returns one result per message, in order.
        """
        ...

    def receive(self, max_messages: int, visibility_seconds: float, wait_seconds: float = 0) -> list[ReceivedMessage]:
        """Up to `max_messages`, in order within each group, waiting for the first at most `wait_seconds`.

        A group with a message in flight delivers nothing until that one is acknowledged, released or timed out.
        """
        ...

    def acknowledge(self, receipt_handles: Sequence[str]) -> None:
        """Delete delivered messages. A handle that is no longer the current one is ignored."""
        ...

    def change_visibility(self, receipt_handles: Sequence[str], visibility_seconds: float) -> None:
        """Keep delivered messages invisible for that much longer from now; 0 releases them at once."""
        ...

    def depth(self) -> QueueDepth:
        """What waits. Approximate on SQS."""
        ...

    def check(self) -> None:
        """Return when messages can be sent and received now; the health of whoever needs the queue rests on it."""
        ...

    def list_dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Some of the dead letters, which stay where they are."""
        ...

    def close(self) -> None:
        """Release connections. Calling it twice is harmless."""
        ...
