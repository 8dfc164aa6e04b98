"""What a running mesh says of itself, over its own RPCs."""

import asyncio
from collections.abc import Sequence

import grpc

from services.cli.mesh import Mesh, Process
from services.cli.settings import MeshSettings
from services.runtime.channels import open_channel
from services.runtime.errors import error_from_rpc
from services.runtime.health import channel_health
from services.wire.time import timestamp_from_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from tapewatch.gateway.v1 import detection_service_pb2
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceStub
from tapewatch.ingest.v1 import coverage_pb2, ingest_service_pb2, replay_pb2
from tapewatch.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

_RPC_SECONDS = 5.0
_HEALTH_SECONDS = 1.0


class MeshObserver:
    """Reads what a running mesh says of itself."""

    def __init__(self, settings: MeshSettings, mesh: Mesh) -> None:
        self._mesh = mesh
        self._channels = [
            open_channel(address, settings)
            for address in (settings.ingest_address, settings.dispatch_address, settings.gateway_address)
        ]
        ingest, dispatch, gateway = self._channels
        self._health = {process.name: open_channel(process.address, settings) for process in mesh.processes}
        self.gateway = gateway
        self._ingest = IngestServiceStub(ingest)
        self._dispatch = DispatchServiceStub(dispatch)
        self._detections = DetectionServiceStub(gateway)

    async def start_replay(self, location: str, tape: str, symbols: Sequence[str], speed: float) -> None:
        """Start, or go on with, a replay at that speed. Raises: TapewatchError when ingest refuses it."""
        request = ingest_service_pb2.StartReplayRequest(location=location, tape=tape, symbols=symbols, speed=speed)
        try:
            replay = (await self._ingest.StartReplay(request, timeout=60)).replay
            if replay.state == replay_pb2.REPLAY_STATE_RUNNING and replay.speed != speed:
                await self._ingest.CancelReplay(ingest_service_pb2.CancelReplayRequest(tape=tape), timeout=60)
                await self._ingest.StartReplay(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, "ingest") from error

    async def replay(self, tape: str) -> replay_pb2.Replay:
        """How far the replay is."""
        response = await self._ingest.GetReplay(ingest_service_pb2.GetReplayRequest(tape=tape), timeout=_RPC_SECONDS)
        return response.replay

    async def coverage(self) -> list[coverage_pb2.Coverage]:
        """What ingest hears."""
        response = await self._ingest.GetCoverage(ingest_service_pb2.GetCoverageRequest(), timeout=_RPC_SECONDS)
        return list(response.coverages)

    async def capacity(self) -> dispatch_service_pb2.GetCapacityResponse:
        """What waits in the queue and in the ledger."""
        return await self._dispatch.GetCapacity(dispatch_service_pb2.GetCapacityRequest(), timeout=_RPC_SECONDS)

    async def canaries(self) -> dispatch_service_pb2.GetCanariesResponse:
        """How the canaries did."""
        return await self._dispatch.GetCanaries(dispatch_service_pb2.GetCanariesRequest(), timeout=_RPC_SECONDS)

    async def latency_seconds(self, tape: str) -> float | None:
        """From ingest to store, of the newest recorded quote of the symbol that ingest heard last."""
        heard = [c for c in await self.coverage() if c.series.tape == tape and c.HasField("last_ingest_time")]
        if not heard:
            return None
        latest = max(heard, key=lambda c: timestamp_from_proto(c.last_ingest_time))
        request = detection_service_pb2.ListQuotesRequest(
            tape=tape, symbol=latest.series.symbol, descending=True, page_size=1
        )
        response = await self._detections.ListQuotes(request, timeout=_RPC_SECONDS)
        for recorded in response.quotes:
            stored, ingested = recorded.record_time, recorded.quote.ingest_time
            return (timestamp_from_proto(stored) - timestamp_from_proto(ingested)).total_seconds()
        return None

    async def troubles(self) -> dict[str, str]:
        """Services that are down, are not serving and why, or had to be started again."""
        found = await asyncio.gather(*map(self._trouble, self._mesh.processes))
        return {process.name: trouble for process, trouble in zip(self._mesh.processes, found, strict=True) if trouble}

    async def _trouble(self, process: Process) -> str:
        if not process.running:
            return "is down; it will be started again"
        health = await channel_health(self._health[process.name], timeout_seconds=_HEALTH_SECONDS)
        if not health.serving:
            return f"is {health.words}" if health.answered else "does not answer"
        return f"was started again {process.restarts} times" if process.restarts else ""

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(channel.close() for channel in (*self._channels, *self._health.values())))
