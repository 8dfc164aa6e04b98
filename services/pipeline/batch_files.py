"""Where batches lie that tasks score: the manifests that the dispatcher writes, and the reports that tasks write.

A manifest is named by the hash of its bytes, so writing it twice, or by two dispatchers, is harmless. Nothing here
imports numpy or pyarrow: the dispatch Lambda carries it.
"""

import hashlib
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import Field

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.runtime.aws import AwsResource, open_client
from services.runtime.durable_file import replacing
from services.runtime.settings import AwsSettings

_S3 = "s3://"
_ANSWER_SECONDS = 20.0
_PERMISSIONS = ("s3:GetObject", "s3:PutObject", "s3:ListBucket")
"""Without ListBucket S3 answers AccessDenied instead of NoSuchKey for an object that is not there."""

_MISSING = {"NoSuchKey", "404"}


class BatchSettings(AwsSettings):
    """Where the batches of task mode lie; the dispatcher and its tasks need the same place."""

    batches_uri: str = Field(
        ".tapewatch/lake/batches",
        description="folder or `s3://bucket/prefix` of the manifests and reports of one-shot tasks",
    )


class BatchFiles(Protocol):
    """Small files by name. Every method raises DependencyUnavailableError when the place is away."""

    def uri(self, name: str) -> str:
        """Where a file of that name lies."""
        ...

    def put(self, name: str, content: bytes) -> str:
        """Write a file, durable on return; one that is there is replaced as a whole. Returns its URI."""
        ...

    def get(self, name: str) -> bytes | None:
        """The file, or None when there is none."""
        ...


class FolderFiles:
    """`BatchFiles` in a folder, made when missing. A file is there whole or not at all, also after a power loss."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def uri(self, name: str) -> str:
        """The file's path."""
        return str(self._folder / name)

    def put(self, name: str, content: bytes) -> str:
        """Write the file."""
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(content)
        except OSError as error:
            raise DependencyUnavailableError("batches", f"cannot write {path}: {error.strerror}") from error
        return str(path)

    def get(self, name: str) -> bytes | None:
        """Read the file."""
        path = self._folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DependencyUnavailableError("batches", f"cannot read {path}: {error.strerror}") from error

    def remove_older(self, age: timedelta, keep: Collection[str]) -> None:
        """Remove files that are older than `age`, but for those named in `keep`."""
        oldest = time.time() - age.total_seconds()
        for path in self._folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and path.stat().st_mtime < oldest and path.name not in keep:
                    path.unlink()


class S3Files:
    """`BatchFiles` under a prefix of a bucket. `client` is a boto3 S3 client, safe to share between threads."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._resource = _resource(f"{_S3}{bucket}/{prefix}")

    def uri(self, name: str) -> str:
        """The object's URI."""
        return f"{_S3}{self._bucket}/{self._prefix}{name}"

    def put(self, name: str, content: bytes) -> str:
        """Put the object."""
        with self._resource.translated():
            self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}{name}", Body=content)
        return self.uri(name)

    def get(self, name: str) -> bytes | None:
        """Get the object."""
        from botocore.exceptions import ClientError

        with self._resource.translated():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}{name}")
                content: bytes = answer["Body"].read()
                return content
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _MISSING:
                    return None
                raise


def _resource(location: str) -> AwsResource:
    return AwsResource("batches", "bucket", location, "BATCHES_URI", _PERMISSIONS)


def open_batch_files(location: str, region: str = "") -> BatchFiles:
    """The files at a folder or `s3://bucket/prefix`. Nothing is asked of AWS yet.

    Raises: NotConfiguredError when the location names no bucket, or boto3, region or profile is missing.
    """
    if not location.startswith(_S3):
        if "://" in location:
            raise NotConfiguredError(
                f"batches cannot lie at {location}", "set BATCHES_URI to a folder or s3://bucket/prefix"
            )
        return FolderFiles(Path(location))
    parts = urlsplit(location)
    if not parts.netloc:
        raise NotConfiguredError(f"{location} names no bucket", "set BATCHES_URI to s3://bucket/prefix")
    client = open_client("s3", region, _resource(location), "set BATCHES_URI to a folder", read_seconds=_ANSWER_SECONDS)
    return S3Files(client, parts.netloc, parts.path.strip("/"))


def digest_of(content: bytes) -> str:
    """What names a manifest: 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def manifest_name(digest: str) -> str:
    """The file name of the manifest with that digest."""
    return f"{digest}.json"


def read_manifest(uri: str, region: str = "") -> bytes:
    """A manifest by its URI.

    Raises: NotConfiguredError when there is none; DependencyUnavailableError when the place is away.
    """
    folder, _, name = uri.rpartition("/")
    content = open_batch_files(folder or ".", region).get(name)
    if content is None:
        raise NotConfiguredError(f"there is no manifest at {uri}", "set BATCH_MANIFEST_URI to one that exists")
    return content
