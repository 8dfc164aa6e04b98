"""Secrets from the environment and from Secrets Manager, into files that only their owner reads."""

import asyncio
import json
import logging
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from services.domain.errors import NotConfiguredError
from services.domain.threshold import PER_DAY, ThresholdCalibration
from services.runtime.secret_files import REFRESH_SECONDS, LambdaSecrets, refresh_secret_files, write_secret_files

PEMS = {"TLS_CERT_PEM": "a certificate", "TLS_KEY_PEM": "a key", "TLS_CA_PEM": "an authority"}


def paths(folder: Path) -> dict[str, str]:
    return {name: str(folder / f"{name}.pem") for name in ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_FILE")}


def test_each_pem_goes_to_its_file_and_only_the_owner_reads_it(tmp_path: Path) -> None:
    written = write_secret_files(paths(tmp_path) | PEMS)
    assert [path.read_text() for path in written] == ["a certificate", "a key", "an authority"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in written)


def test_a_threshold_that_the_deployment_brings_is_written_under_its_versions_name(tmp_path: Path) -> None:
    made = datetime(2026, 11, 1, tzinfo=UTC)
    text = ThresholdCalibration("tw-1", 0.4, 0.5, 2.0, PER_DAY, 1.9, "lake", "live", 1_000, 9, made).to_json()
    named = {"THRESHOLD_DIR": str(tmp_path)}
    assert write_secret_files(named | {"THRESHOLD_JSON": text}) == [tmp_path / "threshold-tw-1.json"]
    assert write_secret_files(named) == []
    assert (tmp_path / "threshold-tw-1.json").read_text() == text
    with pytest.raises(NotConfiguredError, match=r"THRESHOLD_JSON"):
        write_secret_files(named | {"THRESHOLD_JSON": "{}"})


def test_a_path_without_its_pem_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotConfiguredError, match="TLS_KEY_PEM"):
        write_secret_files(paths(tmp_path) | {"TLS_CERT_PEM": "a certificate"})


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotConfiguredError, match="TLS_CERT_FILE"):
        write_secret_files(paths(tmp_path / "nowhere") | PEMS)


def test_where_one_cannot_be_written_all_stay_what_they_were(tmp_path: Path) -> None:
    write_secret_files(paths(tmp_path) | PEMS)
    (tmp_path / "TLS_CA_FILE.pem.new").mkdir()
    with pytest.raises(NotConfiguredError, match="TLS_CA_FILE"):
        write_secret_files(paths(tmp_path) | {name: f"another {pem}" for name, pem in PEMS.items()})
    assert [Path(path).read_text() for path in paths(tmp_path).values()] == list(PEMS.values())


def test_nothing_asked_is_nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TLS_SECRET_ARN", "TOKEN_SECRET_ARN", "AUTH_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    assert write_secret_files({}) == []
    LambdaSecrets()
    assert "AUTH_TOKEN" not in os.environ


def test_a_lambda_fetches_its_certificates_and_token_and_goes_on_asking_for_certificates(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1"
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    for variable in ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_FILE", "AUTH_TOKEN"):
        monkeypatch.setenv(variable, "")
    with mock_aws():
        secrets = boto3.client("secretsmanager")
        fields = {"certificate": "c", "key": "k", "authority": "a"}
        tls = secrets.create_secret(Name="tls", SecretString=json.dumps(fields))["ARN"]
        token = secrets.create_secret(Name="token", SecretString="t0ken")["ARN"]
        monkeypatch.setenv("TLS_SECRET_ARN", tls)
        monkeypatch.setenv("TOKEN_SECRET_ARN", token)
        now = [0.0]
        kept = LambdaSecrets(lambda: now[0])
        assert os.environ["AUTH_TOKEN"] == "t0ken"
        files = {name: os.environ[name] for name in paths(Path())}
        read = {name: Path(os.environ[name]).read_text() for name in ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_FILE")}
        assert read == {"TLS_CERT_FILE": "c", "TLS_KEY_FILE": "k", "TLS_CA_FILE": "a"}
        secrets.delete_secret(SecretId=token, ForceDeleteWithoutRecovery=True)
        with pytest.raises(NotConfiguredError, match="TOKEN_SECRET_ARN"):
            LambdaSecrets()
        renewed = json.dumps(fields | {"certificate": "c2", "key": "k2"})
        secrets.put_secret_value(SecretId=tls, SecretString=renewed)

        def certificate() -> str:
            asyncio.run(kept.refresh())
            return Path(files["TLS_CERT_FILE"]).read_text() + Path(files["TLS_KEY_FILE"]).read_text()

        assert certificate() == "ck", "not at each call"
        now[0] += REFRESH_SECONDS
        assert certificate() == "c2k2"
        secrets.delete_secret(SecretId=tls, ForceDeleteWithoutRecovery=True)
        now[0] += REFRESH_SECONDS
        with caplog.at_level(logging.WARNING):
            assert certificate() == "c2k2", "what cannot be asked for stays what it was"
        assert "TLS_SECRET_ARN" in caplog.text


@pytest.mark.parametrize(
    "value",
    ["random text", "{}", "[]", "null", '{"certificate": "c", "key": "", "authority": "a"}'],
)
def test_a_lambda_whose_tls_secret_is_not_filled_says_so(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("TOKEN_SECRET_ARN", raising=False)
    with mock_aws():
        arn = boto3.client("secretsmanager").create_secret(Name="tls", SecretString=value)["ARN"]
        monkeypatch.setenv("TLS_SECRET_ARN", arn)
        with pytest.raises(NotConfiguredError, match=r"certificate, key, authority: fill it .*deploy\.certificates"):
            LambdaSecrets()


def test_a_token_that_is_no_text_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("TLS_SECRET_ARN", raising=False)
    with mock_aws():
        arn = boto3.client("secretsmanager").create_secret(Name="token", SecretBinary=b"t0ken")["ARN"]
        monkeypatch.setenv("TOKEN_SECRET_ARN", arn)
        with pytest.raises(NotConfiguredError, match="holds no text: fill it, or set TOKEN_SECRET_ARN"):
            LambdaSecrets()


def test_only_what_changed_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    files = paths(tmp_path)
    with mock_aws():
        secrets = boto3.client("secretsmanager")
        fields = {"certificate": "c", "key": "k", "authority": "a"}
        arn = secrets.create_secret(Name="tls", SecretString=json.dumps(fields))["ARN"]
        assert len(refresh_secret_files(arn, files)) == 3
        assert refresh_secret_files(arn, files) == []
        secrets.put_secret_value(SecretId=arn, SecretString=json.dumps(fields | {"authority": "ab"}))
        assert refresh_secret_files(arn, files) == [tmp_path / "TLS_CA_FILE.pem"]
        secrets.put_secret_value(SecretId=arn, SecretString='{"certificate": "c"}')
        with pytest.raises(NotConfiguredError, match="has not all of certificate, key, authority"):
            refresh_secret_files(arn, files)
