"""Options that several commands have."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from services.domain.errors import shown
from services.runtime.settings import ADDRESS

_LAST_PORT = 65_535


class Source(StrEnum):
    """Where quotes come from."""

    REPLAY = "replay"
    YAHOO = "yahoo"
    CSV = "csv"


Symbols = Annotated[
    str, typer.Option("--symbols", help="Comma-separated tickers; empty takes all of the source, or its default list.")
]
Scorers = Annotated[int, typer.Option("--scorers", min=1, max=32, help="Scorers in the warm pool.")]


class Mode(StrEnum):
    """Where batches are scored."""

    WARM = "warm"
    TASK = "task"
    AUTO = "auto"


HowScored = Annotated[
    Mode | None,
    typer.Option(
        "--mode",
        help="warm: running scorers; task: a one-shot scorer a batch; auto: warm while one serves. "
        "Empty takes DISPATCH_MODE, else warm.",
    ),
]
Location = Annotated[
    str,
    typer.Option(
        "--from",
        help="`bokeh` (the bundled tape), a CSV or Parquet file, or a folder of them, e.g. the lake; "
        "LAKE#TAPE where it has several.",
    ),
]


Feed = Annotated[Source, typer.Option("--source", help="Where quotes come from.")]
Interval = Annotated[
    int, typer.Option("--interval", min=1, help="Seconds between polls of Yahoo Finance or the CSV files.")
]
Speed = Annotated[
    float,
    typer.Option("--speed", min=0, help="Replay: event time over wall time; 0 is as fast as the mesh takes it."),
]


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What a mesh that stays up is to play and how: the options of `up` and `up-aws-local`."""

    source: str
    location: str
    symbols: Sequence[str]
    interval_seconds: int
    speed: float
    scorers: int
    mode: str


def up_options(
    source: Source, location: str, symbols: str, interval: int, speed: float, scorers: int, mode: Mode | None
) -> UpOptions:
    """The options as they are meant. Raises: typer.BadParameter when they contradict each other."""
    if source is Source.CSV and location == "bokeh":
        raise typer.BadParameter("--source csv needs --from with a CSV file or a folder of them")
    return UpOptions(source.value, location, split(symbols), interval, speed, scorers, mode_of(mode))


def host_port(address: str) -> str:
    """The address as it is. Raises: typer.BadParameter when it is neither empty nor host:port."""
    if address and (re.match(ADDRESS, address) is None or int(address.rpartition(":")[2]) > _LAST_PORT):
        raise typer.BadParameter(f"{address!r} is not host:port")
    return address


Address = Annotated[
    str,
    typer.Option("--gateway", callback=host_port, help="The gateway's host:port; empty takes GATEWAY_ADDRESS."),
]


def mode_of(mode: Mode | None) -> str:
    """The asked-for mode, else DISPATCH_MODE's."""
    return os.environ.get("DISPATCH_MODE", Mode.WARM.value) if mode is None else mode.value


def moment(text: str, option: str) -> datetime | None:
    """The time that an option names, in UTC unless it has a zone; None when empty. Raises: typer.BadParameter.

    >>> moment("2026-11-20T15:30+01:00", "--start")
    datetime.datetime(2026, 11, 20, 14, 30, tzinfo=datetime.timezone.utc)
    """
    if not text:
        return None
    try:
        named = datetime.fromisoformat(text)
        return (named if named.tzinfo else named.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{option} {shown(text)} is no time: write it as 2026-11-20, or 2026-11-20T14:30:00Z"
        ) from None


def split(symbols: str) -> list[str]:
    """Tickers, in upper case, of a text with commas."""
    return [symbol.strip().upper() for symbol in symbols.split(",") if symbol.strip()]
