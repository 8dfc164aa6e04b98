"""The mesh itself: services on Fargate, the dispatch Lambda, one-shot tasks, and who may do what."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack, TimeZone
from aws_cdk import aws_applicationautoscaling as scaling
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_servicediscovery as servicediscovery
from constructs import Construct

from deploy.fargate import Scene, retention, task_definition, task_role
from deploy.functions import dispatch_function
from deploy.images import Images
from deploy.lake_catalog import LAKE_PREFIX
from deploy.network import NetworkStack
from deploy.serving import ServingStack
from deploy.settings import DeploySettings, Task
from deploy.storage import StorageStack
from deploy.task_mode import TaskMode
from services.ingest.progress_dynamodb import PROGRESS_PERMISSIONS
from services.runtime.dynamodb_table import STORE_PERMISSIONS

_SEND = ("sqs:SendMessage", "sqs:GetQueueAttributes")
_PARTS = ("s3:PutObject", "s3:AbortMultipartUpload")

_NOT_STARTED = (
    "SERVICE_TASK_PLACEMENT_FAILURE",
    "SERVICE_TASK_CONFIGURATION_FAILURE",
    "SERVICE_TASK_START_IMPAIRED",
)
"""What ECS says of a service whose tasks it cannot start."""


def allow(role: iam.Role, sid: str, actions: tuple[str, ...], *resources: str) -> None:
    """Let a role do exactly this."""
    role.add_to_policy(iam.PolicyStatement(sid=sid, actions=list(actions), resources=list(resources)))


class MeshStack(Stack):
    """Cluster, services, Lambda and one-shot tasks."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: DeploySettings,
        network: NetworkStack,
        storage: StorageStack,
        serving: ServingStack | None,
        images: Images,
        code: Path,
        **given: Any,
    ) -> None:
        super().__init__(scope, construct_id, description="Tapewatch: the services of the mesh", **given)
        self.cluster = ecs.Cluster(
            self,
            "Cluster",
            cluster_name=settings.name,
            vpc=network.vpc,
            container_insights_v2=ecs.ContainerInsights.ENABLED,  # RunningTaskCount, which the scaling divides by
        )
        metrics = logs.LogGroup(self, "Metrics", retention=retention(settings), removal_policy=RemovalPolicy.DESTROY)
        self._scene = Scene(settings, network, storage, images, images.collector(self), metrics)
        self._images = {
            service: images.service(self, service) for service in ("ingest", "dispatch", "scorer", "gateway")
        }
        self._tasks = TaskMode(self, "Tasks", self._scene, self.cluster, self._images["scorer"])
        self.services = {
            "gateway": self._gateway(serving),
            "scorer": self._scorer(),
            "ingest": self._ingest(),
            "dispatch": self._dispatch(),
        }
        self._scale_scorers(self.services["scorer"])
        self.dispatcher = dispatch_function(self, self._scene, code)
        self.dispatcher.tell(self._tasks.environment())
        self._tasks.permit(self.dispatcher.role)
        self.reconciler = self._tasks.reconcile(code)
        self.failures = self._task_failures()

    def _service(
        self, service: str, role: iam.Role, size: Task, count: int, environment: Mapping[str, str]
    ) -> ecs.FargateService:
        definition = task_definition(
            self,
            service.capitalize(),
            self._scene,
            service=service,
            size=size,
            role=role,
            image=self._images[service],
            environment=environment,
        )
        return ecs.FargateService(
            self,
            f"{service.capitalize()}Service",
            service_name=service,
            cluster=self.cluster,
            task_definition=definition,
            desired_count=count,
            min_healthy_percent=100,
            max_healthy_percent=200,
            circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
            assign_public_ip=False,
            vpc_subnets=self._scene.network.subnets,
            security_groups=[self._scene.network.groups[service]],
            cloud_map_options=ecs.CloudMapOptions(
                name=service,
                cloud_map_namespace=self._scene.network.namespace,
                dns_record_type=servicediscovery.DnsRecordType.A,
                dns_ttl=Duration.seconds(10),
            ),
            enable_ecs_managed_tags=True,
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )

    def _queue_environment(self) -> dict[str, str]:
        storage = self._scene.storage
        return {
            "QUEUE_BACKEND": "sqs",
            "SQS_QUEUE_URL": storage.queue.queue_url,
            "SQS_DEAD_LETTER_QUEUE_URL": storage.dead_letters.queue_url,
        }

    def _ingest(self) -> ecs.FargateService:
        settings, storage = self._scene.settings, self._scene.storage
        role = task_role(self, "IngestRole", self._scene, "ingest")
        allow(role, "Queue", _SEND, storage.queue.queue_arn)
        allow(role, "DeadLetters", _SEND, storage.dead_letters.queue_arn)
        allow(role, "Progress", PROGRESS_PERMISSIONS, storage.progress.table_arn)
        allow(role, "ReplayObjects", ("s3:GetObject",), storage.lake.arn_for_objects(f"{LAKE_PREFIX}/*"))
        allow(role, "ReplayListing", ("s3:ListBucket",), storage.lake.bucket_arn)
        environment = self._queue_environment() | {
            "SOURCE": settings.ingest.source,
            "SYMBOLS": settings.ingest.symbols,
            "POLL_INTERVAL_SECONDS": str(settings.ingest.poll_interval_seconds),
            "MARKET_CALENDAR": settings.market_hours.calendar,
            "INGEST_BACKEND": "dynamodb",
            "INGEST_TABLE": storage.progress.table_name,
        }
        return self._service("ingest", role, settings.ingest, 1, environment)

    def _dispatch(self) -> ecs.FargateService:
        """DispatchService and the canaries; the queue is the Lambda's."""
        settings, storage, scene = self._scene.settings, self._scene.storage, self._scene
        role = task_role(self, "DispatchRole", scene, "dispatch service")
        allow(role, "Depth", ("sqs:GetQueueAttributes",), storage.queue.queue_arn, storage.dead_letters.queue_arn)
        self._tasks.permit(role)
        if self._tasks.on:  # it settles batches too, and what of them can never be scored
            allow(role, "DeadLetters", ("sqs:SendMessage",), storage.dead_letters.queue_arn)
        environment = self._queue_environment() | {
            "EVENT_SOURCE": "none",
            "SCORER_ADDRESSES": scene.address("scorer"),
            "GATEWAY_ADDRESS": scene.address("gateway"),
            "INGEST_ADDRESS": scene.address("ingest"),
            "CANARY_INTERVAL_SECONDS": str(settings.dispatch.canary_interval_seconds),
            **self._tasks.environment(),
        }
        return self._service("dispatch", role, Task(cpu=256, memory_mib=512), 1, environment)

    def _scorer(self) -> ecs.FargateService:
        settings, scene = self._scene.settings, self._scene
        role = task_role(self, "ScorerRole", scene, "scorer")
        environment = {"GATEWAY_ADDRESS": scene.address("gateway")}
        return self._service("scorer", role, settings.scorer, settings.scorer.minimum, environment)

    def _gateway(self, serving: ServingStack | None) -> ecs.FargateService:
        settings, storage = self._scene.settings, self._scene.storage
        role = task_role(self, "GatewayRole", self._scene, "gateway")
        allow(role, "Table", STORE_PERMISSIONS, storage.table.table_arn)
        allow(role, "LakeObjects", _PARTS, storage.lake.arn_for_objects(f"{LAKE_PREFIX}/*"))
        environment = {
            "STORE_BACKEND": "dynamodb",
            "STORE_TABLE": storage.table.table_name,
            "STORE_RETENTION_DAYS": str(settings.gateway.retention_days),
            "LAKE_URI": f"s3://{storage.lake.bucket_name}/{LAKE_PREFIX}",
            "LAKE_FLUSH_SECONDS": str(settings.gateway.lake_flush_seconds),
        }
        if serving is not None:
            environment |= serving.let_gateway_use(role)
        return self._service("gateway", role, settings.gateway, settings.gateway.count, environment)

    def _scale_scorers(self, service: ecs.FargateService) -> None:
        """Between the minimum of the hour and the maximum, by what waits for each running task."""
        settings = self._scene.settings
        scorer, hours = settings.scorer, settings.market_hours
        target = service.auto_scale_task_count(
            min_capacity=min(scorer.minimum, scorer.off_hours_minimum), max_capacity=scorer.maximum
        )
        zone = TimeZone.of(hours.timezone)
        for name, clock, minimum in (
            ("MarketOpens", hours.opens, scorer.minimum),
            ("MarketCloses", hours.closes, scorer.off_hours_minimum),
        ):
            target.scale_on_schedule(
                name,
                schedule=scaling.Schedule.expression(hours.cron(clock)),
                time_zone=zone,
                min_capacity=minimum,
                max_capacity=scorer.maximum,
            )
        policy = scaling.CfnScalingPolicy
        # Metric math, which the construct for target tracking does not take.
        scaled = policy(
            self,
            "BacklogPerScorer",
            policy_name=f"{settings.name}-backlog-per-scorer",
            policy_type="TargetTrackingScaling",
            resource_id=f"service/{self.cluster.cluster_name}/{service.service_name}",
            scalable_dimension="ecs:service:DesiredCount",
            service_namespace="ecs",
            target_tracking_scaling_policy_configuration=policy.TargetTrackingScalingPolicyConfigurationProperty(
                target_value=scorer.backlog_per_task,
                scale_out_cooldown=60,
                scale_in_cooldown=300,
                customized_metric_specification=policy.CustomizedMetricSpecificationProperty(
                    metrics=self._backlog_metrics(service)
                ),
            ),
        )
        scaled.node.add_dependency(target)

    def _backlog_metrics(self, service: ecs.FargateService) -> list[Any]:
        policy = scaling.CfnScalingPolicy

        def stat(metric_id: str, namespace: str, name: str, statistic: str, dimensions: Mapping[str, str]) -> Any:
            return policy.TargetTrackingMetricDataQueryProperty(
                id=metric_id,
                return_data=False,
                metric_stat=policy.TargetTrackingMetricStatProperty(
                    stat=statistic,
                    metric=policy.TargetTrackingMetricProperty(
                        namespace=namespace,
                        metric_name=name,
                        dimensions=[
                            policy.TargetTrackingMetricDimensionProperty(name=key, value=value)
                            for key, value in dimensions.items()
                        ],
                    ),
                ),
            )

        queue = {"QueueName": self._scene.storage.queue.queue_name}
        running = {"ClusterName": self.cluster.cluster_name, "ServiceName": service.service_name}
        return [
            stat("waiting", "AWS/SQS", "ApproximateNumberOfMessagesVisible", "Maximum", queue),
            stat("running", "ECS/ContainerInsights", "RunningTaskCount", "Average", running),
            policy.TargetTrackingMetricDataQueryProperty(
                id="backlog", expression="IF(running > 0, waiting / running, waiting)", return_data=True
            ),
        ]

    def _task_failures(self) -> events.CfnRule:
        """Counts tasks that failed and tasks that a service cannot get: the alarm on this rule's matches."""
        stopped = {"lastStatus": ["STOPPED"]}
        return events.CfnRule(
            self,
            "TaskFailures",
            name=f"{self._scene.settings.name}-task-failures",
            description="A task of the mesh failed, was not started or placed, or ran out of memory",
            event_pattern={
                "source": ["aws.ecs"],
                "detail-type": ["ECS Task State Change", "ECS Service Action"],
                "detail": {
                    "clusterArn": [self.cluster.cluster_arn],
                    "$or": [  # a container that never started has no exit code, which anything-but would ask for
                        stopped | {"stopCode": ["TaskFailedToStart", "TerminationNotice"]},
                        stopped
                        | {
                            "stopCode": ["EssentialContainerExited"],
                            "containers": {"exitCode": [{"anything-but": 0}]},
                        },
                        # Its scheduler also stops what scaling and deployments replace: those are no failures.
                        stopped
                        | {"stopCode": ["ServiceSchedulerInitiated"], "stoppedReason": [{"prefix": "Task failed "}]},
                        {"eventName": list(_NOT_STARTED)},
                    ],
                },
            },
            targets=[events.CfnRule.TargetProperty(arn=self._failure_log().log_group_arn, id="log")],
        )

    def _failure_log(self) -> logs.LogGroup:
        """Why tasks failed, kept for whoever looks into the alarm."""
        log = logs.LogGroup(
            self,
            "TaskFailureLog",
            log_group_name=f"/aws/events/{self._scene.settings.name}-task-failures",
            retention=retention(self._scene.settings),
            removal_policy=RemovalPolicy.DESTROY,
        )
        log.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("events.amazonaws.com")],
                actions=["logs:CreateLogStream", "logs:PutLogEvents"],
                resources=[f"{log.log_group_arn}:*"],
            )
        )
        return log
