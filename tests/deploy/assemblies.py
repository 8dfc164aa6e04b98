"""The deployments that are checked: the settings file changed as users change it, each synthesized once."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION"] = "1"

VARIANTS: dict[str, dict[str, Any]] = {
    "small": {"gateway": {"count": 1, "cpu": 256, "memory_mib": 512}, "scorer": {"off_hours_minimum": 0, "maximum": 1},
              "keep_data": False},
    "production": {"serving": {"events": True, "dax": True, "oidc_issuer": "https://login.example.com"},
                   "network": {"nat_gateways": 1}, "ingest": {"source": "yahoo"}, "audit": {"lock_mode": "COMPLIANCE"},
                   "queue": {"name": "equities-US.fifo"},
                   "gateway": {"count": 3, "cpu": 1024, "memory_mib": 2048}, "architecture": "x86_64",
                   "availability_zones": ["eu-central-1a", "eu-central-1b", "eu-central-1c"],
                   "monitoring": {"email": "surveillance@example.com"}},
    "tasks": {"name": "trial-tasks", "dispatch": {"mode": "task", "canary_interval_seconds": 3600}},
}  # fmt: skip


@dataclass(frozen=True)
class Assembly:
    """What one synthesis wrote."""

    folder: Path
    prefix: str

    def template(self, stack: str) -> dict[str, Any]:
        """A stack's template by the stack's kind, e.g. `Storage`."""
        found: dict[str, Any] = json.loads((self.folder / f"{self.prefix}{stack}.template.json").read_text())
        return found

    def stacks(self) -> list[str]:
        """The kinds of the stacks."""
        return [path.name.removesuffix(".template.json").removeprefix(self.prefix) for path in self.template_files()]

    def template_files(self) -> list[Path]:
        return sorted(self.folder.glob("*.template.json"))

    def resources(self, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Every resource of a CloudFormation type: stack/logical id, and its properties."""
        for stack in self.stacks():
            for logical, resource in self.template(stack)["Resources"].items():
                if resource["Type"] == kind:
                    yield f"{stack}/{logical}", resource.get("Properties", {})

    def only(self, kind: str) -> Mapping[str, Any]:
        """The properties of the one resource of a type."""
        ((_, properties),) = self.resources(kind)
        return properties

    def acknowledged_findings(self) -> dict[str, set[str]]:
        """What cdk-nag found and passed because it is acknowledged: stack kind to findings."""
        report = json.loads((self.folder / "validation-report.json").read_text())
        found: dict[str, set[str]] = {}
        for plugin in report["pluginReports"]:
            for violation in plugin["suppressedViolations"] if plugin["pluginName"] == "AwsSolutions" else ():
                for construct in violation["violatingConstructs"]:
                    stack = construct["constructPath"].partition("/")[0].removeprefix(self.prefix)
                    found.setdefault(stack, set()).add(violation["ruleName"])
        return found
