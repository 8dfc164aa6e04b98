"""Tasks on AWS: ECS RunTask on Fargate, one container's environment overridden for each."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from opentelemetry import trace

from services.dispatch.ports import MAX_TOKEN_CHARACTERS, NoCapacity, TaskPhase, TaskStatus
from services.dispatch.task_environment import container_overrides, fits
from services.domain.errors import ConflictError, DependencyUnavailableError, NotConfiguredError, TapewatchError
from services.runtime import telemetry_names as names
from services.runtime.aws import AwsResource, open_client

DESCRIBE_LIMIT: Final = 100
"""Tasks that one DescribeTasks call takes."""

_STARTED_BY = "tapewatch-dispatch"
_ANSWER_SECONDS = 15.0
_PERMISSIONS = ("ecs:RunTask", "ecs:DescribeTasks", "ecs:StopTask", "iam:PassRole")
_TAKEN_AWAY = {"SpotInterruption", "TerminationNotice", "ServiceSchedulerInitiated"}
"""Stop codes of tasks that AWS ended: their exit codes say nothing of their batch."""

_SETTINGS = {
    "ClusterNotFoundException": "ECS_CLUSTER_NAME",
    "ClientException": "ECS_TASK_DEFINITION",
    "InvalidParameterException": "ECS_TASK_DEFINITION, ECS_CONTAINER_NAME, ECS_SUBNET_IDS and ECS_SECURITY_GROUP_IDS",
    "PlatformUnknownException": "ECS_TASK_DEFINITION",
    "PlatformTaskDefinitionIncompatibilityException": "ECS_TASK_DEFINITION",
}
"""Codes by which ECS refuses a launch for good, and what mends it."""


class EcsLauncher:
    """A `TaskLauncher` on ECS. `client` is a boto3 ECS client, which is safe to share between threads.

    Args:
        client: The client.
        cluster: Name or ARN of the cluster.
        task_definition: Family, family:revision or ARN.
        container: Name of the container in it that scores.
        subnets: Where tasks run; several, for their capacity.
        security_groups: Theirs.
        public_ip: Give tasks a public address: subnets without NAT or VPC endpoints need it.
    """

    def __init__(
        self,
        client: Any,
        cluster: str,
        task_definition: str,
        container: str,
        subnets: Sequence[str],
        security_groups: Sequence[str] = (),
        *,
        public_ip: bool = False,
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._task_definition = task_definition
        self._container = container
        self._network = {
            "awsvpcConfiguration": {
                "subnets": list(subnets),
                "securityGroups": list(security_groups),
                "assignPublicIp": "ENABLED" if public_ip else "DISABLED",
            }
        }
        self._resource = AwsResource(
            "task launcher", "cluster", cluster, "ECS_CLUSTER_NAME", _PERMISSIONS, client.meta.region_name
        )

    @classmethod
    def connect(
        cls,
        cluster: str,
        task_definition: str,
        container: str,
        subnets: Sequence[str],
        security_groups: Sequence[str],
        region: str = "",
        *,
        public_ip: bool = False,
    ) -> "EcsLauncher":
        """The launcher in `region`; empty takes the AWS configuration's. Nothing is asked of AWS yet.

        Raises: NotConfiguredError when boto3, a region, or one of the settings is missing.
        """
        wanted = {
            "ECS_CLUSTER_NAME": cluster,
            "ECS_TASK_DEFINITION": task_definition,
            "ECS_CONTAINER_NAME": container,
            "ECS_SUBNET_IDS": ",".join(subnets),
        }
        if missing := [name for name, value in wanted.items() if not value]:
            raise NotConfiguredError(
                "the ECS task launcher does not know what to launch and where", f"set {', '.join(missing)}"
            )
        resource = AwsResource("task launcher", "cluster", cluster, "ECS_CLUSTER_NAME", _PERMISSIONS, region)
        client = open_client("ecs", region, resource, "set TASK_LAUNCHER=subprocess", read_seconds=_ANSWER_SECONDS)
        return cls(client, cluster, task_definition, container, subnets, security_groups, public_ip=public_ip)

    def launch(self, token: str, environment: Mapping[str, str]) -> str | NoCapacity:
        """RunTask with the token as its clientToken; the task's ARN."""
        if not 0 < len(token) <= MAX_TOKEN_CHARACTERS or not token.isascii():
            raise NotConfiguredError(f"no task may be named {token[:80]!r}", "name it by 1 to 64 ASCII characters")
        if not fits(self._container, environment):
            raise NotConfiguredError(f"the environment of {token[:12]} is too large for ECS", "set BATCHES_URI")
        answer = self._call(
            "run_task",
            taskDefinition=self._task_definition,
            count=1,
            launchType="FARGATE",
            networkConfiguration=self._network,
            overrides=container_overrides(self._container, environment),
            startedBy=_STARTED_BY,
            clientToken=token,
        )
        if tasks := answer.get("tasks"):
            arn = str(tasks[0]["taskArn"])
            trace.get_current_span().set_attribute(names.ATTRIBUTE_TASK_ARN, arn)
            return arn
        failures = answer.get("failures") or [{}]
        why = "; ".join(" ".join(filter(None, (f.get("reason"), f.get("detail")))) or "no reason" for f in failures)
        return NoCapacity(why)

    def describe(self, tasks: Sequence[str]) -> dict[str, TaskStatus]:
        """DescribeTasks; ECS forgets a stopped task after about an hour."""
        found: dict[str, TaskStatus] = {}
        for start in range(0, len(tasks), DESCRIBE_LIMIT):
            answer = self._call("describe_tasks", tasks=list(tasks[start : start + DESCRIBE_LIMIT]))
            found |= {task["taskArn"]: self._status(task) for task in answer.get("tasks", [])}
        return found

    def _status(self, task: Mapping[str, Any]) -> TaskStatus:
        status = task.get("lastStatus", "")
        started = _time(task.get("startedAt"))
        if status in ("STOPPED", "DEPROVISIONING", "DELETED"):
            containers: list[Mapping[str, Any]] = task.get("containers", [])
            container = next((each for each in containers if each.get("name") == self._container), {})
            words = (task.get("stopCode"), task.get("stoppedReason"), container.get("reason"))
            code = None if task.get("stopCode") in _TAKEN_AWAY else container.get("exitCode")
            return TaskStatus(TaskPhase.STOPPED, started, code, ": ".join(filter(None, words)))
        running = status in ("RUNNING", "DEACTIVATING", "STOPPING")
        return TaskStatus(TaskPhase.RUNNING if running else TaskPhase.STARTING, started, None, status)

    def stop(self, task: str, reason: str) -> None:
        """StopTask."""
        try:
            self._call("stop_task", task=task, reason=reason[:255])
        except NotConfiguredError as error:
            if task in self.describe([task]):
                raise DependencyUnavailableError("task launcher", error.message) from error

    def close(self) -> None:
        """Release connections; tasks run on."""
        self._client.close()

    def _call(self, operation: str, **request: Any) -> Any:
        from botocore.exceptions import ClientError

        with self._resource.translated():
            try:
                return getattr(self._client, operation)(cluster=self._cluster, **request)
            except ClientError as error:
                if (refused := self._refusal(error.response.get("Error", {}))) is not None:
                    raise refused from error
                raise

    def _refusal(self, failure: Mapping[str, Any]) -> TapewatchError | None:
        code, text = failure.get("Code", ""), failure.get("Message", "")
        if code == "ConflictException":
            return ConflictError(f"ECS refuses the launch: {text}")
        if code in _SETTINGS:
            return NotConfiguredError(
                f"ECS refuses {self._cluster} ({code}: {text})", f"set {_SETTINGS[code]} to what it has"
            )
        return None


def _time(moment: object) -> datetime | None:
    return moment if isinstance(moment, datetime) else None
