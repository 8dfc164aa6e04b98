"""Who may do what, read from synthesized templates, and judged without an account.

A template names resources by reference; here each becomes the ARN that it will have, with a placeholder where AWS makes
the name up. `docs/iam.md` is written from this, and the calls that the components really make are judged by it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

ACCOUNT: Final = "000000000000"
"""Stands for the account that nobody has asked for."""

_PSEUDO = {"AWS::AccountId": ACCOUNT, "AWS::Partition": "aws", "AWS::URLSuffix": "amazonaws.com"}
_NAME_PROPERTIES = {
    "AWS::DynamoDB::Table": "TableName",
    "AWS::ECS::Cluster": "ClusterName",
    "AWS::Lambda::Function": "FunctionName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::S3::Bucket": "BucketName",
    "AWS::SQS::Queue": "QueueName",
    "AWS::SecretsManager::Secret": "Name",
    "AWS::CloudWatch::Alarm": "AlarmName",
    "AWS::ECS::TaskDefinition": "Family",
    "AWS::DAX::Cluster": "ClusterName",
}
_ARNS = {
    "AWS::DynamoDB::Table": "dynamodb:{where}:table/{name}",
    "AWS::ECS::Cluster": "ecs:{where}:cluster/{name}",
    "AWS::ECS::TaskDefinition": "ecs:{where}:task-definition/{name}:*",
    "AWS::IAM::Role": "iam::{account}:role/{name}",
    "AWS::Lambda::Function": "lambda:{where}:function:{name}",
    "AWS::Logs::LogGroup": "logs:{where}:log-group:{name}",
    "AWS::S3::Bucket": "s3:::{name}",
    "AWS::SQS::Queue": "sqs:{where}:{name}",
    "AWS::SecretsManager::Secret": "secretsmanager:{where}:secret:{name}-*",
    "AWS::CloudWatch::Alarm": "cloudwatch:{where}:alarm:{name}",
    "AWS::AppSync::Api": "appsync:{where}:apis/{name}",
    "AWS::DAX::Cluster": "dax:{where}:cache/{name}",
    "AWS::SNS::Topic": "sns:{where}:{name}",
}
_REF_IS_ARN = {"AWS::SecretsManager::Secret", "AWS::ECS::TaskDefinition", "AWS::SNS::Topic"}


@dataclass(frozen=True)
class Statement:
    """What is allowed, or denied, on what."""

    name: str
    allows: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def covers(self, action: str, resource: str, context: Mapping[str, str] | None = None) -> bool:
        """Whether it is about this action on this resource, called in this context (condition keys to values).

        Raises: ValueError for a condition's operator that is not known here.
        """
        return (
            any(fnmatchcase(action.lower(), pattern.lower()) for pattern in self.actions)
            and any(fnmatchcase(resource, pattern) for pattern in self.resources)
            and all(
                _holds(operator, wanted, (context or {}).get(key))
                for operator, asked in self.conditions.items()
                for key, wanted in asked.items()
            )
        )


@dataclass(frozen=True)
class Role:
    """A role of the deployment: `path` is its stack's kind and its construct, e.g. `Mesh/GatewayRole`."""

    path: str
    description: str
    trusted: tuple[str, ...]
    statements: tuple[Statement, ...]

    def may(self, action: str, resource: str, context: Mapping[str, str] | None = None) -> bool:
        """Whether a call is allowed: something allows it, and nothing denies it."""
        return allowed(self.statements, action, resource, context)


def allowed(
    statements: Iterable[Statement], action: str, resource: str, context: Mapping[str, str] | None = None
) -> bool:
    """Whether these statements allow a call: one does, and none denies it."""
    about = [statement for statement in statements if statement.covers(action, resource, context)]
    return bool(about) and all(statement.allows for statement in about)


