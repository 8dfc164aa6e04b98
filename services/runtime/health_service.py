"""The server's side of grpc.health.v1: also says, to whom the server knows, why something is not serving."""

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from services.domain.errors import shown
from services.runtime.health import REASON_KEY
from services.runtime.interceptors import carries_token

_Status = health_pb2.HealthCheckResponse


class HealthService(health.aio.HealthServicer):
    """Health by name; the empty name is the server as a whole.

    Args:
        token: The server's bearer token. Health needs none, but reasons name files and addresses: they are told only
            to callers that carry it, and to all where there is none.
    """

    def __init__(self, token: str = "") -> None:
        super().__init__()
        self._token = token
        self._reasons: dict[str, str] = {}

    async def tell(self, name: str, serving: bool | None, reason: str = "") -> None:
        """Answer so for the name from now on, and the reason where it is not serving; None says UNKNOWN."""
        self._reasons[name] = reason
        told = {True: _Status.SERVING, False: _Status.NOT_SERVING, None: _Status.UNKNOWN}
        await self.set(name, told[serving])

    async def enter_graceful_shutdown(self) -> None:
        """NOT_SERVING for good."""
        self._reasons = dict.fromkeys(self._reasons, "it is shutting down")
        await super().enter_graceful_shutdown()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """The name's status. NOT_FOUND for a name that is none, with those that are."""
        name = request.service
        if name and name not in self._reasons:
            words = f"health knows no {shown(name)} here; it knows {', '.join(sorted(filter(None, self._reasons)))}"
            await context.abort(grpc.StatusCode.NOT_FOUND, words)
        answer = await super().Check(request, context)
        if answer.status == _Status.NOT_SERVING and (reason := self._reasons.get(name)) and self._trusts(context):
            context.set_trailing_metadata(((REASON_KEY, reason.encode()),))
        return answer

    def _trusts(self, context: Any) -> bool:
        return not self._token or carries_token(context.invocation_metadata(), self._token)
