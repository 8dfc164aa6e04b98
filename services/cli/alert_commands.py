"""The options of `tapewatch alerts …`."""

import asyncio
import getpass
from enum import StrEnum
from typing import Annotated

import typer

from services.cli.arguments import Address, split
from services.cli.console import make_console
from services.cli.settings import MeshSettings

alerts_app = typer.Typer(help="Alerts and their triage: list, acknowledge, assign, close.", no_args_is_help=True)

AlertIds = Annotated[list[str], typer.Argument(metavar="ALERT...", help="Ids, as `list` shows them.")]
Note = Annotated[str, typer.Option(help="What goes into the audit trail with it.")]
Actor = Annotated[str, typer.Option(help="Who does it; empty takes the name of this machine's user.")]


class State(StrEnum):
    """Which alerts to list."""

    OPEN = "open"
    NEW = "new"
    ACKNOWLEDGED = "acknowledged"
    INVESTIGATING = "investigating"
    CLOSED = "closed"
    ALL = "all"


class Decision(StrEnum):
    """What was decided of an alert."""

    CONFIRMED = "confirmed"
    DISMISSED = "dismissed"


@alerts_app.command("list")
def alerts_list(
    gateway: Address = "",
    state: Annotated[State, typer.Option(case_sensitive=False, help="Open ones are all but the closed.")] = State.OPEN,
    symbols: Annotated[str, typer.Option(help="Only these symbols, with commas between them; empty takes all.")] = "",
    tape: Annotated[str, typer.Option(help="Only this tape; empty takes all but the canaries'.")] = "",
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Only those with at least this peak score.")] = 0.0,
    limit: Annotated[int, typer.Option(min=1, help="Most alerts to show.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per alert.")] = False,
) -> None:
    """Show alerts, newest change first, with their reasons."""
    from services.cli.alerts import listed
    from tapewatch.gateway.v1 import alert_pb2, alert_service_pb2

    names = {
        State.OPEN: (State.NEW, State.ACKNOWLEDGED, State.INVESTIGATING),
        State.ALL: (),
    }.get(state, (state,))
    wanted = alert_service_pb2.AlertFilter(
        tape=tape,
        symbols=split(symbols),
        min_peak_score=min_score,
        states=[alert_pb2.AlertState.Value(f"ALERT_STATE_{name.name}") for name in names],
    )
    settings = MeshSettings()
    address = gateway or settings.gateway_address
    raise SystemExit(asyncio.run(listed(address, settings, wanted, limit, as_json, make_console())))


@alerts_app.command("acknowledge")
def alerts_acknowledge(alerts: AlertIds, note: Note = "", actor: Actor = "", gateway: Address = "") -> None:
    """Say that somebody has seen these alerts."""
    _update(alerts, gateway, actor, note, state="ACKNOWLEDGED")


@alerts_app.command("assign")
def alerts_assign(
    alerts: AlertIds,
    to: Annotated[str, typer.Option(help="Who works on them; empty means nobody.")],
    note: Note = "",
    actor: Actor = "",
    gateway: Address = "",
) -> None:
    """Give these alerts to somebody."""
    _update(alerts, gateway, actor, note, assignee=to)


@alerts_app.command("close")
def alerts_close(
    alerts: AlertIds,
    disposition: Annotated[Decision, typer.Option(case_sensitive=False, help="What was decided.")],
    note: Annotated[str, typer.Option(help="Why; it goes into the audit trail.")],
    actor: Actor = "",
    gateway: Address = "",
) -> None:
    """Decide these alerts for good. `tapewatch calibrate` and the next training learn from it."""
    _update(alerts, gateway, actor, note, state="CLOSED", disposition=disposition.name)


def _update(alerts: list[str], gateway: str, actor: str, note: str, **values: str) -> None:
    """Take the alerts a step further, with these fields of an alert by their proto's names."""
    from services.cli.alerts import update
    from tapewatch.gateway.v1 import alert_pb2

    wanted = alert_pb2.Alert(assignee=values.get("assignee", ""))
    if "state" in values:
        wanted.state = alert_pb2.AlertState.Value(f"ALERT_STATE_{values['state']}")
    if "disposition" in values:
        wanted.disposition = alert_pb2.Disposition.Value(f"DISPOSITION_{values['disposition']}")
    settings = MeshSettings()
    address = gateway or settings.gateway_address
    who = actor or _user()
    raise SystemExit(asyncio.run(update(address, settings, alerts, wanted, sorted(values), who, note, make_console())))


def _user() -> str:
    """This machine's user. Raises: typer.BadParameter when it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise typer.BadParameter("--actor is needed: this machine has no name for its user") from None
