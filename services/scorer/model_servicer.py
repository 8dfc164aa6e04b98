"""ModelService over gRPC."""

import asyncio
import logging
from typing import Any

from services.domain.model import ModelMetadata
from services.scorer.convert import model_to_proto
from services.scorer.registry import ModelRegistry
from services.scorer.service import ScoringService
from tapewatch.scorer.v1 import model_service_pb2 as pb
from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceServicer

_log = logging.getLogger(__name__)


class ModelServicer(ModelServiceServicer):
    """GetModel, ListModels and ReloadModel."""

    def __init__(self, service: ScoringService, registry: ModelRegistry) -> None:
        self._service = service
        self._registry = registry

    def _proto(self, metadata: ModelMetadata) -> pb.Model:
        return model_to_proto(metadata, serving=metadata.version == self._service.model.metadata.version)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """One model's metadata."""
        serving = self._service.model.metadata
        if request.version in ("", serving.version):
            return pb.GetModelResponse(model=self._proto(serving))
        return pb.GetModelResponse(model=self._proto(await asyncio.to_thread(self._registry.metadata, request.version)))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        """The registry's models, newest first."""
        models = await asyncio.to_thread(self._registry.versions)
        return pb.ListModelsResponse(models=[self._proto(metadata) for metadata in models])

    async def ReloadModel(self, request: pb.ReloadModelRequest, context: Any) -> pb.ReloadModelResponse:
        """Serve another version; streams go on."""
        model = await asyncio.to_thread(self._registry.load, request.version)
        self._service.model = model
        _log.info("serving model %s", model.metadata.version)
        return pb.ReloadModelResponse(model=self._proto(model.metadata))
