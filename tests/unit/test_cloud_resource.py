"""Resource attributes on AWS: from Lambda's variables, and from ECS's metadata endpoint."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.runtime.cloud_resource import cloud_attributes

TASK_ARN = "arn:aws:ecs:eu-central-1:123456789012:task/tapewatch/158d1c8083dd49d6b527399fd6414f5c"
CONTAINER_ARN = "arn:aws:ecs:eu-central-1:123456789012:container/tapewatch/158d1c80/fe1b5dcd"
ANSWERS = {
    "/v4/abc": {"DockerId": "ea32192c8553", "DockerName": "scorer", "ContainerARN": CONTAINER_ARN},
    "/v4/abc/task": {
        "Cluster": "tapewatch",
        "TaskARN": TASK_ARN,
        "Family": "tapewatch-scorer",
        "Revision": "7",
        "AvailabilityZone": "eu-central-1b",
        "LaunchType": "FARGATE",
    },
}


@pytest.fixture
def endpoint() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = ANSWERS.get(self.path)
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v4"
    server.shutdown()
    server.server_close()


def test_elsewhere_there_is_nothing_to_say() -> None:
    assert cloud_attributes({"AWS_REGION": "eu-central-1"}) == {}


def test_lambda_is_known_by_its_variables() -> None:
    assert cloud_attributes(
        {
            "AWS_LAMBDA_FUNCTION_NAME": "dispatch",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_REGION": "eu-central-1",
        }
    ) == {
        "cloud.provider": "aws",
        "cloud.platform": "aws_lambda",
        "cloud.region": "eu-central-1",
        "faas.name": "dispatch",
        "faas.version": "$LATEST",
        "faas.max_memory": 536_870_912,
    }


def test_a_task_is_known_by_its_metadata(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runtime.cloud_resource.METADATA_SECONDS", 60.0)
    found = cloud_attributes({"ECS_CONTAINER_METADATA_URI_V4": f"{endpoint}/abc"})
    assert found["cloud.platform"] == "aws_ecs"
    assert found["cloud.region"] == "eu-central-1"
    assert found["cloud.account.id"] == "123456789012"
    assert found["aws.ecs.cluster.arn"] == "arn:aws:ecs:eu-central-1:123456789012:cluster/tapewatch"
    assert found["aws.ecs.task.arn"] == TASK_ARN
    assert found["aws.ecs.task.family"] == "tapewatch-scorer"
    assert found["aws.ecs.launchtype"] == "fargate"
    assert found["container.id"] == "ea32192c8553"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/v4/abc", "file:///etc/hostname", "{endpoint}/other"])
def test_a_silent_endpoint_costs_the_attributes_and_nothing_else(uri: str, endpoint: str) -> None:
    environment = {"ECS_CONTAINER_METADATA_URI_V4": uri.format(endpoint=endpoint), "AWS_REGION": "eu-central-1"}
    assert cloud_attributes(environment) == {
        "cloud.provider": "aws",
        "cloud.platform": "aws_ecs",
        "cloud.region": "eu-central-1",
    }
