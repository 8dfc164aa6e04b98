"""Permissions that the recorded calls do not use, each with the reason why it stands.

Patterns over `<role> <statement>:<action>`. One that matches nothing unused any more must go.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

_COLLECTOR = "the collector beside the service exports metrics and traces; it does not run in the tests"
_AGENT = "Fargate's agent pulls the image, writes the log and reads the secrets before the container starts"
_POLLER = "Lambda's poller receives and deletes in the function's name; the emulator's does it without calls"
_LOG = "Lambda writes the function's log"
_VPC = "Lambda makes and removes the function's network interfaces"
_REPLICATION = "S3 copies the audit trail; the emulator ignores replication"
_EXPORT = "EventBridge Scheduler and DynamoDB export the table on Sundays"
_MARKET = "EventBridge Scheduler turns alarms on and off with the market"
_FLOWS = "the VPC's flow log; the emulator does not know the type"

UNUSED: dict[str, str] = {
    "*Role Collector*": _COLLECTOR,
    "*ExecutionRole :ecr:*": _AGENT,
    "*ExecutionRole :logs:*": _AGENT,
    "*ExecutionRole :secretsmanager:*": _AGENT,
    "Mesh/DispatcherRole EventSource:sqs:*Message": _POLLER,
    "Mesh/DispatcherRole Log:logs:*": _LOG,
    "Mesh/DispatcherRole NetworkInterfaces:ec2:*": _VPC,
    "Mesh/GatewayRole LakeObjects:s3:AbortMultipartUpload": "only when a part cannot be written to its end",
    "Storage/LakeReplicationRole *": _REPLICATION,
    "Storage/ExportRole *": _EXPORT,
    "Monitoring/MarketHoursRole *": _MARKET,
    "Network/FlowWriter *": _FLOWS,
}

TASK_MODE_UNUSED: dict[str, str] = {
    "*Role Collector*": _COLLECTOR,
    "*ExecutionRole :ecr:*": _AGENT,
    "*ExecutionRole :logs:*": _AGENT,
    "*ExecutionRole :secretsmanager:*": _AGENT,
    "Mesh/DispatcherRole EventSource:sqs:*Message": _POLLER,
    "Mesh/DispatcherRole Returned:sqs:ChangeMessageVisibility": "only for what the function returns: nothing, here",
    "Mesh/*Role Log:logs:*": _LOG,
    "Mesh/*Role NetworkInterfaces:ec2:*": _VPC,
    "Mesh/TasksRole BatchesListing:s3:ListBucket": "only for a manifest that is gone, which S3 else calls forbidden",
}
"""The same of the roles that task mode is about, while batches go by tasks."""


def unexplained(unused: set[str], reasons: Mapping[str, str] = UNUSED) -> list[str]:
    """Unused permissions that no pattern is about, and patterns that are about none of them."""
    wrong = [
        f"nothing used {name}" for name in sorted(unused) if not any(fnmatchcase(name, pattern) for pattern in reasons)
    ]
    return wrong + [
        f"used, or gone: {pattern}" for pattern in reasons if not any(fnmatchcase(name, pattern) for name in unused)
    ]
