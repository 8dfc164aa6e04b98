"""Where the command finds the mesh, and where it keeps what the embedded mesh writes."""

from pathlib import Path

from pydantic import Field, field_validator

from services.runtime.settings import ADDRESS, ADDRESSES, ClientSettings

_SCORER_PORT_STEP = 10


class MeshSettings(ClientSettings):
    """Environment of `tapewatch run`, `up`, `watch`, `replay` and `doctor`."""

    tapewatch_dir: Path = Field(
        Path(".tapewatch"), validate_default=True, description="folder of the embedded mesh: queue, store, lake, logs"
    )
    ingest_address: str = Field("127.0.0.1:50052", pattern=ADDRESS, description="ingest's host:port")
    dispatch_address: str = Field("127.0.0.1:50053", pattern=ADDRESS, description="dispatch's host:port")
    gateway_address: str = Field("127.0.0.1:50054", pattern=ADDRESS, description="the gateway's host:port")
    canary_interval_seconds: float = Field(
        900.0, ge=0, description="time between plays of the canaries of `tapewatch up`, seconds; 0 plays none"
    )
    scorer_addresses: str = Field(
        "127.0.0.1:50051", pattern=ADDRESSES, description="the warm pool: host:port, several with commas"
    )

    @field_validator("tapewatch_dir")
    @classmethod
    def _is_or_can_be_a_folder(cls, folder: Path) -> Path:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise ValueError(f"{existing} is a file: set TAPEWATCH_DIR to a folder")
        return folder

    def pool(self, scorers: int = 1) -> list[str]:
        """The scorers' addresses; `scorers` beyond the configured ones follow the last at ports 10 apart."""
        addresses = [a.strip() for a in self.scorer_addresses.split(",") if a.strip()]
        while len(addresses) < scorers:
            host, _, port = addresses[-1].rpartition(":")
            addresses.append(f"{host}:{int(port) + _SCORER_PORT_STEP}")
        return addresses
