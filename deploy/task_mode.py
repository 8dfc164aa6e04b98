"""One-shot scorers: their task definition, and in task mode who launches them and who sees to those that fail."""

from pathlib import Path
from typing import Final

from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam
from constructs import Construct

from deploy.fargate import Scene, task_definition, task_role
from deploy.functions import RECONCILE_HANDLER, MeshFunction
from deploy.storage import BATCHES_PREFIX
from services.dispatch.ledger_dynamodb import LEDGER_PERMISSIONS, SETTLE_PERMISSIONS

CONTAINER: Final = "scorer"
COMMAND: Final = ("tapewatch", "scorer", "run-once")


class TaskMode(Construct):
    """The one-shot task definition, always there; in task mode also what a launcher needs."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        scene: Scene,
        cluster: ecs.Cluster,
        image: ecs.ContainerImage,
    ) -> None:
        super().__init__(scope, construct_id)
        self._scene = scene
        self._cluster = cluster
        lake = scene.storage.lake
        self._objects = lake.arn_for_objects(f"{BATCHES_PREFIX}/*")
        self._uri = f"s3://{lake.bucket_name}/{BATCHES_PREFIX}"
        self._role = task_role(self, "Role", scene, "one-shot scorer")
        self.definition = task_definition(
            self,
            "RunOnce",
            scene,
            service=CONTAINER,
            size=scene.settings.scorer,
            role=self._role,
            image=image,
            environment={"GATEWAY_ADDRESS": scene.address("gateway"), "BATCHES_URI": self._uri},
            command=COMMAND,
        )
        if self.on:
            for sid, actions, resource in (
                ("Batches", ["s3:GetObject", "s3:PutObject"], self._objects),
                ("BatchesListing", ["s3:ListBucket"], lake.bucket_arn),  # else a missing object is called forbidden
            ):
                self._role.add_to_policy(iam.PolicyStatement(sid=sid, actions=actions, resources=[resource]))

    @property
    def on(self) -> bool:
        """Whether tasks may be launched."""
        return self._scene.settings.dispatch.mode != "warm"

    def environment(self) -> dict[str, str]:
        """What a dispatcher is told of it; nothing in warm mode."""
        ledger = self._scene.storage.ledger
        if ledger is None:
            return {}
        subnets = self._scene.network.vpc.select_subnets(subnet_group_name="mesh").subnet_ids
        return {
            "DISPATCH_MODE": self._scene.settings.dispatch.mode,
            "LEDGER_BACKEND": "dynamodb",
            "LEDGER_TABLE": ledger.table_name,
            "BATCHES_URI": self._uri,
            "TASK_LAUNCHER": "ecs",
            "MAX_CONCURRENT_TASKS": str(self._scene.settings.dispatch.max_concurrent_tasks),
            "ECS_CLUSTER_NAME": self._cluster.cluster_name,
            "ECS_TASK_DEFINITION": self.definition.task_definition_arn,
            "ECS_CONTAINER_NAME": CONTAINER,
            "ECS_SUBNET_IDS": ",".join(subnets),
            "ECS_SECURITY_GROUP_IDS": self._scene.network.groups["scorer"].security_group_id,
        }

    def permit(self, role: iam.Role, *, enters: bool = True) -> None:
        """Let a dispatcher settle the ledger's batches and launch, look at and stop tasks; nothing in warm mode.

        `enters` lets it put batches into the ledger too.
        """
        ledger = self._scene.storage.ledger
        if ledger is None:
            return
        stack = self._cluster.stack
        tasks = stack.format_arn(service="ecs", resource="task", resource_name=f"{self._cluster.cluster_name}/*")

        def allow(sid: str, actions: tuple[str, ...], *resources: str, **conditions: dict[str, str]) -> None:
            role.add_to_policy(
                iam.PolicyStatement(
                    sid=sid, actions=list(actions), resources=list(resources), conditions=conditions or None
                )
            )

        allow("Ledger", LEDGER_PERMISSIONS if enters else SETTLE_PERMISSIONS, ledger.table_arn)
        allow("Batches", ("s3:GetObject", "s3:PutObject"), self._objects)
        allow("BatchesListing", ("s3:ListBucket",), self._scene.storage.lake.bucket_arn)
        allow(
            "Launch",
            ("ecs:RunTask",),
            self.definition.task_definition_arn,
            ArnEquals={"ecs:cluster": self._cluster.cluster_arn},
        )
        allow("Tasks", ("ecs:DescribeTasks", "ecs:StopTask"), tasks)
        passed = (self._role.role_arn, self.definition.obtain_execution_role().role_arn)
        allow("PassRoles", ("iam:PassRole",), *passed, StringEquals={"iam:PassedToService": "ecs-tasks.amazonaws.com"})

    def reconcile(self, code: Path) -> MeshFunction | None:
        """Who settles what ended: called when ECS says that a task stopped, and each minute. None in warm mode."""
        if not self.on:
            return None
        made = MeshFunction(
            self,
            "Reconciler",
            self._scene,
            code,
            name="reconcile",
            handler=RECONCILE_HANDLER,
            what="Settles one-shot tasks that ended, and launches what may start",
        )
        self.permit(made.role, enters=False)
        made.allow("DeadLetters", ("sqs:SendMessage",), self._scene.storage.dead_letters.queue_arn)
        queues = (self._scene.storage.queue.queue_arn, self._scene.storage.dead_letters.queue_arn)
        made.allow("Depth", ("sqs:GetQueueAttributes",), *queues)  # asked when the queue is opened
        made.tell(self.environment())
        name = self._scene.settings.name
        target = events.CfnRule.TargetProperty(arn=made.function.function_arn, id="reconciler")
        stopped = events.CfnRule(
            self,
            "TaskStopped",
            name=f"{name}-task-stopped",
            description="A one-shot scorer stopped",
            event_pattern={
                "source": ["aws.ecs"],
                "detail-type": ["ECS Task State Change"],
                "detail": {
                    "clusterArn": [self._cluster.cluster_arn],
                    "taskDefinitionArn": [self.definition.task_definition_arn],
                    "lastStatus": ["STOPPED"],
                },
            },
            targets=[target],
        )
        minutely = events.CfnRule(
            self,
            "Minutely",
            name=f"{name}-reconcile",
            description="What no event told: launches that failed, tasks that never started",
            schedule_expression="rate(1 minute)",
            targets=[target],
        )
        for rule_id, rule in (("TaskStoppedMayCall", stopped), ("MinutelyMayCall", minutely)):
            made.function.add_permission(
                rule_id, principal=iam.ServicePrincipal("events.amazonaws.com"), source_arn=rule.attr_arn
            )
        return made
