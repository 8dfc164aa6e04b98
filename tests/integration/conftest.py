"""What integration tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.gateway_server import Gateway, running_gateway


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no absent service."""
    monkeypatch.setenv("RPC_TIMEOUT_SECONDS", "60")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running_gateway(tmp_path) as running:
        yield running
