"""`tapewatch canary`: known manipulations through a running mesh, and whether each alerted."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from services.cli.settings import MeshSettings
from services.domain.canary import CanaryOutcome, choose
from services.pipeline.canary_play import play
from services.pipeline.live_path_client import LivePathClient
from services.runtime.channels import open_channel
from services.runtime.exit_codes import EXIT_FAILED, EXIT_MISCONFIGURED
from services.wire.time import timestamp_from_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb


def outcome_line(outcome: CanaryOutcome) -> Text:
    """One canary's outcome in a line."""
    if outcome.delay_seconds is None:
        return Text(f"{outcome.name:<20} MISSED: {outcome.problem}", style="bold red")
    words = f"{outcome.name:<20} alerted after {outcome.delay_seconds:.1f} s as {outcome.typology.words}"
    return Text(f"{words}, score {outcome.peak_score:.3f} ({outcome.alert_id})", style="green")


def state_line(response: pb.GetCanariesResponse | None) -> Text | None:
    """The scheduled canaries in a line; None when there is no schedule."""
    if response is None or response.state in (pb.CANARY_STATE_UNSPECIFIED, pb.CANARY_STATE_OFF):
        return None
    if response.state == pb.CANARY_STATE_NOT_PLAYED:
        return Text("canaries: the first play has not ended yet", style="dim")
    at = f"{timestamp_from_proto(response.play_time):%H:%M:%S} UTC"
    if response.state == pb.CANARY_STATE_GREEN:
        return Text(f"canaries: all {len(response.results)} alerted at {at}", style="green")
    missed = "; ".join(f"{result.name} {result.problem}" for result in response.results if not result.alerted)
    return Text(f"CANARY MISSED at {at}: {missed}", style="bold red")


async def canary(settings: MeshSettings, names: Sequence[str], deadline_seconds: float, console: Console) -> int:
    """Play the named canaries, or all, and print what became of them in that time. The exit code."""
    try:
        chosen = choose(names)
    except ValueError as error:
        console.print(f"tapewatch canary: {error}", style="bold red", soft_wrap=True)
        return EXIT_MISCONFIGURED
    ingest, gateway = settings.ingest_address, settings.gateway_address
    console.print(f"playing {len(chosen)} canaries from ingest {ingest} to gateway {gateway}", style="dim")
    async with open_channel(ingest, settings) as source, open_channel(gateway, settings) as sink:
        path = LivePathClient(source, sink)
        outcomes = await play(path, chosen, lambda: datetime.now(UTC), deadline_seconds)
    for outcome in outcomes:
        console.print(outcome_line(outcome), soft_wrap=True, highlight=False)
    missed = sum(not outcome.alerted for outcome in outcomes)
    summary = f"{missed} of {len(outcomes)} canaries MISSED" if missed else f"all {len(outcomes)} canaries alerted"
    console.print(summary, style="bold red" if missed else "bold green", highlight=False)
    return EXIT_FAILED if missed else 0
