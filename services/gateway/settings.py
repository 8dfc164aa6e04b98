"""What a gateway can be told."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from services.runtime.settings import AwsSettings, ServerSettings


class GatewaySettings(ServerSettings, AwsSettings):
    """Environment of `tapewatch gateway serve`."""

    grpc_port: int = Field(50054, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    store_backend: Literal["sqlite", "dynamodb"] = Field(
        "sqlite", description="where to keep everything: `sqlite` (a file) or `dynamodb` (a table)"
    )
    store_path: Path = Field(Path(".tapewatch/store.db"), description="file of the embedded store")
    store_synchronous: Literal["normal", "full"] = Field(
        "normal", description="`full` makes the embedded store survive a power loss, at the price of slower writes"
    )
    store_table: str = Field("tapewatch", description="name of the DynamoDB table")
    dax_endpoint: str = Field(
        "", description="DAX cluster that `GetDetection` reads through, `daxs://<host>`; empty reads the DynamoDB table"
    )
    store_retention_days: float = Field(
        0.0, ge=0, description="days that DynamoDB keeps quotes that are no detections; 0 keeps them"
    )
    lake_uri: str = Field(".tapewatch/lake", description="folder or file system URI of the lake; `none` writes none")
    lake_flush_rows: int = Field(10_000, ge=1, description="most rows in one part of the lake")
    lake_flush_seconds: float = Field(60.0, gt=0, description="longest time that a row waits for the lake, seconds")
    appsync_endpoint: str = Field(
        "", description="HTTP endpoint of the AppSync Events API that alert changes are pushed to; empty pushes none"
    )
    appsync_api_key: SecretStr = Field(
        SecretStr(""), description="key to publish with; empty signs with the AWS credentials (IAM)"
    )
    appsync_host: str = Field("", description="host of that API where the endpoint is a local stand-in's")

    @property
    def retention(self) -> timedelta | None:
        """How long quotes are kept that are no detections; None for ever."""
        return timedelta(days=self.store_retention_days) if self.store_retention_days else None

    @property
    def lake(self) -> str:
        """Where the lake is; empty when none is to be written."""
        return "" if self.lake_uri == "none" else self.lake_uri
