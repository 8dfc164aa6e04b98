"""What a scorer can be told."""

from pathlib import Path

from pydantic import Field

from services.pipeline.batch_files import BatchSettings
from services.queue.settings import QueueSettings
from services.runtime.settings import ADDRESS_OR_NONE, ServerSettings


class ScorerSettings(ServerSettings, QueueSettings):
    """Environment of `tapewatch scorer serve` and `tapewatch scorer run-once`."""

    grpc_port: int = Field(50051, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    gateway_address: str = Field(
        "127.0.0.1:50054",
        pattern=ADDRESS_OR_NONE,
        description="gateway that history is read from; `none` for none",
    )
    model_dir: Path | None = Field(None, description="folder of model versions; empty takes the shipped ones")
    model_version: str = Field("", description="version to serve; empty takes the newest that can judge")
    threshold_dir: Path | None = Field(
        None,
        description="folder of `threshold-<version>.json` of `tapewatch calibrate`, read at start and on reload; empty "
        "takes that of the models, and a model without a file its own threshold",
    )
    shadow_model_version: str = Field("", description="version that judges every quote beside, and alerts nothing")
    canary_model_version: str = Field("", description="version that judges a share of the series for real")
    canary_weight: float = Field(0.05, gt=0, le=1, description="share of the series that the canary model judges")
    fallback_to_yfinance: bool = Field(
        False, description="complete a live series' short history from Yahoo Finance (quality FALLBACK)"
    )
    use_sqs_data_source: bool = Field(False, description="consume the queue in the scorer itself, without a dispatcher")
    source_batch_size: int = Field(100, ge=1, le=1_000, description="most messages in one batch (SQS takes 10 at most)")


class RunOnceSettings(ScorerSettings, BatchSettings):
    """What a one-shot scorer is told of its work, in the old system's names."""

    correlation_id: str = Field("", description="names the batch in logs and in the summary")
    batch_size: int = Field(0, ge=0, description="number of messages in the batch, checked when set")
    batch_market_data: str = Field("", description="the batch: a JSON array of queue messages")
    batch_manifest_uri: str = Field("", description="path or S3 URI of the batch, when it is too large for a variable")
    max_timeout_seconds: float = Field(
        30.0, gt=0, description="longest time that scoring and recording may take, seconds"
    )
    processing_mode: str = Field("", description="`LAMBDA_TRIGGERED` when a dispatcher launched the task")
    traceparent: str = Field("", description="W3C trace context that the batch continues")
    tracestate: str = Field("", description="vendor part of the trace context")
