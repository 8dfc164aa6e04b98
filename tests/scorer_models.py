"""Folders of model versions for tests, made from the shipped one."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from services.domain.model import AUTOENCODER_FILE, CLASSIFIER_FILE, METADATA_FILE
from services.runtime.channels import open_channel
from services.runtime.server import Lifetime, serve
from services.runtime.settings import ClientSettings
from services.scorer.main import build
from services.scorer.registry import PACKAGED_MODELS, ModelRegistry
from services.scorer.settings import ScorerSettings

SHIPPED = ModelRegistry(PACKAGED_MODELS).names()[0]


def copy_version(folder: Path, version: str, **changes: Any) -> Path:
    """The shipped model under another name, with changed metadata."""
    target = folder / version
    shutil.copytree(PACKAGED_MODELS / SHIPPED, target)
    path = target / METADATA_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version, **changes}))
    return target


def model_folder(folder: Path) -> Path:
    """The shipped model as "champion", one with other scores and threshold as "challenger", and a damaged one."""
    newest = "2030-01-01T00:00:00Z"
    copy_version(folder, "champion", train_time=newest)
    calibration = json.loads((PACKAGED_MODELS / SHIPPED / METADATA_FILE).read_text())["calibration"]
    calibration["classifier_alone"][0] -= 0.5  # other scores, whatever the autoencoder weighs in the shipped model
    challenger = copy_version(folder, "challenger", threshold=0.05, calibration=calibration)
    (challenger / AUTOENCODER_FILE).unlink()  # the classifier alone, and of quality PARTIAL_MODEL
    damaged = copy_version(folder, "damaged") / CLASSIFIER_FILE
    damaged.write_bytes(damaged.read_bytes() + b"?")
    return folder


@asynccontextmanager
async def running_scorer(models: Path, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a scorer in this process, drained at the end."""
    async with scorer_address(models, **settings) as address, open_client(address) as channel:
        yield channel


def open_client(address: str) -> grpc.aio.Channel:
    """A channel as every client opens it."""
    return open_channel(address, ClientSettings())


@asynccontextmanager
async def scorer_address(models: Path, **settings: Any) -> AsyncIterator[str]:
    """Where a scorer in this process listens: the real bootstrap and server; drained at the end."""
    configured = ScorerSettings(grpc_port=0, gateway_address="none", model_dir=models, **settings)
    lifetimes: list[Lifetime] = []
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wire(lifetime: Lifetime) -> Any:
        lifetimes.append(lifetime)
        return await build(lifetime, configured)

    done = asyncio.create_task(serve("scorer", configured, wire, port.set_result))
    await asyncio.wait([done, port], return_when=asyncio.FIRST_COMPLETED)
    if done.done():
        done.result()
    try:
        yield f"127.0.0.1:{port.result()}"
    finally:
        lifetimes[0].draining.set()
        assert await done == 0
