"""Secrets put where the settings look for them: PEMs into files, the token into the environment.

On Fargate, ECS gives a container Secrets Manager's values as environment variables; a container that runs first writes
them to the files (`tapewatch secret-files`). A Lambda, which ECS does not start, asks Secrets Manager itself when a new
environment starts, so that neither token nor key stands in the function's configuration. Both ask again from time to
time for certificates, which are renewed while services run (deploy/certificates.py).
"""

import asyncio
import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from services.domain.errors import NotConfiguredError, TapewatchError
from services.domain.threshold import ThresholdCalibration, threshold_file
from services.runtime.aws import AwsResource, open_client
from services.runtime.settings import FunctionSettings
from services.runtime.stopping import stopped_within

FILES: Final = {"TLS_CERT_FILE": "TLS_CERT_PEM", "TLS_KEY_FILE": "TLS_KEY_PEM", "TLS_CA_FILE": "TLS_CA_PEM"}
"""Variable with a file's path, to the variable with what belongs into it."""

THRESHOLD_DIR: Final = "THRESHOLD_DIR"
THRESHOLD_JSON: Final = "THRESHOLD_JSON"
"""A threshold file that belongs into THRESHOLD_DIR, where the deployment brings it."""

FIELDS: Final = {"TLS_CERT_FILE": "certificate", "TLS_KEY_FILE": "key", "TLS_CA_FILE": "authority"}
"""Variable with a file's path, to the field of a TLS secret that belongs into it."""

TLS_SECRET_ARN: Final = "TLS_SECRET_ARN"  # noqa: S105, a variable's name
TOKEN_SECRET_ARN: Final = "TOKEN_SECRET_ARN"  # noqa: S105
REFRESH_SECONDS: Final = 300.0
"""How often a running service or Lambda asks for newer certificates."""

_ANSWER_SECONDS = 5.0
_LAMBDA_SECONDS = 2.0
_log = logging.getLogger(__name__)


def write_secret_files(environment: Mapping[str, str]) -> list[Path]:
    """Write each PEM, and the threshold, that the environment has to where it names. Returns the paths.

    Raises: NotConfiguredError when a certificate's path has no PEM, the threshold is damaged, or a file cannot be
    written.
    """
    contents: dict[str, tuple[Path, str]] = {}
    for path_variable, pem_variable in FILES.items():
        path, pem = environment.get(path_variable, ""), environment.get(pem_variable, "")
        if not path:
            continue
        if not pem:
            raise NotConfiguredError(f"there is nothing to write to {path}", f"set {pem_variable}")
        contents[path_variable] = Path(path), pem
    folder, text = environment.get(THRESHOLD_DIR, ""), environment.get(THRESHOLD_JSON, "")
    if folder and text:
        try:
            name = threshold_file(ThresholdCalibration.from_json(text).model_version)
        except ValueError as error:
            raise NotConfiguredError(
                f"the threshold {error}", f"set {THRESHOLD_JSON} to what tapewatch calibrate wrote"
            ) from error
        contents[THRESHOLD_DIR] = Path(folder) / name, text
    return _write(contents)


def refresh_secret_files(arn: str, paths: Mapping[str, str]) -> list[Path]:
    """Write what a TLS secret has now to those files whose content is another. Returns them.

    Args:
        arn: The secret.
        paths: Variables of FILES to the files.

    Raises: NotConfiguredError when the secret, one of its fields, or the permission to read it is missing, or a file
    cannot be written; DependencyUnavailableError when Secrets Manager is away.
    """
    try:
        fields = json.loads(_value(arn, TLS_SECRET_ARN))
        pems = {variable: str(fields[field]) for variable, field in FIELDS.items() if fields[field]}
        if missing := sorted(FIELDS.keys() - pems.keys()):
            raise KeyError(*missing)
    except (ValueError, KeyError, TypeError) as error:
        raise NotConfiguredError(
            f"the secret {arn} has not all of {', '.join(FIELDS.values())}",
            f"fill it (python -m deploy.certificates), or set {TLS_SECRET_ARN} to one that is filled",
        ) from error
    return _write({name: (Path(paths[name]), pem) for name, pem in pems.items() if not _has(Path(paths[name]), pem)})


