"""The configuration table, made from the settings classes."""

from collections import defaultdict
from pathlib import Path

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from services.cli.settings import MeshSettings
from services.dispatch.settings import DispatchSettings
from services.gateway.settings import GatewaySettings
from services.ingest.settings import IngestSettings
from services.runtime.settings import FunctionSettings, Settings
from services.scorer.settings import RunOnceSettings, ScorerSettings

_USERS: tuple[tuple[str, type[Settings]], ...] = (
    ("ingest", IngestSettings),
    ("dispatch", DispatchSettings),
    ("scorer", ScorerSettings),
    ("run-once", RunOnceSettings),
    ("gateway", GatewaySettings),
    ("function", FunctionSettings),
    ("command", MeshSettings),
)


def _words(default: object) -> str:
    value = default.get_secret_value() if isinstance(default, SecretStr) else default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path):
        return f"`{value.as_posix()}`"
    return "" if value in (None, "") else f"`{value}`"


def table() -> str:
    """Every setting once, with its users and its default (several where services differ)."""
    users: dict[str, list[str]] = defaultdict(list)
    defaults: dict[str, dict[str, None]] = defaultdict(dict)
    descriptions: dict[str, str] = {}
    for user, settings in _USERS:
        for name, field in settings.model_fields.items():
            if user == "run-once" and name in ScorerSettings.model_fields:
                continue
            users[name].append(user)
            defaults[name][_words(field.default)] = None
            descriptions.setdefault(name, field.description or "")
    servers = {"ingest", "dispatch", "scorer", "gateway"}
    rows = ["| variable | default | used by | what it does |", "|---|---|---|---|"]
    for name in users:
        by = set(users[name])
        who = "all" if by >= servers | {"command"} else "services" if by >= servers else ", ".join(users[name])
        default = " / ".join(value for value in defaults[name] if value)
        rows.append(f"| `{name.upper()}` | {default} | {who} | {descriptions[name]} |")
    return "\n".join(rows)
