"""What a dispatcher can be told."""

from pydantic import Field

from services.queue.settings import QueueSettings
from services.runtime.settings import ADDRESSES, ServerSettings


class DispatchSettings(ServerSettings, QueueSettings):
    """Environment of `tapewatch dispatch serve` and of the Lambda."""

    grpc_port: int = Field(50053, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    scorer_addresses: str = Field(
        "127.0.0.1:50051", pattern=ADDRESSES, description="the warm pool: host:port, several with commas"
    )
    gateway_address: str = Field("127.0.0.1:50054", description="gateway that scores are recorded in")
    ingest_address: str = Field("127.0.0.1:50052", description="ingest that canaries are published to")
    canary_interval_seconds: float = Field(
        0.0,
        ge=0,
        description="time between plays of the canaries, known manipulations that must alert, seconds; 0 plays none",
    )
    event_source: str = Field(
        "embedded", pattern="^(embedded|none)$", description="`embedded` consumes the queue here; `none` with Lambda"
    )
    dispatch_batch_size: int = Field(
        100, ge=1, le=1_000, description="most messages in one batch (SQS takes 10 at most)"
    )
    dispatch_concurrency: int = Field(4, ge=1, le=64, description="most batches at once")

    @property
    def pool(self) -> tuple[str, ...]:
        """The addresses of the warm pool."""
        return tuple(a.strip() for a in self.scorer_addresses.split(",") if a.strip())
