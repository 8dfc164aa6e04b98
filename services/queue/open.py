"""The configured queue."""

from services.domain.errors import NotConfiguredError
from services.queue.ports import Queue
from services.queue.settings import QueueSettings
from services.queue.sqlite import SqliteQueue


def open_queue(settings: QueueSettings) -> Queue:
    """The queue that the settings name.

    Raises: NotConfiguredError or DependencyUnavailableError, in one sentence, when it cannot be used.
    """
    if settings.queue_backend == "sqlite":
        return SqliteQueue(settings.queue_path, synchronous=settings.queue_synchronous)
    if not settings.sqs_queue_url:
        raise NotConfiguredError("nobody knows where the SQS queue is", "set SQS_QUEUE_URL to its URL")
    from services.queue.sqs import SqsQueue  # boto3 is optional and slow to import

    return SqsQueue.connect(
        settings.sqs_queue_url,
        dead_letter_queue_url=settings.sqs_dead_letter_queue_url,
        region=settings.aws_region,
    )
