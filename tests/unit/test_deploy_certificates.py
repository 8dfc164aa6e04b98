"""`python -m deploy.certificates`: what it cannot do ends in a sentence."""

import sys
from pathlib import Path

import pytest

from deploy.certificates import main
from services.runtime.exit_codes import EXIT_FAILED, EXIT_MISCONFIGURED


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials anywhere: neither in the environment, nor in a file, nor from a machine's metadata."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize("arguments", [(), ("--renew",)])
def test_without_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["certificates", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_MISCONFIGURED
    told = capsys.readouterr().err
    assert "AWS credentials are missing for the secret tapewatch/tls/<service> in eu-central-1" in told
    assert len(told.splitlines()) == 1


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["certificates"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_FAILED
    told = capsys.readouterr().err
    assert "is eu-central-1 a region of AWS?" in told
    assert len(told.splitlines()) == 1
