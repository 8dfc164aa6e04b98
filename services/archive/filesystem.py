"""Where files are: a folder of this machine, S3, or another file system that pyarrow knows."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from services.domain.errors import NotConfiguredError
from services.runtime.aws import default_region

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "file")
"""Of the URIs where lakes lie; pyarrow knows others, which are for tests (mock) or need more than a URI (hdfs)."""

_S3 = "s3://"
_CONNECT_SECONDS = 5.0
_REQUEST_SECONDS = 30.0
_ATTEMPTS = 5
_PERMISSIONS = "s3:GetObject, s3:PutObject and s3:ListBucket"
_OPERATION = re.compile(r"during (\w+) operation")
_PERMISSION_OF = {
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject and s3:ListBucket",  # without the second, what is not there is called forbidden
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
}
"""By the operation of S3 that pyarrow's error names."""


def open_filesystem(location: str, setting: str = "") -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it, without a slash at its end. Nothing is asked of it yet.

    S3 takes credentials and region from AWS's default chain, and another endpoint than AWS's from
    `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`.

    Raises: NotConfiguredError naming `setting` when nobody knows such a location, or S3's region or profile is missing.
    """
    asks = f"set {setting} to" if setting else "name"
    if location.startswith(_S3):
        return _open_s3(location, asks)
    try:
        if "://" in location:
            filesystem, path = fs.FileSystem.from_uri(location)
        else:
            filesystem, path = fs.LocalFileSystem(), str(Path(location).absolute())
    except (pa.ArrowException, ValueError) as error:
        raise NotConfiguredError(
            f"nobody knows the lake {location!r} ({error})", f"{asks} a folder or a URI"
        ) from error
    return filesystem, path.rstrip("/")


def _open_s3(location: str, asks: str) -> tuple[fs.FileSystem, str]:
    # Not from_uri: it asks AWS for the bucket's region, whatever the endpoint.
    parts = urlsplit(location)
    if not parts.netloc:
        raise NotConfiguredError(f"the lake {location!r} names no bucket", f"{asks} s3://bucket/prefix")
    region = default_region()
    if not region:
        raise NotConfiguredError(
            f"the region of {location} is not known", "set AWS_REGION, or AWS_PROFILE to a profile that has one"
        )
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
    filesystem = fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint.netloc or None,
        scheme="http" if endpoint.scheme == "http" else "https",
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
    return filesystem, f"{parts.netloc}{parts.path}".rstrip("/")


def explain(error: Exception, location: str) -> str:
    """A file system's error as a sentence that says what to do."""
    text = str(error)
    remedy = _remedy(text, location)
    return f"{remedy} ({text})" if remedy else f"{location}: {text}"


def is_lasting(error: Exception) -> bool:
    """Whether a file system refuses, until somebody does something, rather than being away for a moment."""
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return True
    text = str(error)
    return "HTTP status 400" in text or "READ-ONLY FILE SYSTEM" in text.upper() or bool(_remedy(text, ""))


def _remedy(text: str, location: str) -> str:
    """What is wrong and what mends it, where the error's text says so; else empty."""
    said = text.upper()
    if any(words in said for words in ("ACCESS_DENIED", "HTTP STATUS 403", "SIGNATURE")):
        return f"AWS refuses the use of {location}: it needs credentials with {_denied(text)}"
    if "NO_SUCH_BUCKET" in said or "NOSUCHBUCKET" in said:
        return f"there is no bucket of {location} in {default_region()}"
    if "HTTP STATUS 301" in said or "PERMANENT_REDIRECT" in said:
        return f"the bucket of {location} is in another region: set AWS_REGION to its own"
    if "EXPIRED" in said:
        return f"AWS credentials have expired for {location}: sign in again (aws sso login), or set new ones"
    if "HTTP status 400" in text and "No response body" in text:  # S3's answer to HEAD never says why
        return f"S3 refuses {location} without a word, as it does when AWS credentials have expired"
    return ""


def _denied(text: str) -> str:
    """The permission that was missing, with all that a lake's use needs, or those alone."""
    operation = _OPERATION.search(text)
    permission = _PERMISSION_OF.get(operation[1], "") if operation else ""
    return f"{permission} (all that a lake needs: {_PERMISSIONS})" if permission else _PERMISSIONS


def make_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Make a folder and those above it, where the file system has folders: S3 has only keys."""
    if not isinstance(filesystem, fs.S3FileSystem):
        filesystem.create_dir(path, recursive=True)
