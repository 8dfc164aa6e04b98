"""Secrets put where the settings look for them: PEMs into files, the token into the environment.

On Fargate, ECS gives a container Secrets Manager's values as environment variables; a container that runs first writes
them to the files (`tapewatch secret-files`). A Lambda, which ECS does not start, asks Secrets Manager itself when a new
environment starts, so that neither token nor key stands in the function's configuration.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.domain.errors import NotConfiguredError
from services.runtime.aws import AwsResource, open_client

FILES: Final = {"TLS_CERT_FILE": "TLS_CERT_PEM", "TLS_KEY_FILE": "TLS_KEY_PEM", "TLS_CA_FILE": "TLS_CA_PEM"}
"""Variable with a file's path, to the variable with what belongs into it."""

FIELDS: Final = {"TLS_CERT_FILE": "certificate", "TLS_KEY_FILE": "key", "TLS_CA_FILE": "authority"}
"""Variable with a file's path, to the field of a TLS secret that belongs into it."""

TLS_SECRET_ARN: Final = "TLS_SECRET_ARN"  # noqa: S105, a variable's name
TOKEN_SECRET_ARN: Final = "TOKEN_SECRET_ARN"  # noqa: S105
_ANSWER_SECONDS = 5.0


def write_secret_files(environment: Mapping[str, str]) -> list[Path]:
    """Write each PEM that the environment has to the path that it names. Returns the paths.

    Raises: NotConfiguredError when a path has no PEM, or cannot be written.
    """
    written = []
    for path_variable, pem_variable in FILES.items():
        path, pem = environment.get(path_variable, ""), environment.get(pem_variable, "")
        if not path:
            continue
        if not pem:
            raise NotConfiguredError(f"there is nothing to write to {path}", f"set {pem_variable}")
        written.append(_write(Path(path), pem, path_variable))
    return written


def fetch_lambda_secrets() -> None:
    """Put into place what TLS_SECRET_ARN and TOKEN_SECRET_ARN name. Does nothing where neither is set.

    Raises: NotConfiguredError when a secret, or the permission to read it, is missing.
    """
    tls, token = os.environ.get(TLS_SECRET_ARN, ""), os.environ.get(TOKEN_SECRET_ARN, "")
    if tls:
        fields = json.loads(_value(tls, TLS_SECRET_ARN))
        folder = Path(tempfile.mkdtemp(prefix="tls-"))
        for variable, field in FIELDS.items():
            os.environ[variable] = str(_write(folder / f"{field}.pem", fields[field], variable))
    if token:
        os.environ["AUTH_TOKEN"] = _value(token, TOKEN_SECRET_ARN)


def _value(arn: str, setting: str) -> str:
    resource = AwsResource("secrets", "secret", arn, setting, ("secretsmanager:GetSecretValue",))
    client = open_client("secretsmanager", "", resource, f"leave {setting} empty", read_seconds=_ANSWER_SECONDS)
    with resource.translated():
        value: str = client.get_secret_value(SecretId=arn)["SecretString"]
    return value


def _write(path: Path, pem: str, setting: str) -> Path:
    """Only the owner may read it, from the first moment."""
    scratch = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(pem)
        return scratch.replace(path)
    except OSError as error:
        raise NotConfiguredError(
            f"{path} cannot be written ({error.strerror})", f"set {setting} to a file in a folder that may be written"
        ) from error
