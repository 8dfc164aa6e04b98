"""What every place for batches must do: a folder, and S3 on two servers."""

import os
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.pipeline.batch_files import BatchFiles, FolderFiles, open_batch_files, read_manifest
from services.pipeline.task_report import TaskReport, read_report, write_report
from tests.servers.process import CREDENTIALS, REGION


@pytest.fixture(params=["folder", "versitygw", "ministack"])
def location(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "lake" / "batches")
        return
    server = request.getfixturevalue(request.param)
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL_S3": server.url}).items():
        monkeypatch.setenv(name, value)
    bucket = f"batches-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", region_name=REGION).create_bucket(
        Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    yield f"s3://{bucket}/lake/batches"


@pytest.fixture
def files(location: str) -> BatchFiles:
    return open_batch_files(location, REGION)


def test_a_manifest_is_read_by_its_uri(files: BatchFiles, location: str) -> None:
    uri = files.put("d1.json", b"[]")
    assert uri == files.uri("d1.json") == f"{location}/d1.json"
    assert files.get("d1.json") == b"[]"
    assert read_manifest(uri, REGION) == b"[]"
    assert open_batch_files(location, REGION).get("d1.json") == b"[]"


def test_a_file_is_replaced_as_a_whole(files: BatchFiles) -> None:
    files.put("d1.json", b"x" * 100_000)
    files.put("d1.json", b"short")
    assert files.get("d1.json") == b"short"


def test_what_is_not_there_is_none(files: BatchFiles) -> None:
    assert files.get("nothing.json") is None
    with pytest.raises(NotConfiguredError, match="BATCH_MANIFEST_URI"):
        read_manifest(files.uri("nothing.json"), REGION)


def test_a_report_comes_back(files: BatchFiles) -> None:
    report = TaskReport(3, 1, {2: "high: is below low"}, ("gateway: is away",))
    assert read_report(files, "b.1") is None
    write_report(files, "b.1", report)
    assert read_report(files, "b.1") == report
    files.put("reports/b.2.json", b"{}")
    with pytest.raises(DependencyUnavailableError, match=r"b\.2"):
        read_report(files, "b.2")


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DependencyUnavailableError, match="cannot write"):
        FolderFiles(tmp_path / "file" / "batches").put("d1.json", b"")


def test_old_files_are_removed_but_for_those_that_are_needed(tmp_path: Path) -> None:
    files = FolderFiles(tmp_path)
    for name in ("old.json", "needed.json", "reports/old.1.json", "new.json"):
        files.put(name, b"[]")
        if name != "new.json":
            os.utime(tmp_path / name, (0, 0))
    files.remove_older(timedelta(days=1), {"needed.json"})
    assert [files.get(name) for name in ("old.json", "reports/old.1.json")] == [None, None]
    assert [files.get(name) for name in ("needed.json", "new.json")] == [b"[]", b"[]"]


def test_a_bucket_that_is_not_there_is_named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    server = request.getfixturevalue("versitygw")
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL_S3": server.url}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NotConfiguredError, match=r"no bucket at s3://nothing/lake: set BATCHES_URI"):
        open_batch_files("s3://nothing/lake", REGION).put("d1.json", b"")


@pytest.mark.parametrize("wrong", ["s3:///prefix", "gs://bucket/prefix"])
def test_a_place_of_another_kind_is_refused(wrong: str) -> None:
    with pytest.raises(NotConfiguredError, match="BATCHES_URI"):
        open_batch_files(wrong)
