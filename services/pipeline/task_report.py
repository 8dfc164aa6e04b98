"""What a one-shot task tells of its batch, written where the manifest lies and read by the dispatcher."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.domain.errors import DependencyUnavailableError
from services.pipeline.batch_files import BatchFiles


@dataclass(frozen=True, slots=True)
class TaskReport:
    """How an attempt ended, as the task itself saw it.

    `invalid` maps positions in the attempt's manifest to why that message can never be scored; `transient` says why
    the others that are not recorded may be tried again. A task without a report died or never started.
    """

    received: int = 0
    recorded: int = 0
    invalid: Mapping[int, str] = field(default_factory=dict)
    transient: tuple[str, ...] = ()


def _name(correlation_id: str) -> str:
    return f"reports/{correlation_id}.json"


def write_report(files: BatchFiles, correlation_id: str, report: TaskReport) -> None:
    """Keep the report. Raises: DependencyUnavailableError."""
    invalid = {str(position): reason for position, reason in report.invalid.items()}
    content = {
        "received": report.received,
        "recorded": report.recorded,
        "invalid": invalid,
        "transient": list(report.transient),
    }
    files.put(_name(correlation_id), json.dumps(content).encode())


def read_report(files: BatchFiles, correlation_id: str) -> TaskReport | None:
    """The report of an attempt; None when it never reported.

    Raises: DependencyUnavailableError when the place is away, or holds something else.
    """
    content = files.get(_name(correlation_id))
    if content is None:
        return None
    try:
        read = json.loads(content)
        return TaskReport(
            received=int(read["received"]),
            recorded=int(read["recorded"]),
            invalid={int(position): str(reason) for position, reason in read["invalid"].items()},
            transient=tuple(str(reason) for reason in read["transient"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DependencyUnavailableError("batches", f"the report of {correlation_id} is damaged: {error}") from error