class Templates:
    """The templates of one assembly.

    `physical` (stack name to logical to physical id) is what a deployment made of them, where there is one.
    """

    def __init__(self, folder: Path, region: str, physical: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._region = region
        self._physical = physical or {}
        self._templates: dict[str, dict[str, Any]] = {
            path.name.removesuffix(".template.json"): json.loads(path.read_text())
            for path in sorted(folder.glob("*.template.json"))
        }
        self._exports: dict[str, tuple[str, Any]] = {
            str(output["Export"]["Name"]): (stack, output["Value"])
            for stack, template in self._templates.items()
            for output in template.get("Outputs", {}).values()
            if "Export" in output
        }

    def resources(self, kind: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Stack, logical id and resource of each resource of a type."""
        for stack, template in self._templates.items():
            for logical, resource in template["Resources"].items():
                if resource["Type"] == kind:
                    yield stack, logical, resource

    def name(self, stack: str, logical: str) -> str:
        """What a resource is called; a placeholder in angle brackets when AWS makes its name up."""
        resource = self._templates[stack]["Resources"][logical]
        given = resource.get("Properties", {}).get(_NAME_PROPERTIES.get(resource["Type"], ""))
        if given is not None:
            return self.resolve(stack, given)
        made = self._physical.get(stack, {}).get(logical, "")
        return made.rpartition("/")[2] or f"<{_plain(logical)}>"

    def arn(self, stack: str, logical: str) -> str:
        """The ARN that a resource will have."""
        kind = self._templates[stack]["Resources"][logical]["Type"]
        where = f"{self._region}:{ACCOUNT}"
        return "arn:aws:" + _ARNS[kind].format(where=where, account=ACCOUNT, name=self.name(stack, logical))

    def resolve(self, stack: str, value: Any) -> str:
        """A property's value as text. Raises: ValueError for a function that is not known here."""
        if not isinstance(value, dict):
            return str(value)
        ((function, given),) = value.items()
        match function:
            case "Ref":
                return self._reference(stack, given)
            case "Fn::GetAtt":
                logical, attribute = given
                return self.arn(stack, logical) if attribute.endswith("Arn") else f"<{_plain(logical)}.{attribute}>"
            case "Fn::ImportValue":
                return self.resolve(*self._exports[given])
            case "Fn::Join":
                return str(given[0]).join(self.resolve(stack, part) for part in given[1])
            case "Fn::Sub" if isinstance(given, str):
                return re.sub(r"\$\{([^}]+)\}", lambda match: self._reference(stack, match[1]), given)
        raise ValueError(f"{function} in {stack} is not understood")

    def _reference(self, stack: str, name: str) -> str:
        if name == "AWS::Region":
            return self._region
        if name in _PSEUDO:
            return _PSEUDO[name]
        kind = self._templates[stack]["Resources"][name]["Type"]
        return self.arn(stack, name) if kind in _REF_IS_ARN else self.name(stack, name)

    def roles(self, prefix: str) -> dict[str, Role]:
        """Every role by its path."""
        policies: dict[tuple[str, str], list[Statement]] = {}
        for stack, _, policy in self.resources("AWS::IAM::Policy"):
            properties = policy["Properties"]
            for role in properties["Roles"]:
                policies.setdefault((stack, role["Ref"]), []).extend(self._statements(stack, properties))
        found = {}
        for stack, logical, role in self.resources("AWS::IAM::Role"):
            properties = role["Properties"]
            if properties.get("ManagedPolicyArns"):
                raise ValueError(f"{stack}/{logical} has managed policies, whose content nobody here knows")
            for policy in properties.get("Policies", []):
                policies.setdefault((stack, logical), []).extend(self._statements(stack, policy))
            trust = properties["AssumeRolePolicyDocument"]["Statement"]
            path = f"{stack.removeprefix(prefix)}/{_plain(logical)}"
            found[path] = Role(
                path,
                str(properties.get("Description", "")),
                tuple(str(statement["Principal"]["Service"]) for statement in trust),
                tuple(policies.get((stack, logical), ())),
            )
        return found

    def topic_statements(self, service: str) -> dict[str, tuple[Statement, ...]]:
        """What each topic's policy, by the topic's ARN, says of an AWS service, e.g. `cloudwatch.amazonaws.com`."""
        found: dict[str, tuple[Statement, ...]] = {}
        for stack, _, policy in self.resources("AWS::SNS::TopicPolicy"):
            properties = policy["Properties"]
            said = [
                statement
                for statement in properties["PolicyDocument"]["Statement"]
                if statement["Principal"] in ("*", {"AWS": "*"})
                or service in _listed(statement["Principal"].get("Service", []))
            ]
            statements = tuple(self._statements(stack, {"PolicyDocument": {"Statement": said}}))
            for topic in properties["Topics"]:
                found[self.resolve(stack, topic)] = statements
        return found

    def _statements(self, stack: str, policy: Mapping[str, Any]) -> Iterator[Statement]:
        for statement in policy["PolicyDocument"]["Statement"]:
            yield Statement(
                str(statement.get("Sid", "")),
                statement["Effect"] == "Allow",
                tuple(_listed(statement["Action"])),
                tuple(self.resolve(stack, resource) for resource in _listed(statement["Resource"])),
                {
                    operator: {key: self.resolve(stack, value) for key, value in asked.items()}
                    for operator, asked in statement.get("Condition", {}).items()
                },
            )


def _holds(operator: str, wanted: str, given: str | None) -> bool:
    """Whether a condition on one key holds; one on a key that the call does not have never does."""
    if operator not in ("StringEquals", "ArnEquals", "ArnLike", "Bool"):
        raise ValueError(f"the condition {operator} is not understood")
    patterns = operator in ("ArnEquals", "ArnLike")  # IAM treats the two alike
    return given is not None and (given == wanted or (patterns and fnmatchcase(given, wanted)))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(logical: str) -> str:
    """A logical id without the hash that CDK adds."""
    return re.sub(r"[0-9A-F]{8}$", "", logical)
