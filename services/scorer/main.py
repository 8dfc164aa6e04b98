"""The scorer's composition root."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from services.archive.yahoo import yfinance_download
from services.domain.errors import NotConfiguredError
from services.pipeline.gateway_client import HEALTH_SERVICE, GatewayClient
from services.pipeline.score_then_record import ScoreThenRecord
from services.pipeline.sqs_handler import SqsBatchHandler
from services.queue.event_source import consume
from services.queue.open import open_queue
from services.runtime.channels import open_channel
from services.runtime.server import Lifetime, Mount, run_server
from services.scorer.blocks import BlockScoring
from services.scorer.metrics import observe_deployment
from services.scorer.model_servicer import ModelServicer
from services.scorer.registry import PACKAGED_MODELS, ModelRegistry
from services.scorer.scorer_servicer import ScorerServicer
from services.scorer.service import ScoringService
from services.scorer.settings import ScorerSettings
from services.scorer.thresholds import ModelLoader
from services.scorer.yahoo_history import YahooHistory
from tapewatch.scorer.v1 import model_service_pb2, scorer_service_pb2
from tapewatch.scorer.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from tapewatch.scorer.v1.scorer_service_pb2_grpc import add_ScorerServiceServicer_to_server

NO_GATEWAY = "none"


def open_gateway(settings: ScorerSettings, lifetime: Lifetime) -> GatewayClient | None:
    """The gateway's client, or None when there is to be none."""
    if settings.gateway_address == NO_GATEWAY:
        return None
    channel = open_channel(settings.gateway_address, settings, health_service=HEALTH_SERVICE)
    lifetime.on_close(channel.close)
    return GatewayClient(channel)


def make_loader(settings: ScorerSettings) -> ModelLoader:
    """What loads model versions."""
    return ModelLoader(ModelRegistry(settings.model_dir or PACKAGED_MODELS), settings.threshold_dir)


def make_service(settings: ScorerSettings, loader: ModelLoader, gateway: GatewayClient | None) -> ScoringService:
    """The scoring service with the configured models.

    Raises: ModelUnusableError, NotConfiguredError, InvalidRequestError, each with the reason.
    """
    model = loader.load_configured(settings.model_version, "MODEL_VERSION")
    fallback = YahooHistory(yfinance_download("FALLBACK_TO_YFINANCE")) if settings.fallback_to_yfinance else None
    service = ScoringService(model, gateway, fallback)
    deployment = service.deployment
    if settings.shadow_model_version:
        deployment = deployment.with_shadow(
            loader.load_configured(settings.shadow_model_version, "SHADOW_MODEL_VERSION")
        )
    if settings.canary_model_version:
        deployment = deployment.with_canary(
            loader.load_configured(settings.canary_model_version, "CANARY_MODEL_VERSION"), settings.canary_weight
        )
    service.deploy(deployment)
    return service


async def build(lifetime: Lifetime, settings: ScorerSettings) -> Sequence[Mount]:
    """Wire the scorer; with USE_SQS_DATA_SOURCE also the queue that it consumes itself."""
    loader = make_loader(settings)
    gateway = open_gateway(settings, lifetime)
    service = await asyncio.to_thread(make_service, settings, loader, gateway)
    lifetime.on_close(service.close)
    blocks = BlockScoring(lambda: service.deployment.serving, lambda: datetime.now(UTC))
    lifetime.on_close(blocks.close)
    observe_deployment(service.watch)
    if settings.use_sqs_data_source:
        if gateway is None:
            raise NotConfiguredError("USE_SQS_DATA_SOURCE needs a gateway to record to", "set GATEWAY_ADDRESS")
        queue = await asyncio.to_thread(open_queue, settings)
        lifetime.on_close(queue.close)
        lifetime.need_blocking("the queue", queue.check)
        handler = SqsBatchHandler(ScoreThenRecord(service, gateway), queue, settings.queue_name)
        lifetime.spawn(
            consume(queue, handler, batch_size=settings.source_batch_size, draining=lifetime.draining), "event source"
        )
    return [
        Mount(
            add_ScorerServiceServicer_to_server,
            ScorerServicer(service, blocks),
            scorer_service_pb2.DESCRIPTOR.services_by_name["ScorerService"],
        ),
        Mount(
            add_ModelServiceServicer_to_server,
            ModelServicer(service, loader),
            model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
        ),
    ]


def main() -> int:
    """Serve until told to stop; the exit code of the process."""
    settings = ScorerSettings()
    return run_server("scorer", settings, lambda lifetime: build(lifetime, settings))
