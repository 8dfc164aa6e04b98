"""What ingest can be told."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.ingest.subscribers import MAX_BEHIND
from services.ingest.universe import symbols_of
from services.queue.settings import QueueSettings
from services.runtime.settings import ServerSettings


class IngestSettings(ServerSettings, QueueSettings):
    """Environment of `tapewatch ingest serve`."""

    grpc_port: int = Field(50052, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    source: Literal["none", "yahoo", "csv"] = Field(
        "none", description="source polled onto the live tape: `none`, `yahoo` (Yahoo Finance) or `csv` (CSV_PATH)"
    )
    symbols: str = Field(
        "default",
        description="symbols polled: `default` (29), `large_caps`, or tickers with commas; with `csv` default is all",
    )
    poll_interval_seconds: float = Field(60.0, gt=0, description="time between polls of the source, seconds")
    csv_path: Path | None = Field(None, description="CSV file or folder that SOURCE=csv follows")
    ingest_backend: Literal["sqlite", "dynamodb"] = Field(
        "sqlite",
        description="where to keep replays and how far sources were read: `sqlite` (a file) or `dynamodb` (a table)",
    )
    ingest_path: Path = Field(
        Path(".tapewatch/ingest.db"), description="file that keeps replays and how far sources were read"
    )
    ingest_table: str = Field("tapewatch-ingest", description="name of the DynamoDB table that keeps them")
    replay_batch_quotes: int = Field(250, ge=1, le=1_000, description="quotes that a replay sends at once")
    replay_max_ready: int = Field(
        5_000, ge=1, description="messages ready in the queue above which replays wait for the mesh"
    )
    stream_max_behind: int = Field(
        MAX_BEHIND, ge=1, description="quotes that a StreamQuotes listener may fall behind before it is ended"
    )
    yahoo_requests_per_second: float = Field(2.0, gt=0, description="requests to Yahoo Finance, at most, per second")

    benchmark_symbol: str = Field(
        "SPY",
        description="symbol whose return and volume quotes from Yahoo Finance carry as the market's; empty stamps none",
    )

    sectors: Path | None = Field(
        None,
        description="CSV file with the columns `symbol` and `sector`. Quotes from Yahoo Finance carry the return and "
        "volume of the sector, which must be a symbol there (`XLK`); empty: of a fund, for large US caps. Replayed "
        "bars carry those of the sector's other symbols; empty: of the symbols that move most like it. Both only "
        "beside a benchmark",
    )

    market_calendar: str = Field(
        "",
        description="exchange by whose calendar quotes must come, such as `XNYS` (extra `calendar`): while it is "
        "closed, holidays and early closes included, no series counts as silent; empty expects quotes always",
    )

    @property
    def polled_symbols(self) -> tuple[str, ...]:
        """The symbols to poll."""
        return symbols_of(self.symbols)
