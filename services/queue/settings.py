"""Which queue, and where."""

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from services.runtime.settings import AwsSettings

EMBEDDED_NAME: Final = "market_queue.fifo"


class QueueSettings(AwsSettings):
    """The quote queue between ingest and dispatch; both need the same one."""

    queue_backend: Literal["sqlite", "sqs"] = Field(
        "sqlite", description="`sqlite` (a file on this machine) or `sqs` (an SQS FIFO queue)"
    )
    queue_path: Path = Field(Path(".tapewatch/queue.db"), description="file of the embedded queue")
    queue_synchronous: Literal["normal", "full"] = Field(
        "normal", description="`full` makes the embedded queue survive a power loss, at the price of slower sends"
    )
    sqs_queue_url: str = Field("", description="URL of the SQS FIFO queue")
    sqs_dead_letter_queue_url: str = Field(
        "", description="URL of the FIFO dead-letter queue; empty takes it from the queue's redrive policy"
    )

    @property
    def queue_name(self) -> str:
        """The queue's name in traces (messaging.destination.name)."""
        return self.sqs_queue_url.rpartition("/")[2] if self.queue_backend == "sqs" else EMBEDDED_NAME
