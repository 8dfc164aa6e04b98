"""ModelService over gRPC."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from services.domain.errors import FieldViolation, InvalidRequestError
from services.scorer.convert import canary_to_proto, drift_to_proto, model_to_proto, shadow_to_proto
from services.scorer.deployment import Deployment, ModelRole, check_weight
from services.scorer.ports import Model
from services.scorer.registry import RegisteredVersion
from services.scorer.service import ScoringService
from services.scorer.thresholds import ModelLoader, calibration_of
from services.wire.checks import check_names, invalid
from tapewatch.scorer.v1 import model_service_pb2 as pb
from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceServicer

_log = logging.getLogger(__name__)
_CANDIDATES = (ModelRole.SHADOW, ModelRole.CANARY)


class ModelServicer(ModelServiceServicer):
    """The registry, and which of its versions judge."""

    def __init__(self, service: ScoringService, loader: ModelLoader) -> None:
        self._service = service
        self._loader = loader
        self._changing = asyncio.Lock()

    def _listed(self, registered: RegisteredVersion) -> pb.Model:
        """A version of the registry; one that judges is shown as it judges."""
        deployment = self._service.deployment
        for model in (deployment.serving, deployment.canary, deployment.shadow):
            if model is not None and model.metadata.version == registered.version:
                shown = self._judging(model)
                break
        else:
            known = registered.metadata
            shown = pb.Model(version=registered.version) if known is None else model_to_proto(known)
        shown.problem = registered.problem
        return shown

    def _judging(self, model: Model) -> pb.Model:
        roles = self._service.deployment.roles(model.metadata.version)
        return model_to_proto(model.metadata, roles, calibration_of(model))

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """One model's metadata, and how the deployed ones do."""
        check_names({"version": request.version})
        serving, watch = self._service.deployment.serving, self._service.watch
        serves = request.version in ("", serving.metadata.version)
        model = self._judging(serving)
        if not serves:
            model = self._listed(await asyncio.to_thread(self._loader.registry.version, request.version))
        return pb.GetModelResponse(
            model=model,
            drifts=[drift_to_proto(drift) for drift in watch.drifts()] if serves else [],
            shadow=shadow_to_proto(watch.shadow()),
            canary=canary_to_proto(watch.canary()),
        )

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        """The registry's models, newest first."""
        models = await asyncio.to_thread(self._loader.registry.versions)
        return pb.ListModelsResponse(models=[self._listed(registered) for registered in models])

    async def ReloadModel(self, request: pb.ReloadModelRequest, context: Any) -> pb.ReloadModelResponse:
        """Serve another version; streams go on."""
        check_names({"version": request.version})
        model = await self._deploy(request.version, lambda deployment, model: deployment.serve(model))
        _log.info("serving model %s", model.metadata.version)
        return pb.ReloadModelResponse(model=self._judging(model))

    async def SetShadowModel(self, request: pb.SetShadowModelRequest, context: Any) -> pb.SetShadowModelResponse:
        """Let a second version judge beside the others."""
        version = _required(request.version)
        model = await self._deploy(version, lambda deployment, model: deployment.with_shadow(model))
        _log.info("model %s judges as shadow", version)
        return pb.SetShadowModelResponse(model=self._judging(model))

    async def SetCanaryModel(self, request: pb.SetCanaryModelRequest, context: Any) -> pb.SetCanaryModelResponse:
        """Let a second version judge a share of the series."""
        version, weight = _required(request.version), request.weight
        check_weight("weight", weight)
        model = await self._deploy(version, lambda deployment, model: deployment.with_canary(model, weight))
        _log.info("model %s judges %.1f %% of the series", version, 100 * weight)
        return pb.SetCanaryModelResponse(model=self._judging(model))

    async def ClearCandidateModel(
        self, request: pb.ClearCandidateModelRequest, context: Any
    ) -> pb.ClearCandidateModelResponse:
        """Take candidates away."""
        if request.role not in (pb.MODEL_ROLE_UNSPECIFIED, *_CANDIDATES):
            wanted = "SHADOW, CANARY, or unspecified for both"
            raise InvalidRequestError([FieldViolation("role", f"{request.role} is not {wanted}")])
        roles = _CANDIDATES if request.role == pb.MODEL_ROLE_UNSPECIFIED else (ModelRole(request.role),)
        async with self._changing:
            before = self._service.deployment
            held = {ModelRole.SHADOW: before.shadow, ModelRole.CANARY: before.canary}
            versions = [model.metadata.version for role in roles if (model := held[role]) is not None]
            if versions:
                self._service.deploy(before.without(roles))
        _log.info("candidates taken away: %s", ", ".join(versions) or "none")
        return pb.ClearCandidateModelResponse(versions=versions)

    async def _deploy(self, version: str, change: Callable[[Deployment, Model], Deployment]) -> Model:
        """Load a version and deploy it. What cannot be loaded raises, and what judges goes on."""
        async with self._changing:
            model = await asyncio.to_thread(self._loader.load, version)
            self._service.deploy(change(self._service.deployment, model))
        return model


def _required(version: str) -> str:
    if not version:
        raise invalid("version", "is required")
    check_names({"version": version})
    return version
