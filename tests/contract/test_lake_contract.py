"""What every lake adapter must do, whatever file system is behind it."""

import io
import os
import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from services.archive import lake as layout
from services.archive import location
from services.domain.alert import AlertChange, AlertChangeKind, AlertState, open_alert, triage
from services.domain.errors import DependencyUnavailableError, InvalidRequestError, NotConfiguredError
from services.domain.score import RecordedQuote
from services.domain.typology import Typology
from services.gateway.lake import CHANGES_SCHEMA, FileSystemLake
from tests.gateway_quotes import NOW, scored, spike
from tests.servers.process import CREDENTIALS, REGION, Server

TOMORROW = NOW + timedelta(days=1)


class Opened:
    """A lake, and a look at its files from outside."""

    def __init__(self, uri: str) -> None:
        self.lake = FileSystemLake(uri)
        self._filesystem, self._root = self.lake._filesystem, self.lake._root

    def files(self) -> list[str]:
        infos = self._filesystem.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        found = [info.path for info in infos if info.type == fs.FileType.File]
        return sorted(path.removeprefix(self._root).lstrip("/") for path in found)

    def content(self, path: str) -> bytes:
        with self._filesystem.open_input_file(f"{self._root}/{path}") as file:
            return bytes(file.read())

    def rows(self, path: str) -> pa.Table:
        return pq.ParquetFile(io.BytesIO(self.content(path))).read()


