"""How long the dispatch Lambda takes, cold and warm, under AWS's own runtime client: `python -m bench.lambda_start`.

The function is the zip, its mesh runs on this machine, and Lambda's Runtime API is `tests/servers/runtime_api.py`. A
cold start is from the process's start to the end of its first event of ten quotes; the time that Lambda takes to fetch
the zip and to start its sandbox comes on top. `make tools` installs the runtime client.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from services.domain.quote import Quote
from services.queue.event_source import sqs_event
from services.queue.market_message import encode
from services.queue.ports import ReceivedMessage
from tests.e2e.processes import Mesh
from tests.pipeline_fakes import quote
from tests.servers.runtime_api import LambdaFunction, runtime_python

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


def measured(mesh: Mesh, folder: Path) -> dict[str, float]:
    """Seconds of cold starts and of warm calls."""
    code = make_zip(folder)
    environment = {"SCORER_ADDRESSES": mesh.scorer, "GATEWAY_ADDRESS": mesh.gateway, "QUEUE_PATH": str(folder / "q.db")}
    initial, cold, warm = [], [], []
    number = 0
    for start in range(COLD_STARTS):
        with LambdaFunction(code, HANDLER, environment, folder) as function:
            first = function.invoke(batch(number))
            number += 1
            initial.append(function.init_seconds)
            cold.append(function.init_seconds + first.ended - first.began)
            if start == COLD_STARTS - 1:
                for _ in range(WARM_CALLS):
                    call = function.invoke(batch(number))
                    number += 1
                    assert call.answer == {"batchItemFailures": []}
                    warm.append(call.ended - call.began)
    warm.sort()
    return {
        "initialisation_s_median": round(statistics.median(initial), 3),
        "cold_s_median": round(statistics.median(cold), 3),
        "cold_s_max": round(max(cold), 3),
        "warm_ms_median": round(1_000 * statistics.median(warm), 1),
        "warm_ms_p99": round(1_000 * warm[int(len(warm) * 0.99)], 1),
    }


def main() -> None:
    """Measure, print, save."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mesh = Mesh(folder / "mesh")
        try:
            mesh.start("up", "--source", "replay", "--symbols", "FB")
            mesh.wait_serving()
            time.sleep(5)  # the tape is played by then
            result = {"quotes": BATCH, "cold_starts": COLD_STARTS, "warm_calls": WARM_CALLS, **measured(mesh, folder)}
        finally:
            mesh.stop()
    print(json.dumps(result, indent=2))
    saved = Path(__file__).with_name("results") / "lambda_start.json"
    saved.parent.mkdir(exist_ok=True)
    saved.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
