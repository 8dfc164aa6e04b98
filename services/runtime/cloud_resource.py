"""Where on AWS this process runs, in the words of OpenTelemetry's resource conventions; nothing elsewhere."""

import json
import logging
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

METADATA_SECONDS: Final = 1.0
"""How long ECS's metadata endpoint, which is on the same host, may take."""

_log = logging.getLogger(__name__)


Attributes = dict[str, str | int | list[str]]


def cloud_attributes(environment: Mapping[str, str]) -> Attributes:
    """The attributes of the Lambda environment or the ECS task that the variables tell of.

    Sources: Lambda's runtime variables; version 4 of the ECS task metadata endpoint.
    """
    found: Attributes
    if "AWS_LAMBDA_FUNCTION_NAME" in environment:
        found = _lambda(environment)
    elif uri := environment.get("ECS_CONTAINER_METADATA_URI_V4"):
        found = {"cloud.platform": "aws_ecs", "cloud.region": environment.get("AWS_REGION", ""), **_ecs(uri)}
    else:
        return {}
    return {"cloud.provider": "aws"} | {name: value for name, value in found.items() if value}


def _lambda(environment: Mapping[str, str]) -> Attributes:
    megabytes = environment.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    log_group = environment.get("AWS_LAMBDA_LOG_GROUP_NAME", "")
    return {
        "cloud.platform": "aws_lambda",
        "cloud.region": environment.get("AWS_REGION", ""),
        "faas.name": environment["AWS_LAMBDA_FUNCTION_NAME"],
        "faas.version": environment.get("AWS_LAMBDA_FUNCTION_VERSION", ""),
        "faas.instance": environment.get("AWS_LAMBDA_LOG_STREAM_NAME", ""),
        "faas.max_memory": int(megabytes) * 1024 * 1024 if megabytes.isdecimal() else 0,
        "aws.log.group.names": [log_group] if log_group else [],
    }


def _ecs(uri: str) -> dict[str, str]:
    try:
        container, task = _metadata(uri), _metadata(f"{uri}/task")
    except (OSError, ValueError) as error:
        _log.warning("ECS's metadata endpoint does not answer; spans do not name their task: %s", error)
        return {}
    task_arn = str(task.get("TaskARN", ""))
    cluster = str(task.get("Cluster", ""))
    _, _, _, region, account, _ = (*task_arn.split(":", 5), *[""] * 6)[:6]
    if cluster and not cluster.startswith("arn:") and account:
        cluster = f"{task_arn.rpartition(':')[0]}:cluster/{cluster}"
    return {
        "cloud.region": region,
        "cloud.account.id": account,
        "cloud.availability_zone": str(task.get("AvailabilityZone", "")),
        "cloud.resource_id": str(container.get("ContainerARN", "")),
        "container.id": str(container.get("DockerId", "")),
        "container.name": str(container.get("DockerName", "")),
        "aws.ecs.container.arn": str(container.get("ContainerARN", "")),
        "aws.ecs.cluster.arn": cluster,
        "aws.ecs.launchtype": str(task.get("LaunchType", "")).lower(),
        "aws.ecs.task.arn": task_arn,
        "aws.ecs.task.id": task_arn.rpartition("/")[2],
        "aws.ecs.task.family": str(task.get("Family", "")),
        "aws.ecs.task.revision": str(task.get("Revision", "")),
    }


def _metadata(uri: str) -> dict[str, Any]:
    if not uri.startswith("http://"):
        raise ValueError(f"{uri} is no address of the metadata endpoint")
    with urllib.request.urlopen(uri, timeout=METADATA_SECONDS) as response:  # noqa: S310 - http only, checked above
        found = json.load(response)
    if not isinstance(found, dict):
        raise ValueError(f"{uri} answers no object")
    return found
