"""How long the dispatch Lambda takes, cold and warm, under AWS's own runtime client: `python -m bench.lambda_start`.

The function is the zip, its mesh runs on this machine, and Lambda's Runtime API is `tests/servers/runtime_api.py`. A
cold start is from the process's start to the end of its first event of ten quotes; the time that Lambda takes to fetch
the zip and to start its sandbox comes on top. It is measured twice: without a token, and with TOKEN_SECRET_ARN,
as deployed, so that the function imports boto3 and asks Secrets Manager (ministack's here, over plain HTTP).
TLS between the function and the mesh is in neither. `make tools` installs the runtime client.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3

from services.domain.quote import Quote
from services.queue.event_source import sqs_event
from services.queue.market_message import encode
from services.queue.ports import ReceivedMessage
from tests.e2e.processes import Mesh
from tests.pipeline_fakes import quote
from tests.servers.process import CREDENTIALS, REGION
from tests.servers.runtime_api import LambdaFunction, runtime_python
from tests.servers.stand_ins import ministack

REPOSITORY = Path(__file__).resolve().parents[1]
HANDLER = "services.dispatch.handler.lambda_handler"
BATCH = 10
COLD_STARTS = 7
WARM_CALLS = 200


def event(quotes: Sequence[Quote]) -> dict[str, Any]:
    """The event of a batch."""
    messages = [encode(each) for each in quotes]
    now = datetime.now(UTC)
    return sqs_event(
        [
            ReceivedMessage(f"m{i}", f"h{i}", message.body, message.group_id, message.deduplication_id, str(i), 1, now)
            for i, message in enumerate(messages)
        ]
    )


def batch(number: int) -> dict[str, Any]:
    """Ten quotes of one series, following those of the batch before."""
    start = datetime(2026, 1, 5, tzinfo=UTC)
    first = quote(0, "BENCH", tape="bench")
    at = [start + timedelta(minutes=number * BATCH + i) for i in range(BATCH)]
    return event([replace(first, event_time=moment) for moment in at])


def make_zip(folder: Path) -> Path:
    """The function's zip for the runtime client's Python."""
    asked = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    version = subprocess.run([str(runtime_python()), "-c", asked], capture_output=True, text=True, check=True).stdout
    output = folder / "dispatch.zip"
    make = [sys.executable, "deploy/lambda_zip.py", "--python", version.strip(), "--architecture", "x86_64"]
    subprocess.run([*make, "--output", str(output)], check=True, cwd=REPOSITORY)
    return output


@dataclass
class Times:
    """Seconds of the starts and of the calls after them."""

    initial: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians and the slowest."""
        warm = sorted(self.warm)
        return {
            "initialisation_s_median": round(statistics.median(self.initial), 3),
            "cold_s_median": round(statistics.median(self.cold), 3),
            "cold_s_max": round(max(self.cold), 3),
            "warm_ms_median": round(1_000 * statistics.median(warm), 1),
            "warm_ms_p99": round(1_000 * warm[int(len(warm) * 0.99)], 1),
        }


def measured(mesh: Mesh, folder: Path, variants: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Each variant of the function's environment, in turns, so that a busier minute of the machine meets them all."""
    code = make_zip(folder)
    environment = {"SCORER_ADDRESSES": mesh.scorer, "GATEWAY_ADDRESS": mesh.gateway, "QUEUE_PATH": str(folder / "q.db")}
    times = {name: Times() for name in variants}
    batches = map(batch, itertools.count())
    for start in range(COLD_STARTS):
        for name, variant in variants.items():
            with LambdaFunction(code, HANDLER, {**environment, **variant}, folder) as function:
                first = function.invoke(next(batches))
                times[name].initial.append(function.init_seconds)
                times[name].cold.append(function.init_seconds + first.ended - first.began)
                for _ in range(WARM_CALLS if start == COLD_STARTS - 1 else 0):
                    call = function.invoke(next(batches))
                    assert call.answer == {"batchItemFailures": []}
                    times[name].warm.append(call.ended - call.began)
    return {name: each.summary() for name, each in times.items()}


def token_secret(url: str) -> dict[str, str]:
    """A token in Secrets Manager: what the function is told of it."""
    client = boto3.client(
        "secretsmanager",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    arn = client.create_secret(Name="bench/token", SecretString="t0ken")["ARN"]
    return {"TOKEN_SECRET_ARN": arn, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": REGION}


def main() -> None:
    """Measure, print, save."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ministack").mkdir()
        aws = ministack(folder / "ministack").start()
        mesh = Mesh(folder / "mesh")
        try:
            mesh.start("up", "--source", "replay", "--symbols", "FB")
            mesh.wait_serving()
            time.sleep(5)  # the tape is played by then
            variants = {"without_secrets": {}, "token_from_secrets_manager": token_secret(aws.url)}
            result = {
                "quotes": BATCH,
                "cold_starts": COLD_STARTS,
                "warm_calls": WARM_CALLS,
                "cores": os.cpu_count(),
                **measured(mesh, folder, variants),
                "load_average": round(os.getloadavg()[0], 1),
            }
        finally:
            mesh.stop()
            aws.stop()
    print(json.dumps(result, indent=2))
    saved = Path(__file__).with_name("results") / "lambda_start.json"
    saved.parent.mkdir(exist_ok=True)
    saved.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
