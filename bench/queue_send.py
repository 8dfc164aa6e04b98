"""What sending to an SQS FIFO queue takes, by how many groups a batch has: `python bench/queue_send.py`.

The queue is ministack's, on this machine; on AWS each call takes longer, and the calls are as many.
"""

import json
import os
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import boto3

from services.queue.ports import OutgoingMessage
from services.queue.sqs import SqsQueue
from tests.servers.process import CREDENTIALS, REGION
from tests.servers.stand_ins import ministack

BATCH = 250
"""Quotes that a replay sends at once."""

GROUPS = (1, 5, 10, 29, 250)
ROUNDS = 5
BODY = "x" * 400


def measured(client: Any, url: str, groups: int) -> dict[str, float]:
    """Calls and messages per second of a batch that is spread evenly over so many groups."""
    calls = 0

    def count(**_: object) -> None:
        nonlocal calls
        calls += 1

    client.meta.events.register("before-call.sqs.SendMessageBatch", count, unique_id="bench")
    queue = SqsQueue(client, url)
    seconds = []
    for _ in range(ROUNDS):
        messages = [OutgoingMessage(BODY, f"group-{i % groups}", uuid.uuid4().hex) for i in range(BATCH)]
        started = time.perf_counter()
        queue.send(messages)
        seconds.append(time.perf_counter() - started)
    client.meta.events.unregister("before-call.sqs.SendMessageBatch", unique_id="bench")
    return {"calls_per_batch": calls / ROUNDS, "messages_per_second": round(BATCH / statistics.median(seconds))}


def main() -> None:
    """Measure, print, save."""
    os.environ.update(CREDENTIALS)
    with tempfile.TemporaryDirectory() as folder:
        server = ministack(Path(folder)).start()
        try:
            client = boto3.client("sqs", region_name=REGION, endpoint_url=server.url)
            url = client.create_queue(QueueName="bench.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
            result = {f"{groups} groups": measured(client, url, groups) for groups in GROUPS}
        finally:
            server.stop()
    print(json.dumps(result, indent=2))
    target = Path(__file__).parent / "results" / "queue_send.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
