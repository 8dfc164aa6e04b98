"""The validator of RunTask, with the faults that a test asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.cli.run_task_validator import RefusedError, RunTaskValidator

NO_CAPACITY = "Capacity is unavailable at this time. Please try again later or in a different availability zone"


@dataclass
class FaultyEcs(RunTaskValidator):
    """`no_capacity` and `throttled` make that many next launches fail as AWS does, and `never_starts` lets them stay
    in PROVISIONING; `stop_code` is what tasks end with by themselves."""

    no_capacity: int = 0
    throttled: int = 0
    never_starts: int = 0
    stop_code: str = "EssentialContainerExited"
    stuck: set[str] = field(default_factory=set)

    def start(self) -> "FaultyEcs":
        super().start()
        return self

    def _spend(self, launches: int) -> None:
        if self.throttled > 0:
            self.throttled -= 1
            raise RefusedError("ThrottlingException", "Rate exceeded")
        super()._spend(launches)

    def _no_room(self) -> str | None:
        if self.no_capacity > 0:
            self.no_capacity -= 1
            return NO_CAPACITY
        return None

    def _start(self, task: Mapping[str, Any], container: str, environment: Mapping[str, str]) -> None:
        if self.never_starts > 0:
            self.never_starts -= 1
            self.stuck.add(task["taskArn"])
            return
        super()._start(task, container, environment)

    def _stop_code(self) -> str:
        return self.stop_code

    def _patch(self, task: dict[str, Any]) -> None:
        if task["taskArn"] not in self.stuck:
            return super()._patch(task)
        if task["lastStatus"] != "STOPPED":
            task["lastStatus"] = "PROVISIONING"
        task.pop("startedAt", None)
        return None