@pytest.fixture(params=["path", "file uri", "object store", "versitygw", "ministack"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    if request.param in ("versitygw", "ministack"):
        return Opened(bucket(request.getfixturevalue(request.param), monkeypatch))
    uris = {
        "path": str(tmp_path / "lake"),
        "file uri": (tmp_path / "lake").as_uri(),
        "object store": "mock:///lake",  # pyarrow's own in-memory file system, which cannot be renamed on
    }
    return Opened(uris[request.param])


def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a lake in a new bucket."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    name = f"lake-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3", region_name=REGION)
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    client.close()
    return f"s3://{name}/tapewatch/lake"


def quotes(first: int = 1, count: int = 4) -> list[RecordedQuote]:
    symbols = ("MSFT", "AAPL")
    return [RecordedQuote(scored(i, symbol=symbols[i % 2]), NOW, sequence=i) for i in range(first, first + count)]


def changes() -> list[AlertChange]:
    new = open_alert(spike(0), NOW)
    seen = triage(new, NOW, comment="", state=AlertState.ACKNOWLEDGED, assignee="ann")
    return [
        AlertChange(1, AlertChangeKind.OPENED, new, NOW, spike(0).quote.quote_id),
        AlertChange(2, AlertChangeKind.TRIAGED, seen, NOW),
    ]


def test_part_is_named_by_day_and_sequences_and_sorted_by_symbol(opened: Opened) -> None:
    opened.lake.write_quotes(quotes())
    (path,) = opened.files()
    assert path == "quotes/dt=2024-03-18/part-000000000001-000000000004.parquet"
    table = opened.rows(path)
    assert table.schema.equals(layout.SCHEMA)
    assert table["symbol"].to_pylist() == ["AAPL", "AAPL", "MSFT", "MSFT"]
    assert table["sequence"].to_pylist() == [1, 3, 2, 4]


def test_the_check_writes_and_leaves_nothing_that_readers_see(opened: Opened) -> None:
    opened.lake.check()
    opened.lake.check()
    opened.lake.write_quotes(quotes())
    assert [path for path in opened.files() if path.endswith(".parquet")] == [
        "quotes/dt=2024-03-18/part-000000000001-000000000004.parquet"
    ]


def test_days_of_recording_have_parts_of_their_own(opened: Opened) -> None:
    first, second, third, fourth = quotes()
    opened.lake.write_quotes([first, second, replace(third, record_time=TOMORROW), replace(fourth, record_time=NOW)])
    assert opened.files() == [
        "quotes/dt=2024-03-18/part-000000000001-000000000004.parquet",
        "quotes/dt=2024-03-19/part-000000000003-000000000003.parquet",
    ]


def test_writing_again_changes_nothing(opened: Opened) -> None:
    opened.lake.write_quotes(quotes())
    opened.lake.write_changes(changes())
    before = {path: opened.content(path) for path in opened.files()}
    assert len(before) == 2
    opened.lake.write_quotes(quotes())
    opened.lake.write_changes(changes())
    assert {path: opened.content(path) for path in opened.files()} == before


def test_repetitions_do_not_change_a_part(opened: Opened) -> None:
    opened.lake.write_quotes(quotes())
    before = {path: opened.content(path) for path in opened.files()}
    opened.lake.write_quotes([replace(q, record_count=5, mismatch_count=2) for q in quotes()])
    assert {path: opened.content(path) for path in opened.files()} == before


def test_detection_carries_its_alert_and_reasons(opened: Opened) -> None:
    opened.lake.write_quotes([RecordedQuote(spike(0), NOW, sequence=1, alert_id="al_1")])
    (row,) = opened.rows(opened.files()[0]).to_pylist()
    assert (row["alert_id"], row["typology"], row["detection"]) == ("al_1", Typology.PRICE_SPIKE.name, True)
    assert row["reasons"][0]["text"] == "price change 31 %, usually -2 % to 2 %"


def test_changes(opened: Opened) -> None:
    opened.lake.write_changes(changes())
    (path,) = opened.files()
    assert path == "changes/dt=2024-03-18/part-000000000001-000000000002.parquet"
    table = opened.rows(path)
    assert table.schema.equals(CHANGES_SCHEMA)
    first, second = table.to_pylist()
    assert (first["kind"], first["state"], first["assignee"], first["detection_count"]) == ("OPENED", "NEW", "", 1)
    assert (second["kind"], second["state"], second["assignee"]) == ("TRIAGED", "ACKNOWLEDGED", "ann")
    assert (first["quote_id"], second["quote_id"]) == (spike(0).quote.quote_id, "")
    assert first["alert_id"] == second["alert_id"] == open_alert(spike(0), NOW).alert_id


@pytest.mark.parametrize("place", ["path", "versitygw", "ministack"])
def test_replay_reads_what_was_written(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path) if place == "path" else bucket(request.getfixturevalue(place), monkeypatch)
    lake = FileSystemLake(uri)
    lake.write_quotes(quotes(1, 4))
    lake.write_changes(changes())
    lake.write_quotes(quotes(5, 3))
    expected = sorted((r.scored.quote for r in quotes(1, 7)), key=lambda q: (q.event_time, q.symbol))
    assert layout.read_quotes(uri) == expected
    assert layout.read_quotes(f"{uri}/quotes") == expected
    count, replayed = location.quotes(uri, tape="again", symbols=["MSFT"])
    assert count == len(list(replayed)) == 3


def test_a_bucket_that_is_missing_is_named(versitygw: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = bucket(versitygw, monkeypatch).replace("lake-", "nothing-")
    with pytest.raises(DependencyUnavailableError, match=r"no bucket of s3://nothing-.* in eu-central-1"):
        FileSystemLake(uri).write_quotes(quotes())
    with pytest.raises(NotConfiguredError, match=r"no bucket of s3://nothing-.*set LAKE_URI"):
        FileSystemLake(uri).check()
    with pytest.raises(InvalidRequestError, match="s3://nothing-"):
        layout.read_quotes(uri)


def test_a_wrong_secret_is_refused_with_the_permissions(versitygw: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = bucket(versitygw, monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DependencyUnavailableError, match="s3:PutObject"):
        FileSystemLake(uri).write_quotes(quotes())
    with pytest.raises(NotConfiguredError, match=f"cannot be written.* {uri}: it needs credentials with s3:PutObject"):
        FileSystemLake(uri).check()
    with pytest.raises(InvalidRequestError, match="s3:GetObject"):
        layout.read_quotes(uri)


def test_s3_without_a_region_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "nothing"))
    with pytest.raises(NotConfiguredError, match="set AWS_REGION, or AWS_PROFILE"):
        FileSystemLake("s3://somewhere/lake")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(NotConfiguredError, match=r"nobody.*set AWS_PROFILE to one of yours"):
        FileSystemLake("s3://somewhere/lake")


def test_a_profile_brings_region_and_credentials(
    versitygw: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = bucket(versitygw, monkeypatch)
    keys = "".join(f"{name.lower()} = {CREDENTIALS[name]}\n" for name in CREDENTIALS if "KEY" in name)
    (tmp_path / "config").write_text(f"[profile analyst]\nregion = {REGION}\n")
    (tmp_path / "credentials").write_text(f"[analyst]\n{keys}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_PROFILE": "analyst",
        "AWS_ENDPOINT_URL_S3": versitygw.url,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    # A process of its own: AWS's SDK in Arrow reads the files once.
    code = (
        "import sys; from services.gateway.lake import FileSystemLake; "
        "from tests.contract.test_lake_contract import quotes; FileSystemLake(sys.argv[1]).write_quotes(quotes())"
    )
    done = subprocess.run([sys.executable, "-c", code, uri], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_a_killed_writer_left_is_not_read_and_goes(tmp_path: Path) -> None:
    lake = FileSystemLake(str(tmp_path))
    folder = tmp_path / "quotes" / "dt=2024-03-18"
    folder.mkdir(parents=True)
    left = folder / "part-000000000001-000000000004.parquet.0123.writing"
    left.write_bytes(b"PAR1 half a part")
    lake.write_quotes(quotes(5, 2))
    assert len(layout.read_quotes(str(tmp_path))) == 2
    assert left.exists(), "it may be another writer's, at work on another part"
    lake.write_quotes(quotes(1, 4))
    assert not left.exists()
    assert len(layout.read_quotes(str(tmp_path))) == 6


def test_readers_see_whole_parts_while_they_are_replaced(tmp_path: Path) -> None:
    lake = FileSystemLake(str(tmp_path))
    part = quotes(1, 300)
    lake.write_quotes(part)
    done = threading.Event()
    writes = reads = 0

    def rewrite() -> None:
        nonlocal writes
        while not done.is_set():
            lake.write_quotes(part)
            writes += 1

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        while writes < 40 or reads <= 5:
            assert layout.read_table(str(tmp_path)).num_rows == 300
            assert writer.is_alive()
            reads += 1
    finally:
        done.set()
        writer.join()


def test_place_that_cannot_be_written_may_pass(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DependencyUnavailableError, match="lake"):
        FileSystemLake(str(tmp_path / "file")).write_quotes(quotes())


@pytest.mark.parametrize("uri", ["gopher://lake", "://", "s3:///lake"])
def test_uri_that_nobody_knows_is_refused(uri: str) -> None:
    with pytest.raises(NotConfiguredError, match="LAKE_URI"):
        FileSystemLake(uri)
