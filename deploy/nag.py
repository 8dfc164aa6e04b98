"""cdk-nag over every stack, and each finding that stands, with the reason. Any other fails the synthesis.

A finding that is gone must go from here too: `make deploy-check` compares this list with what cdk-nag finds.
"""

from collections.abc import Mapping
from typing import Final

from aws_cdk import Acknowledgment, App, Stack, Validations
from cdk_nag import AwsSolutionsChecks

_PACK = "AwsSolutions::"
_LOG_STREAMS = "a log group's streams are made by who writes them, each with a name of its own"
_OBJECTS = "the objects below this prefix, whose names are days and sequences"

ACKNOWLEDGED: Final[Mapping[str, Mapping[str, str]]] = {
    "Storage": {
        "AwsSolutions-IAM5[Resource::<Lake5F1B88EA.Arn>/*]": "S3 replicates objects; its rules name the prefixes",
        "AwsSolutions-IAM5[Resource::<Audit3D8ADE0A.Arn>/*]": "S3 replicates objects; its rules name the prefixes",
        "AwsSolutions-IAM5[Resource::<Lake5F1B88EA.Arn>/export/*]": _OBJECTS,
        "AwsSolutions-SMG4": "deploy/certificates.py replaces certificates, or whoever runs the authority: a rotation "
        "needs both ends of the mesh to know the old and the new one for a while",
    },
    "Mesh": {
        "AwsSolutions-IAM5[Resource::<Metrics6DBDA108.Arn>:log-stream:*]": _LOG_STREAMS,
        "AwsSolutions-IAM5[Resource::<DispatcherLogAD5C1C3C.Arn>:log-stream:*]": _LOG_STREAMS,
        "AwsSolutions-IAM5[Resource::*]": "X-Ray, ECR's GetAuthorizationToken and the network interfaces of a Lambda "
        "have no resources to name",
        "AwsSolutions-IAM5[Resource::{storage}:ExportsOutputFnGetAttLake5F1B88EAArn65E67816/lake/*]": _OBJECTS,
        "AwsSolutions-IAM5[Resource::{storage}:ExportsOutputFnGetAttLake5F1B88EAArn65E67816/batches/*]": _OBJECTS,
        "AwsSolutions-IAM5[Resource::<TasksReconcilerLog6A54E5BF.Arn>:log-stream:*]": _LOG_STREAMS,
        "AwsSolutions-IAM5[Resource::arn:aws:ecs:{region}:<AWS::AccountId>:task/<ClusterEB0386A7>/*]": "tasks of the "
        "mesh's own cluster, whose names ECS makes",
        "AwsSolutions-ECS2": "addresses and names are no secrets; the token and the keys come from Secrets Manager",
        "AwsSolutions-L1": "CPython 3.13 is the newest that this project supports",
    },
}
"""By stack, finding to reason."""


def acknowledged(stack: Stack) -> dict[str, str]:
    """The findings of a stack that stand."""
    prefix, kind = next(
        ((stack.stack_name.removesuffix(kind), kind) for kind in ACKNOWLEDGED if stack.stack_name.endswith(kind)),
        ("", ""),
    )
    return {
        rule.replace("{storage}", f"{prefix}Storage").replace("{region}", stack.region): reason
        for rule, reason in ACKNOWLEDGED.get(kind, {}).items()
    }


def check(app: App, stacks: tuple[Stack, ...]) -> None:
    """Check the app when it is synthesized."""
    Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    for stack in stacks:
        for rule, reason in acknowledged(stack).items():
            Validations.of(stack).acknowledge(Acknowledgment(id=f"{_PACK}{rule}", reason=reason))
