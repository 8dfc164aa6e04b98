"""The container images: one Dockerfile with a target for each service, and the collector that stands beside them."""

from typing import Final

from aws_cdk import IgnoreMode
from aws_cdk import aws_ecr_assets as assets
from aws_cdk import aws_ecs as ecs
from constructs import Construct

from deploy.settings import REPOSITORY, DeploySettings

DOCKERFILE: Final = "deploy/Dockerfile"
COLLECTOR: Final = REPOSITORY / "deploy" / "collector"


class Images:
    """Images that the CDK command builds, pushes to ECR under a name made of their content, and deploys."""

    def __init__(self, settings: DeploySettings) -> None:
        arm = settings.architecture == "arm64"
        self.architecture = ecs.CpuArchitecture.ARM64 if arm else ecs.CpuArchitecture.X86_64
        self._platform = assets.Platform.LINUX_ARM64 if arm else assets.Platform.LINUX_AMD64

    def service(self, scope: Construct, service: str) -> ecs.ContainerImage:
        """The image of `tapewatch <service> serve`."""
        made = assets.DockerImageAsset(
            scope,
            f"{service.capitalize()}Image",
            directory=str(REPOSITORY),
            file=DOCKERFILE,
            target=service,
            platform=self._platform,
            ignore_mode=IgnoreMode.DOCKER,
        )
        return ecs.ContainerImage.from_docker_image_asset(made)

    def collector(self, scope: Construct) -> ecs.ContainerImage:
        """The OpenTelemetry collector with our configuration."""
        made = assets.DockerImageAsset(scope, "CollectorImage", directory=str(COLLECTOR), platform=self._platform)
        return ecs.ContainerImage.from_docker_image_asset(made)