async def follow_secret(arn: str, paths: Mapping[str, str], seconds: float, draining: asyncio.Event) -> None:
    """Refresh the files every so many seconds until `draining` is set. What cannot be asked for stays what it was."""
    while not draining.is_set():
        try:
            if await asyncio.to_thread(refresh_secret_files, arn, paths):
                _log.info("the secret %s has new certificates", arn)
        except TapewatchError as error:
            _log.warning("certificates are not refreshed: %s", error.message)
        await stopped_within(seconds, draining)


class LambdaSecrets:
    """What TLS_SECRET_ARN and TOKEN_SECRET_ARN name, put into place for a Lambda's environment.

    Does nothing where neither is set. `clock` is seconds that only go forward.

    Raises: NotConfiguredError when a secret, or the permission to read it, is missing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked = clock()
        settings = FunctionSettings()
        self._arn = settings.tls_secret_arn
        self._paths: Mapping[str, str] = {}
        if self._arn:
            folder = Path(tempfile.mkdtemp(prefix="tls-"))
            self._paths = {variable: str(folder / f"{field}.pem") for variable, field in FIELDS.items()}
            refresh_secret_files(self._arn, self._paths)
            os.environ |= self._paths
        if settings.token_secret_arn:
            os.environ["AUTH_TOKEN"] = _value(settings.token_secret_arn, TOKEN_SECRET_ARN)

    async def refresh(self) -> None:
        """Ask for newer certificates, where it is time to; soon done, whatever becomes of it."""
        if not self._arn or self._clock() - self._asked < REFRESH_SECONDS:
            return
        self._asked = self._clock()
        try:
            async with asyncio.timeout(_LAMBDA_SECONDS):
                await asyncio.to_thread(refresh_secret_files, self._arn, self._paths)
        except TimeoutError:
            _log.warning("certificates are not refreshed: no answer in %.0f s", _LAMBDA_SECONDS)
        except TapewatchError as error:
            _log.warning("certificates are not refreshed: %s", error.message)


def _has(path: Path, pem: str) -> bool:
    try:
        return path.read_text() == pem
    except (OSError, ValueError):
        return False


def _value(arn: str, setting: str) -> str:
    resource = AwsResource("secrets", "secret", arn, setting, ("secretsmanager:GetSecretValue",))
    client = open_client("secretsmanager", "", resource, f"leave {setting} empty", read_seconds=_ANSWER_SECONDS)
    with resource.translated():
        found = client.get_secret_value(SecretId=arn)
    if not found.get("SecretString"):
        raise NotConfiguredError(f"the secret {arn} holds no text", f"fill it, or set {setting} to one that is filled")
    value: str = found["SecretString"]
    return value


def _write(contents: Mapping[str, tuple[Path, str]]) -> list[Path]:
    """Put content into the files that settings name; only the owner may read them, from the first moment.

    All are written before the first one is put in its place: whoever reads them meanwhile hardly ever finds new beside
    old ones (TlsWatch waits for that), and where one cannot be written all stay what they were.
    """
    scratches: dict[str, Path] = {}
    for setting, (path, text) in contents.items():
        with _writable(path, setting):
            scratches[setting] = path.with_name(f"{path.name}.new")
            descriptor = os.open(scratches[setting], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
    for setting, scratch in scratches.items():
        with _writable(contents[setting][0], setting):
            scratch.replace(contents[setting][0])
    return [path for path, _ in contents.values()]


@contextlib.contextmanager
def _writable(path: Path, setting: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotConfiguredError(
            f"{path} cannot be written ({error.strerror})", f"set {setting} to a file in a folder that may be written"
        ) from error
