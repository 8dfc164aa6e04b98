"""`tapewatch model`: which versions judge, how candidates do and whether the tape drifts, over the whole warm pool."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import grpc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.settings import MeshSettings
from services.runtime.channels import open_channel
from services.runtime.errors import error_from_rpc, exit_code_of
from tapewatch.scorer.v1 import model_service_pb2 as pb
from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceStub

if TYPE_CHECKING:
    from tapewatch.scorer.v1.model_service_pb2_grpc import ModelServiceAsyncStub

STABLE, DRIFTED = 0.1, 0.25
"""How a population stability index is usually read: below the first stable, above the second drifted."""
_SHOWN = 8

Call = Callable[["ModelServiceAsyncStub"], Awaitable[str]]


async def on_every_scorer(settings: MeshSettings, call: Call, console: Console) -> int:
    """Call every scorer of the pool, each on its own. The exit code: the worst of all, which the others do not undo.

    A pool must judge alike, so a scorer that failed is called again once it is back.
    """

    async def one(address: str) -> tuple[str, int]:
        try:
            async with open_channel(address, settings) as channel:
                return await call(ModelServiceStub(channel)), 0
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error, f"scorer {address}").message, exit_code_of(error)

    addresses = settings.pool()
    answers = await asyncio.gather(*(one(address) for address in addresses))
    for address, (words, code) in zip(addresses, answers, strict=True):
        console.print(f"{address}: {words}", style="bold red" if code else "", highlight=False, soft_wrap=True)
    return max(code for _, code in answers)


async def serving_versions(settings: MeshSettings) -> set[str]:
    """The versions that serve, of the scorers of the pool that answer: more than one while a pool is changed."""

    async def one(address: str) -> str:
        try:
            async with open_channel(address, settings) as channel:
                return (await ModelServiceStub(channel).GetModel(pb.GetModelRequest())).model.version
        except grpc.aio.AioRpcError:
            return ""

    return set(await asyncio.gather(*map(one, settings.pool()))) - {""}


async def reload(settings: MeshSettings, version: str, console: Console) -> int:
    """Serve a version; empty means the newest that can judge."""

    async def call(stub: "ModelServiceAsyncStub") -> str:
        model = (await stub.ReloadModel(pb.ReloadModelRequest(version=version))).model
        return f"serves {model.version} at threshold {model.threshold:.6g}"

    return await on_every_scorer(settings, call, console)


async def shadow(settings: MeshSettings, version: str, console: Console) -> int:
    """Let a version judge beside the others."""

    async def call(stub: "ModelServiceAsyncStub") -> str:
        model = (await stub.SetShadowModel(pb.SetShadowModelRequest(version=version))).model
        return f"{model.version} judges as shadow"

    return await on_every_scorer(settings, call, console)


async def canary(settings: MeshSettings, version: str, weight: float, console: Console) -> int:
    """Let a version judge a share of the series."""

    async def call(stub: "ModelServiceAsyncStub") -> str:
        model = (await stub.SetCanaryModel(pb.SetCanaryModelRequest(version=version, weight=weight))).model
        return f"{model.version} judges {weight:.1%} of the series"

    return await on_every_scorer(settings, call, console)


async def clear(settings: MeshSettings, console: Console) -> int:
    """Take every candidate away."""

    async def call(stub: "ModelServiceAsyncStub") -> str:
        cleared = (await stub.ClearCandidateModel(pb.ClearCandidateModelRequest())).versions
        return f"took away {', '.join(cleared)}" if cleared else "had no candidates"

    return await on_every_scorer(settings, call, console)


async def show(settings: MeshSettings, console: Console) -> int:
    """What each scorer judges with, and how that goes."""

    async def call(stub: "ModelServiceAsyncStub") -> str:
        shown = await stub.GetModel(pb.GetModelRequest())
        model = shown.model
        calibration = model.threshold_calibration
        calibrated = f" (calibrated on {calibration.tape})" if model.HasField("threshold_calibration") else ""
        lines = [f"serves {model.version} at threshold {model.threshold:.6g}{calibrated}"]
        if shown.HasField("shadow"):
            lines.append(_shadow_line(shown.shadow))
        if shown.HasField("canary"):
            lines.append(_canary_line(shown.canary))
        lines += [line for drift in shown.drifts for line in _drift_lines(drift)]
        return "\n  ".join(lines)

    return await on_every_scorer(settings, call, console)


def _shadow_line(report: pb.ShadowReport) -> str:
    return (
        f"shadow {report.model_version}: {report.quotes:,} quotes, mean difference "
        f"{report.mean_absolute_difference:.4f}, other detection on {report.detection_difference_share:.3%} "
        f"({report.shadow_only_detections} only its, {report.recorded_only_detections} only the recorded)"
        + (f", {report.failed_batches} batches failed" if report.failed_batches else "")
    )


def _canary_line(report: pb.CanaryReport) -> str:
    return (
        f"canary {report.model_version} at {report.weight:.1%}: {report.detections} of {report.quotes:,} quotes are "
        f"detections, {report.serving_detections} of {report.serving_quotes:,} of the serving model"
    )


def _drift_lines(drift: pb.Drift) -> Sequence[str]:
    tape = f"{drift.tape}, bars of {drift.interval_seconds} s"
    known = sorted((v for v in drift.values if v.HasField("index")), key=lambda v: -v.index)
    if not known:
        return [f"drift on {tape}: too few quotes yet ({drift.quotes})"]
    moved = [f"{v.name} {v.index:.2f}" for v in known if v.index >= DRIFTED][:_SHOWN]
    shifting = sum(STABLE <= v.index < DRIFTED for v in known)
    words = f"drifted: {', '.join(moved)}" if moved else "nothing drifted"
    absent = sum(v.absent for v in drift.values)
    without = f"; {absent} not on this tape (no benchmark, peers or trade counts)" if absent else ""
    return [f"drift on {tape} over {drift.quotes:,} quotes: {words}; {shifting} shifting of {len(known)}{without}"]


async def listed(settings: MeshSettings, console: Console) -> int:
    """The first scorer's registry. The exit code."""
    address = settings.pool()[0]
    try:
        async with open_channel(address, settings) as channel:
            models = (await ModelServiceStub(channel).ListModels(pb.ListModelsRequest())).models
    except grpc.aio.AioRpcError as error:
        console.print(error_from_rpc(error, f"scorer {address}").message, style="bold red", soft_wrap=True)
        return exit_code_of(error)
    table = Table("version", "trained", "threshold", "does", "usable")
    for model in models:
        roles = [pb.ModelRole.Name(role).removeprefix("MODEL_ROLE_").lower() for role in model.roles]
        known = model.HasField("train_time")
        trained = f"{model.train_time.ToDatetime():%Y-%m-%d %H:%M}" if known else ""
        threshold = f"{model.threshold:.6g}" if known else ""
        usable = Text(f"no: {model.problem}", style="red") if model.problem else "yes"
        table.add_row(model.version, trained, threshold, ", ".join(roles), usable)
    console.print(table)
    return 0
