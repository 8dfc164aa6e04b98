"""The live path's two ends, ingest and gateway, over gRPC."""

from collections.abc import AsyncIterator, Mapping, Sequence

import grpc

from services.domain.alert import Alert
from services.domain.errors import DependencyUnavailableError
from services.domain.quote import CANARY_TAPE, Quote, Series
from services.domain.score import Score
from services.pipeline.gateway_client import PEER as GATEWAY
from services.pipeline.gateway_client import GatewayClient
from services.pipeline.ports import Cursors
from services.runtime.errors import error_from_rpc, error_from_status
from services.wire.alert import alert_from_proto
from services.wire.quote import quote_to_proto
from tapewatch.gateway.v1 import alert_service_pb2
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch.ingest.v1 import ingest_service_pb2
from tapewatch.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

_INGEST = "ingest"
_REQUEST_QUOTES = 500
_PUBLISH_SECONDS = 30.0
_NEWEST = 20


class LivePathClient:
    """Implements the port LivePath."""

    def __init__(self, ingest: grpc.aio.Channel, gateway: grpc.aio.Channel) -> None:
        self._ingest = IngestServiceStub(ingest)
        self._gateway = GatewayClient(gateway)
        self._alerts = AlertServiceStub(gateway)

    async def publish(self, quotes: Sequence[Quote]) -> None:
        """On one PublishQuotes stream. Raises: InvalidQuoteError, DependencyUnavailableError."""

        async def requests() -> AsyncIterator[ingest_service_pb2.PublishQuotesRequest]:
            for start in range(0, len(quotes), _REQUEST_QUOTES):
                part = quotes[start : start + _REQUEST_QUOTES]
                yield ingest_service_pb2.PublishQuotesRequest(quotes=[quote_to_proto(quote) for quote in part])

        answered = 0
        try:
            async for response in self._ingest.PublishQuotes(requests(), timeout=_PUBLISH_SECONDS):
                for result in response.results:
                    if result.WhichOneof("outcome") == "error":
                        raise error_from_status(result.error, _INGEST)
                    answered += 1
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, _INGEST) from error
        if answered < len(quotes):
            raise DependencyUnavailableError(_INGEST, f"answered {answered} of {len(quotes)} quotes")

    async def cursors(self, series: Sequence[Series]) -> Cursors:
        """How far the series have been recorded."""
        return await self._gateway.cursors(series)

    async def scores(self, quotes: Sequence[Quote]) -> Mapping[str, Score]:
        """The recorded scores of those quotes that have one."""
        return await self._gateway.scores(quotes)

    async def alerts(self, symbol: str) -> list[Alert]:
        """The newest alerts of a symbol on the canary tape."""
        wanted = alert_service_pb2.AlertFilter(tape=CANARY_TAPE, symbols=[symbol])
        request = alert_service_pb2.ListAlertsRequest(filter=wanted, page_size=_NEWEST)
        try:
            response = await self._alerts.ListAlerts(request)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, GATEWAY) from error
        return [alert_from_proto(alert) for alert in response.alerts]
