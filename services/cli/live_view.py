"""The live view of a running mesh: progress, rates, freshness, and the alerts as they come."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from services.cli.canary import state_line as canary_line
from services.cli.watch import line
from tapewatch.dispatch.v1 import dispatch_service_pb2
from tapewatch.gateway.v1 import alert_pb2

_ALERT_LINES = 12
_RATE_SECONDS = 3.0
_PLAIN_LINE_SECONDS = 2.0
_UNCHANGED_LINE_SECONDS = 60.0


@dataclass(slots=True)
class Reading:
    """What the mesh says of itself at one moment. Messages for the backlog, seconds for the latency."""

    published: int = 0
    total: int = 0
    backlog: int = 0
    dead_letters: int = 0
    latency_seconds: float | None = None
    position: str = ""
    stale: list[str] = field(default_factory=list)
    canaries: dispatch_service_pb2.GetCanariesResponse | None = None

    @property
    def recorded(self) -> int:
        """Quotes that have left the queue."""
        return max(0, self.published - self.backlog)


class LiveView:
    """Shows readings and alerts: a live screen on a terminal, plain lines elsewhere. `clock` is in seconds."""

    def __init__(self, console: Console, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._title = title
        self._alerts: deque[Text] = deque(maxlen=_ALERT_LINES)
        self._opened = 0
        self._readings: deque[tuple[float, int]] = deque()
        self._plain_time = float("-inf")
        self._plain_line = ""
        self._canary_state = dispatch_service_pb2.CANARY_STATE_UNSPECIFIED
        self._reading = Reading()
        self._recorded = 0
        self._troubles: Mapping[str, str] = {}
        self._rate = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>7,.0f} quotes/s"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID = self._progress.add_task("scored", total=None, rate=0.0)
        self._live = Live(self._render(), console=console, refresh_per_second=8) if console.is_terminal else None

    def __enter__(self) -> "LiveView":
        if self._live is not None:
            self._live.start()
        else:
            self._console.print(self._title)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()
        elif self._readings and self._line() != self._plain_line:
            self._print_line()

    def alert(self, change: alert_pb2.AlertChange) -> None:
        """Show a change of an alert."""
        self._opened += change.kind == alert_pb2.ALERT_CHANGE_KIND_OPENED
        text = line(change)
        if self._live is None:
            self._console.print(text, soft_wrap=True)
        else:
            self._alerts.append(text)
            self._live.update(self._render())

    def show(self, reading: Reading) -> None:
        """Show how far the mesh is."""
        now = self._clock()
        self._reading = reading
        # The backlog has other tapes' messages too: when canaries come, less of this one's seems to be recorded.
        self._recorded = max(reading.recorded, self._recorded if reading.total else 0)
        self._readings.append((now, self._recorded))
        while now - self._readings[0][0] > _RATE_SECONDS:
            self._readings.popleft()
        (then, before) = self._readings[0]
        self._rate = max(0.0, (self._recorded - before) / (now - then)) if now > then else 0.0
        self._progress.update(self._task, completed=self._recorded, total=reading.total or None, rate=self._rate)
        self._refresh()
        self._tell_canaries(reading.canaries)

    def show_troubles(self, troubles: Mapping[str, str]) -> None:
        """Show what is wrong with services, by name; readings may not come meanwhile."""
        self._troubles = troubles
        self._refresh()

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._render())
            return
        since = self._clock() - self._plain_time
        changed = self._line() != self._plain_line
        if since >= (_PLAIN_LINE_SECONDS if changed else _UNCHANGED_LINE_SECONDS):
            self._print_line()

    def _tell_canaries(self, canaries: dispatch_service_pb2.GetCanariesResponse | None) -> None:
        """On plain output, a line whenever the canaries' state changes."""
        if self._live is None and canaries is not None and canaries.state != self._canary_state:
            self._canary_state = canaries.state
            if (text := canary_line(canaries)) is not None:
                self._console.print(text, soft_wrap=True)

    def _facts(self) -> list[str]:
        reading = self._reading
        facts = [f"published {reading.published:,}", f"waiting {reading.backlog:,}"]
        if reading.latency_seconds is not None:
            facts.append(f"freshness {reading.latency_seconds * 1_000:,.0f} ms from ingest to store")
        if reading.position:
            facts.append(f"tape at {reading.position}")
        facts.append(f"alerts {self._opened}")
        if reading.dead_letters:
            facts.append(f"dead letters {reading.dead_letters}")
        return facts

    def _line(self) -> str:
        """Everything that the live screen shows, but for alerts and canaries, which have lines of their own."""
        reading = self._reading
        total = f" of {reading.total:,}" if reading.total else ""
        facts = [f"scored {self._recorded:,}{total}, {self._rate:,.0f} quotes/s", *self._facts()]
        facts += [f"{name} {state}" for name, state in self._troubles.items()]
        if reading.stale:
            facts.append(f"silent: {', '.join(reading.stale)}")
        return " · ".join(facts)

    def _print_line(self) -> None:
        self._plain_time = self._clock()
        self._plain_line = self._line()
        self._console.print(self._plain_line, soft_wrap=True, highlight=False)

    def _status(self) -> Text:
        reading = self._reading
        text = Text(" · ".join(self._facts()))
        for name, state in self._troubles.items():
            text.append(f"\n{name} {state}", style="yellow")
        if (canaries := canary_line(reading.canaries)) is not None:
            text.append("\n").append_text(canaries)
        if reading.stale:
            text.append(f"\nsilent: {', '.join(reading.stale)}", style="bold yellow")
        return text

    def _render(self) -> RenderableType:
        alerts = Group(*self._alerts) if self._alerts else Text("no alerts yet", style="dim")
        return Group(
            Panel(Group(self._progress, self._status()), title=Text(self._title), title_align="left"),
            Panel(alerts, title="alerts", title_align="left"),
        )
