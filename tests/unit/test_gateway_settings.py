"""What a gateway can be told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.gateway.settings import GatewaySettings


def test_defaults_need_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRPC_PORT", "STORE_PATH", "LAKE_URI", "LAKE_FLUSH_ROWS", "LAKE_FLUSH_SECONDS", "STORE_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    settings = GatewaySettings()
    assert (settings.grpc_port, settings.store_backend, settings.store_path) == (
        50054,
        "sqlite",
        Path(".tapewatch/store.db"),
    )
    assert (settings.lake, settings.lake_flush_rows, settings.lake_flush_seconds) == (".tapewatch/lake", 10_000, 60.0)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PATH", "/somewhere/store.db")
    monkeypatch.setenv("LAKE_URI", "file:///somewhere/lake")
    monkeypatch.setenv("STORE_SYNCHRONOUS", "full")
    settings = GatewaySettings()
    assert settings.store_path == Path("/somewhere/store.db")
    assert settings.lake == "file:///somewhere/lake"
    assert settings.store_synchronous == "full"


def test_lake_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_URI", "none")
    assert GatewaySettings().lake == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("STORE_BACKEND", "oracle"), ("LAKE_FLUSH_ROWS", "0"), ("LAKE_FLUSH_SECONDS", "0"), ("STORE_SYNCHRONOUS", "off")],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        GatewaySettings()
