"""A service of the mesh on Fargate: its container, what puts its certificates in place, and the collector beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from deploy.images import Images
from deploy.network import PORTS, TELEMETRY_PORT, NetworkStack
from deploy.settings import DeploySettings, Task
from deploy.storage import StorageStack
from services.runtime.secret_files import THRESHOLD_DIR, THRESHOLD_JSON

TLS_FOLDER: Final = "/run/tapewatch"
STATE_FOLDER: Final = "/var/lib/tapewatch"
TLS_FILES: Final = {
    "TLS_CERT_FILE": f"{TLS_FOLDER}/certificate.pem",
    "TLS_KEY_FILE": f"{TLS_FOLDER}/key.pem",
    "TLS_CA_FILE": f"{TLS_FOLDER}/authority.pem",
}
STOP_SECONDS: Final = 60
"""Between SIGTERM and SIGKILL; the services' own grace is shorter."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What every task needs."""

    settings: DeploySettings
    network: NetworkStack
    storage: StorageStack
    images: Images
    collector: ecs.ContainerImage
    metrics: logs.LogGroup

    def address(self, service: str) -> str:
        """Where a service answers."""
        return f"{service}.{self.settings.network.namespace}:{PORTS[service]}"


def task_role(scope: Construct, construct_id: str, scene: Scene, what: str) -> iam.Role:
    """A role for a task's own code and for the collector beside it."""
    role = iam.Role(
        scope, construct_id, assumed_by=iam.ServicePrincipal("ecs-tasks.amazonaws.com"), description=f"Tapewatch {what}"
    )
    role.add_to_policy(
        iam.PolicyStatement(
            sid="CollectorMetrics",
            actions=["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
            resources=[scene.metrics.log_group_arn, f"{scene.metrics.log_group_arn}:log-stream:*"],
        )
    )
    role.add_to_policy(
        iam.PolicyStatement(
            sid="CollectorTraces",
            actions=["xray:PutTraceSegments", "xray:PutTelemetryRecords"],
            resources=["*"],  # X-Ray has no resources to name
        )
    )
    return role


def task_definition(
    scope: Construct,
    construct_id: str,
    scene: Scene,
    *,
    service: str,
    size: Task,
    role: iam.Role,
    image: ecs.ContainerImage,
    environment: Mapping[str, str],
    command: tuple[str, ...] = (),
) -> ecs.FargateTaskDefinition:
    """The task of a service; with `command` a one-shot task that serves nothing."""
    made = ecs.FargateTaskDefinition(
        scope,
        construct_id,
        family=f"{scene.settings.name}-{construct_id.lower()}",
        cpu=size.cpu,
        memory_limit_mib=size.memory_mib,
        task_role=role,
        runtime_platform=ecs.RuntimePlatform(
            cpu_architecture=scene.images.architecture, operating_system_family=ecs.OperatingSystemFamily.LINUX
        ),
        volumes=[ecs.Volume(name=name) for name in ("tls", "state", "scratch")],
    )
    # Fargate keeps the owner that the image gives these folders, so that an unprivileged user can write there.
    tls = ecs.MountPoint(container_path=TLS_FOLDER, source_volume="tls", read_only=False)
    written = [
        ecs.MountPoint(container_path=STATE_FOLDER, source_volume="state", read_only=False),
        ecs.MountPoint(container_path="/tmp", source_volume="scratch", read_only=False),
    ]
    log = logs.LogGroup(
        scope,
        f"{construct_id}Log",
        retention=retention(scene.settings),
        removal_policy=RemovalPolicy.DESTROY,
    )
    secret = scene.storage.tls[service]
    certificates = made.add_container(
        "certificates",
        image=image,
        command=["tapewatch", "secret-files"],
        essential=False,
        readonly_root_filesystem=True,
        environment=TLS_FILES | _threshold(scene, service),
        secrets={
            "TLS_CERT_PEM": ecs.Secret.from_secrets_manager(secret, "certificate"),
            "TLS_KEY_PEM": ecs.Secret.from_secrets_manager(secret, "key"),
            "TLS_CA_PEM": ecs.Secret.from_secrets_manager(secret, "authority"),
        },
        logging=ecs.LogDrivers.aws_logs(stream_prefix="certificates", log_group=log),
    )
    certificates.add_mount_points(tls)
    serves = not command
    if serves:
        role.add_to_policy(
            iam.PolicyStatement(
                sid="Certificates", actions=["secretsmanager:GetSecretValue"], resources=[secret.secret_arn]
            )
        )
    container = made.add_container(
        service,
        image=image,
        command=list(command) or None,
        readonly_root_filesystem=True,
        stop_timeout=Duration.seconds(STOP_SECONDS),
        environment={**_environment(scene, service, serves), **environment},
        secrets={"AUTH_TOKEN": secret_value(scene.storage.token)},
        logging=ecs.LogDrivers.aws_logs(stream_prefix=service, log_group=log),
        port_mappings=[ecs.PortMapping(container_port=PORTS[service])] if serves else None,
        health_check=_health_check(service) if serves else None,
    )
    # A service renews its certificates there while it serves.
    certificates_mount = ecs.MountPoint(container_path=TLS_FOLDER, source_volume="tls", read_only=not serves)
    container.add_mount_points(certificates_mount, *written)
    container.add_container_dependencies(
        ecs.ContainerDependency(container=certificates, condition=ecs.ContainerDependencyCondition.SUCCESS)
    )
    made.add_container(
        "collector",
        image=scene.collector,
        essential=False,  # without telemetry the market is still watched
        readonly_root_filesystem=True,
        memory_reservation_mib=64,
        environment={"METRICS_LOG_GROUP": scene.metrics.log_group_name, "AWS_REGION": scene.settings.region},
        port_mappings=[ecs.PortMapping(container_port=TELEMETRY_PORT)] if service == "dispatch" else None,
        logging=ecs.LogDrivers.aws_logs(stream_prefix="collector", log_group=log),
    )
    return made


def secret_value(secret: secretsmanager.ISecret) -> ecs.Secret:
    """A whole secret as a container's environment variable."""
    return ecs.Secret.from_secrets_manager(secret)


def retention(settings: DeploySettings) -> logs.RetentionDays:
    """How long log lines are kept."""
    names = {
        1: "ONE_DAY",
        3: "THREE_DAYS",
        5: "FIVE_DAYS",
        7: "ONE_WEEK",
        14: "TWO_WEEKS",
        30: "ONE_MONTH",
        60: "TWO_MONTHS",
        90: "THREE_MONTHS",
        180: "SIX_MONTHS",
        365: "ONE_YEAR",
    }
    found: logs.RetentionDays = getattr(logs.RetentionDays, names[settings.log_retention_days])
    return found


def _environment(scene: Scene, service: str, serves: bool) -> dict[str, str]:
    common = {
        **TLS_FILES,
        "AWS_REGION": scene.settings.region,
        "LOG_FORMAT": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{TELEMETRY_PORT}",
        "TAPEWATCH_DIR": STATE_FOLDER,
    }
    if service == "scorer":
        common |= {key: value for key, value in _threshold(scene, service).items() if key == THRESHOLD_DIR}
        if scene.settings.model.version:
            common["MODEL_VERSION"] = scene.settings.model.version
    if not serves:
        return common
    return common | {
        "TLS_SECRET_ARN": scene.storage.tls[service].secret_arn,
        "GRPC_HOST": "0.0.0.0",  # with certificates on both sides and a token
        "GRPC_PORT": str(PORTS[service]),
        "TLS_CLIENT_CA_FILE": TLS_FILES["TLS_CA_FILE"],
        "SHUTDOWN_GRACE_SECONDS": "25",
    }


def _threshold(scene: Scene, service: str) -> dict[str, str]:
    """A scorer's calibrated threshold: the folder, and what the first container writes there. Empty without one."""
    text = scene.settings.model.threshold_json if service == "scorer" else ""
    return {THRESHOLD_DIR: TLS_FOLDER, THRESHOLD_JSON: text} if text else {}


def _health_check(service: str) -> ecs.HealthCheck:
    return ecs.HealthCheck(
        command=["CMD", "tapewatch", "health", f"localhost:{PORTS[service]}"],
        interval=Duration.seconds(30),
        timeout=Duration.seconds(10),
        retries=3,
        start_period=Duration.seconds(60),
    )
