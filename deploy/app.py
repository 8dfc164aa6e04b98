"""The CDK application: `python -m deploy.app` writes the assembly that `make deploy` gives to the CDK command."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aws_cdk import App, Environment, Stack, Tags

from deploy.images import Images
from deploy.mesh import MeshStack
from deploy.monitoring import MonitoringStack
from deploy.nag import check
from deploy.network import NetworkStack
from deploy.serving import ServingStack
from deploy.settings import DEFAULT_FILE, REPOSITORY, DeploySettings, read
from deploy.storage import StorageStack

FLAGS: Final = {
    "@aws-cdk/aws-s3:serverAccessLogsUseBucketPolicy": True,  # the buckets take no ACLs
    "@aws-cdk/core:enablePartitionLiterals": True,
    "@aws-cdk/aws-iam:minimizePolicies": False,  # a statement keeps its name and its purpose
    "@aws-cdk/aws-ecs:arnFormatIncludesClusterName": True,
}
"""Of CDK's behaviour, where its default is an old one."""


@dataclass(frozen=True, slots=True)
class Application:
    """The app and its stacks, in the order in which they are deployed."""

    app: App
    stacks: tuple[Stack, ...]
    prefix: str
    """Of the stacks' names."""


def lambda_zip(settings: DeploySettings) -> Path:
    """Where `make lambda-zip` leaves the dispatch Lambda's code."""
    return REPOSITORY / "dist" / f"dispatch-lambda-{settings.architecture}.zip"


def build(settings: DeploySettings, code: Path, output: Path) -> Application:
    """All stacks of one deployment, with cdk-nag watching. `code` is the Lambda's zip."""
    app = App(outdir=str(output), analytics_reporting=False, context=dict(FLAGS))
    prefix = "".join(part.capitalize() for part in settings.name.split("-"))
    # Without an account: it is known when it is deployed, and nothing asks for it before.
    where = Environment(region=settings.region)
    network = NetworkStack(app, f"{prefix}Network", settings, env=where)
    storage = StorageStack(app, f"{prefix}Storage", settings, env=where)
    serving = (
        ServingStack(app, f"{prefix}Serving", settings, network, storage, env=where) if _serves(settings) else None
    )
    mesh = MeshStack(app, f"{prefix}Mesh", settings, network, storage, serving, Images(settings), code, env=where)
    monitoring = MonitoringStack(app, f"{prefix}Monitoring", settings, storage, mesh, env=where)
    made = tuple(stack for stack in (network, storage, serving, mesh, monitoring) if stack is not None)
    for stack in made:
        Tags.of(stack).add("application", settings.name)
    check(app, made)
    return Application(app, made, prefix)


def _serves(settings: DeploySettings) -> bool:
    return settings.serving.events or settings.serving.dax


def main() -> None:
    """Synthesize what the settings file asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist" / "cdk.out")
    given = parser.parse_args()
    settings = read(given.settings)
    code = lambda_zip(settings)
    if not code.exists():
        raise SystemExit(f"{code} is not there: make lambda-zip")
    build(settings, code, given.output).app.synth()
    print(f"{given.output}: {settings.name} for {settings.region}")


if __name__ == "__main__":
    main()
