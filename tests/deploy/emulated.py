"""An assembly's templates deployed into an emulator's CloudFormation, and what became of each resource."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest

from deploy.certificates import fill
from deploy.settings import read
from tests.deploy.assemblies import VARIANTS, Assembly
from tests.servers import stand_ins
from tests.servers.process import CREDENTIALS, REGION

STACKS = ("Network", "Storage", "Mesh", "Monitoring")
ACCOUNT = "000000000000"
_DEPLOY_SECONDS = 60.0
_UNKNOWN_TYPES = re.compile(r"Unrecognized resource types: \[(.*)\]")


@dataclass
class Deployed:
    """The stacks of an assembly in an emulator."""

    assembly: Path
    region: str
    port: int
    """Where the emulator listens."""

    physical: dict[str, dict[str, str]] = field(default_factory=dict)
    """Stack to logical id to physical id."""

    refused: dict[str, str] = field(default_factory=dict)
    """Logical id to the emulator's reason, of resources that it does not know."""

    def client(self, service: str) -> Any:
        return boto3.client(service, region_name=self.region)  # type: ignore[call-overload]

    @property
    def assets(self) -> str:
        """The bucket that `cdk bootstrap` makes."""
        return f"cdk-hnb659fds-assets-{ACCOUNT}-{self.region}"

    def upload_assets(self) -> None:
        """What the CDK command does first: file assets into the bootstrap bucket."""
        s3 = self.client("s3")
        s3.create_bucket(Bucket=self.assets, CreateBucketConfiguration={"LocationConstraint": self.region})
        for manifest in sorted(self.assembly.glob("*.assets.json")):
            for asset in json.loads(manifest.read_text())["files"].values():
                content = (self.assembly / asset["source"]["path"]).read_bytes()
                for destination in asset["destinations"].values():
                    s3.put_object(Bucket=self.assets, Key=destination["objectKey"], Body=content)

    def deploy(self, stack: str) -> None:
        """Deploy one stack, less the resources of types that the emulator says it does not know."""
        template = json.loads((self.assembly / f"{stack}.template.json").read_text())
        template["Parameters"].pop("BootstrapVersion")
        template.pop("Rules", None)
        cloudformation = self.client("cloudformation")
        while True:
            try:
                key = f"{stack}.template.json"  # by URL: what is given along may have 51,200 characters
                self.client("s3").put_object(Bucket=self.assets, Key=key, Body=json.dumps(template).encode())
                url = f"https://s3.{self.region}.amazonaws.com/{self.assets}/{key}"
                cloudformation.create_stack(StackName=stack, TemplateURL=url, Capabilities=["CAPABILITY_NAMED_IAM"])
                break
            except botocore.exceptions.ClientError as error:
                unknown = _UNKNOWN_TYPES.search(str(error))
                if unknown is None:
                    raise
                self._leave_out(stack, template, set(unknown[1].split(", ")))
        deadline = time.monotonic() + _DEPLOY_SECONDS
        while True:
            (description,) = cloudformation.describe_stacks(StackName=stack)["Stacks"]
            if not description["StackStatus"].endswith("_IN_PROGRESS"):
                break
            assert time.monotonic() < deadline, f"{stack} is still {description['StackStatus']}"
            time.sleep(0.1)
        events = cloudformation.describe_stack_events(StackName=stack)["StackEvents"]
        reasons = [
            f"{event['LogicalResourceId']} ({event['ResourceType']}): {event.get('ResourceStatusReason', '')}"
            for event in events
            if event["ResourceStatus"].endswith("FAILED")
        ]
        assert not reasons, "\n".join([description["StackStatus"], *reasons])
        resources = cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
        self.physical[stack] = {r["LogicalResourceId"]: r.get("PhysicalResourceId", "") for r in resources}

    def of_type(self, kind: str) -> Iterator[tuple[str, str]]:
        """Logical and physical id of each resource of a type."""
        for stack, ids in self.physical.items():
            template = json.loads((self.assembly / f"{stack}.template.json").read_text())
            for logical, physical in ids.items():
                if template["Resources"][logical]["Type"] == kind:
                    yield logical, physical

    def _leave_out(self, stack: str, template: dict[str, Any], types: set[str]) -> None:
        resources = template["Resources"]
        for logical in [name for name, resource in resources.items() if resource["Type"] in types]:
            self.refused[f"{stack}/{logical}"] = resources.pop(logical)["Type"]
        for resource in resources.values():
            needed = resource.get("DependsOn", [])
            if needed := [needed] if isinstance(needed, str) else needed:
                resource["DependsOn"] = [name for name in needed if name in resources]


@contextmanager
def deployment(variant: str, synthesized: Callable[[str], Assembly], folder: Path) -> Iterator[Deployed]:
    """A variant in an emulator of its own, its certificates filled in between as `make deploy` does."""
    server = stand_ins.ministack(folder).start()
    patch = pytest.MonkeyPatch()
    for variable, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": server.url}).items():
        patch.setenv(variable, value)
    assembly = synthesized(variant)
    try:
        made = Deployed(assembly.folder, REGION, port=server.port)
        made.upload_assets()
        for stack in STACKS:
            made.deploy(f"{assembly.prefix}{stack}")
            if stack == "Storage":
                settings = read(**VARIANTS[variant])
                assert len(fill(made.client("secretsmanager"), settings)) == 5
                assert fill(made.client("secretsmanager"), settings) == [], "filled twice"
        yield made
    finally:
        patch.undo()
        server.stop()
