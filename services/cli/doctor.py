"""`tapewatch doctor`: what is configured, reachable, missing."""

import asyncio
import importlib.util
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.dependencies import PACKAGES, install_command, missing_package
from services.cli.settings import MeshSettings
from services.domain.errors import TapewatchError
from services.runtime.exit_codes import EXIT_FAILED
from services.runtime.health import address_health

_SUPPORTED = ((3, 11), (3, 13))
_OPTIONAL = (
    ("yfinance", "live quotes from Yahoo Finance"),
    ("boto3", "the AWS adapters"),
    ("amazondax", "detections through DAX"),
    ("duckdb", "SQL over the lake"),
    ("matplotlib", "the plot of tapewatch calibrate"),
    ("tensorflow", "training models"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `state` is ok, off (optional and absent) or bad."""

    subject: str
    state: str
    detail: str


def _python() -> Finding:
    low, high = _SUPPORTED
    good = low <= sys.version_info[:2] <= high
    wanted = "" if good else f"; Tapewatch needs CPython {low[0]}.{low[1]} to {high[0]}.{high[1]}"
    return Finding("python", "ok" if good else "bad", platform.python_version() + wanted)


def _optional() -> list[Finding]:
    return [
        Finding(module, "ok", purpose)
        if importlib.util.find_spec(module)
        else Finding(module, "off", f"{purpose}: {install_command(PACKAGES[module][1])}")
        for module, purpose in _OPTIONAL
    ]


def _model(folder: Path) -> Finding:
    from services.scorer.registry import PACKAGED_MODELS, ModelRegistry
    from services.scorer.settings import ScorerSettings
    from services.scorer.thresholds import ModelLoader, calibration_of

    settings = ScorerSettings()
    registry = ModelRegistry(settings.model_dir or PACKAGED_MODELS)
    loader = ModelLoader(registry, settings.threshold_dir or folder)
    try:
        model = loader.load_configured(settings.model_version, "MODEL_VERSION")
    except TapewatchError as error:
        return Finding("model", "bad", error.message)
    calibrated = "" if calibration_of(model) is None else " by tapewatch calibrate"
    return Finding("model", "ok", f"{model.metadata.version}, threshold {model.metadata.threshold:.3f}{calibrated}")


def _folder(settings: MeshSettings) -> Finding:
    folder = settings.tapewatch_dir
    existing = folder if folder.exists() else folder.absolute().parent
    if os.access(existing, os.W_OK):
        return Finding("folder", "ok", f"{folder} is writable")
    return Finding("folder", "bad", f"{existing} is not writable: set TAPEWATCH_DIR to a folder that is")


def _not_made_yet(subject: str, path: Path, setting: str) -> Finding | None:
    """What is to be said of a file that is not there, or empty: opening it would make it. None when there is one."""
    if path.exists() and (path.is_dir() or path.stat().st_size):
        return None
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if os.access(existing, os.W_OK) and (existing == path or existing.is_dir()):
        return Finding(subject, "ok", f"sqlite: {path} is made on first use")
    return Finding(subject, "bad", f"{existing} is no writable folder for {path.name}: set {setting} to another file")


def _queue() -> Finding:
    from services.queue.open import open_queue
    from services.queue.settings import QueueSettings

    settings = QueueSettings()
    if settings.queue_backend == "sqlite":
        absent = _not_made_yet("queue", settings.queue_path, "QUEUE_PATH")
        if absent is not None:
            return absent
    try:
        queue = open_queue(settings)
        try:
            queue.check()
            depth = queue.depth()
        finally:
            queue.close()
    except TapewatchError as error:
        return Finding("queue", "bad", error.message)
    detail = f"{settings.queue_backend}: {depth.ready} ready, {depth.in_flight} in flight, {depth.dead_letters} dead"
    return Finding("queue", "ok", detail)


def _task_mode() -> Finding:
    from services.dispatch.open import open_launcher, open_ledger
    from services.dispatch.settings import DispatchSettings

    settings = DispatchSettings()
    if settings.dispatch_mode == "warm":
        return Finding("task mode", "off", "DISPATCH_MODE=warm: running scorers judge")
    if settings.ledger_backend == "sqlite":
        absent = _not_made_yet("task mode", settings.ledger_path, "LEDGER_PATH")
        if absent is not None:
            return absent
    try:
        ledger = open_ledger(settings)
        opened = len(ledger.open())
        ledger.close()
        if settings.task_launcher == "ecs":
            open_launcher(settings).close()
    except TapewatchError as error:
        return Finding("task mode", "bad", error.message)
    detail = f"{settings.dispatch_mode}: {settings.ledger_backend} ledger with {opened} open batches"
    return Finding("task mode", "ok", f"{detail}, tasks by {settings.task_launcher}")


def _store(folder: Path) -> Finding:
    from services.gateway.main import open_store
    from services.gateway.settings import GatewaySettings

    configured = GatewaySettings()
    where = configured.store_table
    if configured.store_backend == "sqlite":
        path = Path(os.environ.get("STORE_PATH") or folder / "store.db")
        absent = _not_made_yet("store", path, "STORE_PATH")
        if absent is not None:
            return absent
        configured = configured.model_copy(update={"store_path": path})
        where = str(path)
    try:
        store = open_store(configured)
        try:
            store.check()
            quotes, changes = store.last_quote(), store.last_change()
        finally:
            store.close()
    except TapewatchError as error:
        return Finding("store", "bad", error.message)
    detail = f"{configured.store_backend}: {where}, {quotes:,} quotes, {changes:,} alert changes"
    return Finding("store", "ok", detail)


def _cache() -> Finding:
    from services.gateway.main import open_cache
    from services.gateway.settings import GatewaySettings

    configured = GatewaySettings()
    try:
        cache = open_cache(configured)
        if cache is None:
            return Finding("cache", "off", "DAX_ENDPOINT is empty: detections are read from the store")
        try:
            cache.check()
        finally:
            cache.close()
    except TapewatchError as error:
        return Finding("cache", "bad", error.message)
    return Finding("cache", "ok", f"{configured.dax_endpoint} answers")


def _lake(folder: Path) -> Finding:
    from services.archive.filesystem import explain, open_filesystem

    location = os.environ.get("LAKE_URI") or str(folder / "lake")
    if location == "none":
        return Finding("lake", "off", "LAKE_URI=none: nothing is archived")
    try:
        filesystem, root = open_filesystem(location, "LAKE_URI")
        filesystem.get_file_info(root)
    except TapewatchError as error:
        return Finding("lake", "bad", error.message)
    except OSError as error:
        return Finding("lake", "bad", explain(error, location))
    return Finding("lake", "ok", location)


def _checked(subject: str, check: Callable[[], Finding]) -> Finding:
    """The check's finding, a package that it lacks among them."""
    try:
        return check()
    except ModuleNotFoundError as error:
        needs = missing_package(error.name or "")
        if needs is None:
            raise
        return Finding(subject, "bad", needs)


async def _service(name: str, address: str, settings: MeshSettings) -> Finding:
    health = await address_health(address, settings, timeout_seconds=1.0)
    if health.serving:
        return Finding(name, "ok", f"serving at {address}")
    if health.answered:
        return Finding(name, "bad", f"{address}: {health.words}")
    return Finding(name, "off", f"nobody serves at {address}: tapewatch up starts the mesh")


async def examine(settings: MeshSettings) -> list[Finding]:
    """Every check."""
    os.environ.setdefault("QUEUE_PATH", str(settings.tapewatch_dir / "queue.db"))
    os.environ.setdefault("LEDGER_PATH", str(settings.tapewatch_dir / "ledger.db"))
    checks: dict[str, Callable[[], Finding]] = {
        "model": lambda: _model(settings.tapewatch_dir),
        "queue": _queue,
        "task mode": _task_mode,
        "store": lambda: _store(settings.tapewatch_dir),
        "cache": _cache,
        "lake": lambda: _lake(settings.tapewatch_dir),
    }
    services: list[Awaitable[Finding]] = [
        _service(name, address, settings)
        for name, address in (
            ("ingest", settings.ingest_address),
            ("dispatch", settings.dispatch_address),
            *((f"scorer {i}", address) for i, address in enumerate(settings.pool(), 1)),
            ("gateway", settings.gateway_address),
        )
    ]
    local = [await asyncio.to_thread(_checked, subject, check) for subject, check in checks.items()]
    return [_python(), _folder(settings), *_optional(), *local, *await asyncio.gather(*services)]


def show(findings: Sequence[Finding], console: Console) -> int:
    """Print the findings. The exit code: 1 when one is bad."""
    styles = {"ok": "green", "off": "yellow", "bad": "bold red"}
    table = Table("what", "state", "detail")
    for finding in findings:
        table.add_row(finding.subject, Text(finding.state, styles[finding.state]), finding.detail)
    console.print(table)
    return EXIT_FAILED if any(finding.state == "bad" for finding in findings) else 0


async def doctor(settings: MeshSettings, console: Console) -> int:
    """Check everything and print what was found. The exit code."""
    return show(await examine(settings), console)
