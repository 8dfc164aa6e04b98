"""What a one-shot task is told of its work, within ECS's limit on a launch's overrides."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.dispatch.batch import Entry

MAX_OVERRIDE_CHARACTERS: Final = 8_192
"""Of all overrides of one launch, their JSON included: ECS's limit."""

PROCESSING_MODE: Final = "LAMBDA_TRIGGERED"


def container_overrides(container: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """RunTask's `overrides` for one container's environment."""
    variables = [{"name": name, "value": value} for name, value in environment.items()]
    return {"containerOverrides": [{"name": container, "environment": variables}]}


def fits(container: str, environment: Mapping[str, str]) -> bool:
    """Whether ECS takes the overrides."""
    return len(json.dumps(container_overrides(container, environment))) <= MAX_OVERRIDE_CHARACTERS


def task_environment(entry: Entry, manifest_uri: str, manifest: bytes, container: str) -> dict[str, str]:
    """The environment of the task that the entry leads: its messages while they fit, else where their manifest lies."""
    environment = {
        "CORRELATION_ID": entry.correlation_id,
        "BATCH_SIZE": str(entry.task_messages),
        "PROCESSING_MODE": PROCESSING_MODE,
    }
    for name, value in (("TRACEPARENT", entry.traceparent), ("TRACESTATE", entry.tracestate)):
        if value:
            environment[name] = value
    inline = environment | {"BATCH_MARKET_DATA": manifest.decode()}
    return inline if fits(container, inline) else environment | {"BATCH_MANIFEST_URI": manifest_uri}


def client_token(entry: Entry) -> str:
    """What makes a launch happen once: a hash of the task's manifest, the leading batch and its attempt's number."""
    parts = (entry.task_digest, entry.id, str(entry.attempt))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def manifest_of(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """The manifest of queue messages: the JSON array that BATCH_MARKET_DATA also holds; equal messages, equal bytes."""
    return json.dumps(list(messages), separators=(",", ":"), allow_nan=False).encode()
