"""What can be deployed: `settings.toml` as a checked model. A wrong value ends in one sentence, before any stack."""

import re
import tomllib
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from zoneinfo import ZoneInfo

from annotated_types import Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.dispatch.canary_watch import SHARE_OF_INTERVAL
from services.dispatch.settings import DispatchSettings
from services.domain.errors import NotConfiguredError
from services.domain.model import METADATA_FILE
from services.domain.quote import name_violations
from services.domain.threshold import ThresholdCalibration
from services.ingest.market_calendar import ExchangeCalendar
from services.ingest.universe import symbols_of
from services.pipeline.canary_play import TASKS_DEADLINE_SECONDS

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_FILE = REPOSITORY / "deploy" / "settings.toml"
_MODELS = REPOSITORY / "services" / "scorer" / "models"
VISIBILITY_FACTOR = 6
"""Visibility over the Lambda's timeout: AWS's own advice, so that no batch comes again while it is being worked on."""

_FIFO: Final = ".fifo"
_DEAD: Final = "_dead"
_QUEUE_STEM: Final = re.compile(r"[A-Za-z0-9_-]+")
_QUEUE_CHARACTERS: Final = 80
"""SQS's limit, the suffix included."""

_DAY = "(SUN|MON|TUE|WED|THU|FRI|SAT)"
_DAYS = re.compile(rf"{_DAY}(-{_DAY})?(,{_DAY}(-{_DAY})?)*")
_NETWORK_PREFIXES: Final = range(16, 19)
"""A VPC takes /16 at most; three zones of a /20 each, and public subnets beside them, need a /18."""

_IN_INFREQUENT_ACCESS_DAYS: Final = 30
"""What S3 asks for before an object goes on to Glacier."""

_MOST_TASKS = next(
    bound.le for bound in DispatchSettings.model_fields["max_concurrent_tasks"].metadata if isinstance(bound, Le)
)
"""Above it a dispatcher refuses to start."""

_CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"
_FARGATE_MEMORY_MIB = {
    256: (512, 1024, 2048),
    512: tuple(range(1024, 4097, 1024)),
    1024: tuple(range(2048, 8193, 1024)),
    2048: tuple(range(4096, 16_385, 1024)),
    4096: tuple(range(8192, 30_721, 1024)),
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _network(text: str) -> str:
    try:
        network = IPv4Network(text)
    except ValueError as error:
        raise ValueError(f"{error}: must be a network like 10.20.0.0/16") from error
    if network.prefixlen not in _NETWORK_PREFIXES:
        raise ValueError(f"{text} must be from /{_NETWORK_PREFIXES[0]} to /{_NETWORK_PREFIXES[-1]}")
    return text


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{name!r} is no time zone of the IANA database, like America/New_York") from error
    return name


def _days(text: str) -> str:
    if not _DAYS.fullmatch(text):
        raise ValueError(f"{text!r} must be days like MON-FRI or MON,WED,FRI")
    return text


def _queue_name(text: str) -> str:
    if not _QUEUE_STEM.fullmatch(text.removesuffix(_FIFO)) or not text.endswith(_FIFO):
        raise ValueError(f"{text!r} must be letters, digits, _ and -, and end in {_FIFO}")
    if len(text) > (most := _QUEUE_CHARACTERS - len(_DEAD)):
        raise ValueError(
            f"{text!r} has {len(text)} characters; {most} are allowed: SQS takes {_QUEUE_CHARACTERS}, and the dead "
            f"letters' queue is called the same with {_DEAD}"
        )
    return text


def _symbols(text: str) -> str:
    symbols = symbols_of(text)
    wrong = [each.description for symbol in symbols for each in name_violations(symbol=symbol)]
    if wrong or not symbols:
        raise ValueError(f"{text!r} must be default, large_caps, or tickers with commas: {'; '.join(wrong) or 'none'}")
    return text


class Network(_Section):
    """Addresses, ways out, and names."""

    cidr: Annotated[str, AfterValidator(_network)] = "10.20.0.0/16"
    nat_gateways: int = Field(0, ge=0, le=3)
    namespace: str = Field("tapewatch.internal", pattern=r"^[a-z0-9.-]+$")


class MarketHours(_Section):
    """When the market is open, by the clock of its own time zone, and by its calendar, where one is named."""

    calendar: str = ""
    timezone: Annotated[str, AfterValidator(_timezone)] = "America/New_York"
    days: Annotated[str, AfterValidator(_days)] = "MON-FRI"
    opens: str = Field("09:15", pattern=_CLOCK)
    closes: str = Field("16:15", pattern=_CLOCK)
    pages_from: str = Field("09:45", pattern=_CLOCK)
    pages_until: str = Field("16:00", pattern=_CLOCK)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.opens >= self.closes:
            raise ValueError(f"opens {self.opens} is not before closes {self.closes}, on the same day")
        if not self.opens <= self.pages_from < self.pages_until <= self.closes:
            raise ValueError("pages_from and pages_until must be in this order, and not before opens or after closes")
        return self

    @model_validator(mode="after")
    def _of_one_market(self) -> Self:
        if not self.calendar:
            return self
        try:
            zone = ExchangeCalendar(self.calendar).timezone
        except NotConfiguredError as error:
            raise ValueError(error.message.replace("MARKET_CALENDAR", "calendar")) from error
        if zone != self.timezone:
            raise ValueError(f"calendar {self.calendar} goes by {zone}: set timezone to it, or calendar to your market")
        return self

    def cron(self, clock: str, later_minutes: int = 0) -> str:
        """A clock time on the market's days, as EventBridge Scheduler and Application Auto Scaling take it.

        >>> MarketHours().cron("09:15")
        'cron(15 9 ? * MON-FRI *)'
        >>> MarketHours().cron("09:59", later_minutes=2)
        'cron(1 10 ? * MON-FRI *)'
        """
        hour, minute = (int(part) for part in clock.split(":"))
        hours, minute = divmod(minute + later_minutes, 60)
        return f"cron({minute} {hour + hours} ? * {self.days} *)"


class Queue(_Section):
    """The quote queue."""

    name: Annotated[str, AfterValidator(_queue_name)] = "market_queue.fifo"
    max_receive_count: int = Field(1000, ge=1, le=1000)
    retention_days: int = Field(14, ge=1, le=14)
    oldest_message_alarm_seconds: int = Field(300, ge=60)

    @property
    def dead_letters_name(self) -> str:
        """The name of the queue beside it.

        >>> Queue().dead_letters_name
        'market_queue_dead.fifo'
        """
        return self.name.removesuffix(_FIFO) + _DEAD + _FIFO


class Dispatch(_Section):
    """The Lambda and its event source mapping."""

    mode: Literal["warm", "task", "auto"] = "warm"
    memory_mib: int = Field(512, ge=128, le=10_240)
    timeout_seconds: int = Field(30, ge=5, le=900)
    batch_size: int = Field(10, ge=1, le=10)
    maximum_concurrency: int = Field(10, ge=2, le=1000)
    canary_interval_seconds: int = Field(900, ge=0)
    max_concurrent_tasks: int = Field(10, ge=1, le=_MOST_TASKS)
    oldest_batch_alarm_seconds: int = Field(1800, ge=60)

    @property
    def visibility_seconds(self) -> int:
        """How long a delivered message stays invisible."""
        return self.timeout_seconds * VISIBILITY_FACTOR


class Task(_Section):
    """The size of a Fargate task."""

    cpu: int = 256
    memory_mib: int = 512

    @model_validator(mode="after")
    def _offered(self) -> Self:
        offered = _FARGATE_MEMORY_MIB.get(self.cpu)
        if offered is None or self.memory_mib not in offered:
            raise ValueError(f"Fargate has no task of {self.cpu} CPU units and {self.memory_mib} MiB")
        return self


class Ingest(Task):
    """The feed."""

    source: Literal["none", "yahoo"] = "none"
    symbols: Annotated[str, AfterValidator(_symbols)] = "default"
    poll_interval_seconds: int = Field(60, ge=1)


class Model(_Section):
    """Which model the scorers serve, and at which threshold."""

    version: str = ""
    threshold: str = ""

    @property
    def threshold_json(self) -> str:
        """What is in the calibrated threshold's file; empty without one."""
        return (REPOSITORY / self.threshold).read_text(encoding="utf-8") if self.threshold else ""

    @model_validator(mode="after")
    def _there(self) -> Self:
        there = sorted(path.parent.name for path in _MODELS.glob(f"*/{METADATA_FILE}"))
        if self.version and self.version not in there:
            raise ValueError(
                f"version {self.version!r} is not in services/scorer/models, where there is {', '.join(there)}"
            )
        if not self.threshold:
            return self
        try:
            made_for = ThresholdCalibration.from_json(self.threshold_json).model_version
        except OSError as error:
            raise ValueError(f"threshold {self.threshold} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"threshold {self.threshold} {error}") from error
        if made_for != self.version:
            raise ValueError(f"threshold {self.threshold} is for version {made_for!r}: set version to it")
        return self


class Scorer(Task):
    """The warm pool, and the size of a one-shot task."""

    minimum: int = Field(1, ge=0)
    off_hours_minimum: int = Field(1, ge=0)
    maximum: int = Field(8, ge=1)
    backlog_per_task: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if max(self.minimum, self.off_hours_minimum) > self.maximum:
            raise ValueError("scorer.maximum is below a minimum")
        return self


class Gateway(Task):
    """The gateway's replicas."""

    count: int = Field(2, ge=1)
    retention_days: int = Field(0, ge=0)
    lake_flush_seconds: int = Field(60, ge=1)


class Lake(_Section):
    """The Parquet lake."""

    infrequent_access_days: int = Field(90, ge=30)
    glacier_days: int = Field(365, ge=60)
    query_limit_gib: int = Field(50, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.glacier_days < self.infrequent_access_days + _IN_INFREQUENT_ACCESS_DAYS:
            raise ValueError(
                f"glacier_days {self.glacier_days} must be {_IN_INFREQUENT_ACCESS_DAYS} days or more after "
                f"infrequent_access_days {self.infrequent_access_days}"
            )
        return self


class Audit(_Section):
    """The copy that nobody can change."""

    lock_mode: Literal["GOVERNANCE", "COMPLIANCE"] = "GOVERNANCE"
    retention_years: int = Field(7, ge=1)
    export_days: Annotated[str, AfterValidator(_days)] = "SUN"


class Serving(_Section):
    """AppSync Events and DAX."""

    events: bool = False
    oidc_issuer: str = ""
    dax: bool = False
    dax_node_type: str = Field("dax.t3.small", pattern=r"^dax\.[rt]\d[a-z]*\.(small|medium|\d*x?large)$")
    dax_nodes: int = Field(2, ge=1, le=10)


class Monitoring(_Section):
    """Who is told of what."""

    email: str = Field("", pattern=r"^([^@\s]+@[^@\s]+\.[^@\s.]+)?$")
    monthly_budget_usd: int = Field(250, ge=1)


class DeploySettings(_Section):
    """One deployment."""

    name: str = Field("tapewatch", pattern=r"^[a-z][a-z0-9-]{0,20}$")
    region: str = Field("eu-central-1", pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    availability_zones: tuple[str, ...] = Field(("eu-central-1a", "eu-central-1b"), min_length=2, max_length=3)
    architecture: Literal["arm64", "x86_64"] = "arm64"
    keep_data: bool = True
    log_retention_days: Literal[1, 3, 5, 7, 14, 30, 60, 90, 180, 365] = 30
    network: Network = Network()
    market_hours: MarketHours = MarketHours()
    queue: Queue = Queue()
    dispatch: Dispatch = Dispatch()
    ingest: Ingest = Ingest()
    model: Model = Model()
    scorer: Scorer = Scorer()
    gateway: Gateway = Gateway(cpu=512, memory_mib=1024)
    lake: Lake = Lake()
    audit: Audit = Audit()
    serving: Serving = Serving()
    monitoring: Monitoring = Monitoring()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if strangers := [zone for zone in self.availability_zones if not zone.startswith(self.region)]:
            raise ValueError(f"{', '.join(strangers)} is not in {self.region}")
        if self.ingest.source == "yahoo" and not self.network.nat_gateways:
            raise ValueError("ingest.source yahoo needs the internet: set network.nat_gateways to 1 or more")
        least = TASKS_DEADLINE_SECONDS / SHARE_OF_INTERVAL
        if self.dispatch.mode == "task" and 0 < self.dispatch.canary_interval_seconds < least:
            raise ValueError(
                "dispatch.mode task takes a minute to start each task: set dispatch.canary_interval_seconds to "
                f"{least:.0f} or more, or to 0 for none"
            )
        if self.serving.events and not self.network.nat_gateways:
            raise ValueError("serving.events needs the internet: set network.nat_gateways to 1 or more")
        return self


def read(path: Path = DEFAULT_FILE, **changes: Any) -> DeploySettings:
    """The settings in a file; `changes` are sections or values that replace the file's.

    Raises: SystemExit with a sentence for each wrong value.
    """
    try:
        given = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error
    for name, change in changes.items():
        given[name] = given.get(name, {}) | change if isinstance(change, dict) else change
    try:
        return DeploySettings.model_validate(given)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise SystemExit(f"{path}: " + "; ".join(problems)) from error
