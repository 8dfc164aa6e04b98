"""SQL over the lake, on a folder and on S3."""

import json
import uuid
from pathlib import Path

import boto3
import pytest
from typer.testing import CliRunner

from services.cli.commands import app
from services.cli.lake_query import open_lake
from services.domain.alert import AlertChange, AlertChangeKind, open_alert
from services.domain.score import RecordedQuote
from services.gateway.lake import FileSystemLake
from tests.gateway_quotes import NOW, scored, spike
from tests.servers.process import CREDENTIALS, REGION


@pytest.fixture(params=["path", "versitygw"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A lake of six quotes, one of them a detection, and its alert."""
    uri = str(tmp_path / "lake")
    if request.param == "versitygw":
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", request.getfixturevalue("versitygw").url)
        bucket = f"lake-{uuid.uuid4().hex[:12]}"
        boto3.client("s3", region_name=REGION).create_bucket(
            Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        uri = f"s3://{bucket}/lake"
    lake = FileSystemLake(uri)
    ordinary = [RecordedQuote(scored(i, symbol="MSFT"), NOW, sequence=i) for i in range(1, 6)]
    alert = open_alert(spike(9), NOW)
    lake.write_quotes([*ordinary[:2]])
    lake.write_quotes([*ordinary[2:], RecordedQuote(spike(9), NOW, sequence=6, alert_id=alert.alert_id)])
    lake.write_changes([AlertChange(1, AlertChangeKind.OPENED, alert, NOW, spike(9).quote.quote_id)])
    return uri


def rows(uri: str, sql: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(app, ["lake", "query", sql, "--lake", uri, "--format", "json"])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_quotes_and_changes_are_tables(uri: str) -> None:
    counted = rows(uri, "SELECT symbol, dt, count(*) AS n FROM quotes GROUP BY ALL ORDER BY symbol")
    assert counted == [
        {"symbol": "AAPL", "dt": "2024-03-18", "n": 1},
        {"symbol": "MSFT", "dt": "2024-03-18", "n": 5},
    ]
    joined = "SELECT q.symbol, c.state FROM changes c JOIN quotes q ON q.alert_id = c.alert_id WHERE dt > '2024'"
    assert rows(uri, joined.replace("dt >", "c.dt >")) == [{"symbol": "AAPL", "state": "NEW"}]


def test_rows_as_a_table_and_as_csv(uri: str) -> None:
    sql = "SELECT symbol, sequence FROM quotes WHERE detection"
    result = CliRunner().invoke(app, ["lake", "query", sql, "--lake", uri])
    assert "AAPL" in result.stdout
    assert "1 rows" in result.stdout
    result = CliRunner().invoke(app, ["lake", "query", sql, "--lake", uri, "--format", "csv"])
    assert result.stdout.splitlines() == ['"symbol","sequence"', '"AAPL",6']


def test_wrong_sql_and_a_wrong_place_are_sentences(uri: str) -> None:
    result = CliRunner().invoke(app, ["lake", "query", "SELECT nothing FROM quotes", "--lake", uri])
    assert result.exit_code == 2
    assert "nothing" in result.stderr
    result = CliRunner().invoke(app, ["lake", "query", "SELECT 1", "--lake", "gopher://lake"])
    assert result.exit_code == 2
    assert "LAKE_URI" in result.stderr
    result = CliRunner().invoke(app, ["lake", "query", "SELECT 1", "--lake", f"{uri}-elsewhere"])
    assert (result.exit_code, "-elsewhere does not exist" in result.stderr) == (2, True)
    assert ("LAKE_FLUSH_SECONDS" in result.stderr) == uri.startswith("s3://"), "S3 has no empty folders"
    result = CliRunner().invoke(app, ["lake", "query", "SELECT symbol::INT FROM quotes", "--lake", uri])
    assert (result.exit_code, "AAPL" in result.stderr or "MSFT" in result.stderr) == (1, True)


def test_the_query_reaches_nothing_but_the_lake(uri: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    result = CliRunner().invoke(app, ["lake", "query", f"SELECT * FROM read_csv('{secret}')", "--lake", uri])
    assert result.exit_code == 2
    assert "disabled" in result.stderr


def test_a_lake_without_changes_has_the_table(tmp_path: Path) -> None:
    FileSystemLake(str(tmp_path)).write_quotes([RecordedQuote(scored(1), NOW, sequence=1)])
    (tmp_path / "quotes" / "dt=2024-03-18" / "part-1.parquet.0123.writing").write_bytes(b"half a part")
    connection = open_lake(str(tmp_path))
    assert connection.sql("SELECT count(*) FROM changes").fetchall() == [(0,)]
    assert connection.sql("SELECT count(*) FROM quotes").fetchall() == [(1,)]
    connection.close()
