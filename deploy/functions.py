"""The Lambdas of the dispatcher: one zip, a handler each, in the mesh's network, told only where their secrets are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from deploy.fargate import Scene, retention
from deploy.network import TELEMETRY_PORT

DISPATCH_HANDLER: Final = "services.dispatch.handler.lambda_handler"
RECONCILE_HANDLER: Final = "services.dispatch.reconcile_handler.lambda_handler"

_POLLER = ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes")
"""What Lambda's poller does in the function's name."""

_DEAD_LETTERS = ("sqs:SendMessage", "sqs:GetQueueAttributes")
_INTERFACES = (
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
)


class MeshFunction(Construct):
    """A function with a role of its own, which may read its certificates and token and nothing else yet."""

    def __init__(
        self, scope: Construct, construct_id: str, scene: Scene, code: Path, *, name: str, handler: str, what: str
    ) -> None:
        super().__init__(scope, construct_id)
        settings, storage = scene.settings, scene.storage
        log = logs.LogGroup(self, "Log", retention=retention(settings), removal_policy=RemovalPolicy.DESTROY)
        self.role = iam.Role(
            self,
            "Role",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            description=f"Tapewatch {name} Lambda",
        )
        self.allow("Log", ("logs:CreateLogStream", "logs:PutLogEvents"), f"{log.log_group_arn}:log-stream:*")
        self.allow("NetworkInterfaces", _INTERFACES, "*")  # EC2 names no resources there
        secrets = (storage.token.secret_arn, storage.tls["lambda"].secret_arn)
        self.allow("Secrets", ("secretsmanager:GetSecretValue",), *secrets)
        arm = settings.architecture == "arm64"
        self.function = lambda_.Function(
            self,
            "Function",
            function_name=f"{settings.name}-{name}",
            description=what,
            runtime=lambda_.Runtime.PYTHON_3_13,
            architecture=lambda_.Architecture.ARM_64 if arm else lambda_.Architecture.X86_64,
            handler=handler,
            code=lambda_.Code.from_asset(str(code)),
            memory_size=settings.dispatch.memory_mib,
            timeout=Duration.seconds(settings.dispatch.timeout_seconds),
            role=self.role,
            log_group=log,
            vpc=scene.network.vpc,
            vpc_subnets=scene.network.subnets,
            security_groups=[scene.network.groups["lambda"]],
            environment={
                "QUEUE_BACKEND": "sqs",
                "SQS_QUEUE_URL": storage.queue.queue_url,
                "SQS_DEAD_LETTER_QUEUE_URL": storage.dead_letters.queue_url,
                "SCORER_ADDRESSES": scene.address("scorer"),
                "GATEWAY_ADDRESS": scene.address("gateway"),
                "TOKEN_SECRET_ARN": secrets[0],
                "TLS_SECRET_ARN": secrets[1],
                "LOG_FORMAT": "json",
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://dispatch.{settings.network.namespace}:{TELEMETRY_PORT}",
            },
        )

    def allow(self, sid: str, actions: tuple[str, ...], *resources: str) -> None:
        """Let the function do exactly this."""
        self.role.add_to_policy(iam.PolicyStatement(sid=sid, actions=list(actions), resources=list(resources)))

    def tell(self, environment: Mapping[str, str]) -> None:
        """Add to the function's environment."""
        for name, value in environment.items():
            self.function.add_environment(name, value)


def dispatch_function(scope: Construct, scene: Scene, code: Path) -> MeshFunction:
    """The function behind the queue's event source mapping."""
    settings, storage = scene.settings, scene.storage
    made = MeshFunction(
        scope,
        "Dispatcher",
        scene,
        code,
        name="dispatch",
        handler=DISPATCH_HANDLER,
        what="Scores and records the batches of the quote queue",
    )
    made.allow("EventSource", _POLLER, storage.queue.queue_arn)
    made.allow("Returned", ("sqs:ChangeMessageVisibility",), storage.queue.queue_arn)
    made.allow("DeadLetters", _DEAD_LETTERS, storage.dead_letters.queue_arn)
    lambda_.EventSourceMapping(
        made,
        "Mapping",
        target=made.function,
        event_source_arn=storage.queue.queue_arn,
        batch_size=settings.dispatch.batch_size,
        report_batch_item_failures=True,
        max_concurrency=settings.dispatch.maximum_concurrency,
    )
    return made
