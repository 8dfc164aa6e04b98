"""AWS from here: clients made one way, and its errors as ours, each one sentence that says what to do.

boto3 is optional and slow to import, so nothing here imports it before it is asked for. Credentials, endpoints
(`AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_<SERVICE>`) and profiles are the default chain's: none is ours.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from services.domain.errors import DependencyUnavailableError, NotConfiguredError

THROTTLED: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "KmsThrottled",
        "LimitExceededException",
        "OverLimit",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
"""Codes that say: the same call succeeds later."""

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_UNKNOWN = {
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_FORBIDDEN = {"AccessDenied", "AccessDeniedException", "KmsAccessDenied", "UnauthorizedException"}
_ELSEWHERE = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidAddress",  # SQS: a queue's URL that is not of the endpoint's region
    "PermanentRedirect",
}
_DENIED_ACTION = re.compile(r"not authorized to perform: ([a-z0-9-]+:[A-Za-z]+)")
_MISSING = {
    "AWS.SimpleQueueService.NonExistentQueue",
    "NoSuchBucket",
    "QueueDoesNotExist",
    "ResourceNotFoundException",
}


@dataclass(frozen=True, slots=True)
class AwsResource:
    """What a call is about, for its error's sentence.

    `kind` and `name` as in "no queue at https://…"; `dependency` is the service's word for it; `setting` names it in
    the environment; `permissions` are all that its use needs; `region` is where it was looked for.
    """

    dependency: str
    kind: str
    name: str
    setting: str
    permissions: tuple[str, ...]
    region: str = ""

    def __str__(self) -> str:
        return f"{self.name} in {self.region}" if self.region else self.name

    @contextmanager
    def translated(self) -> Iterator[None]:
        """AWS's errors as ours.

        Raises: NotConfiguredError when credentials, region, permission or the resource is missing;
        DependencyUnavailableError when AWS is away or throttles.
        """
        from botocore import exceptions as aws

        try:
            yield
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound) as error:
            raise NotConfiguredError(
                f"AWS credentials are missing for the {self.kind} {self} ({error})",
                "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
            ) from error
        except (aws.SSOError, aws.CredentialRetrievalError, aws.TokenRetrievalError) as error:
            raise NotConfiguredError(
                f"AWS credentials cannot be renewed ({error}) for the {self.kind} {self}",
                "set AWS_PROFILE to one that is signed in (aws sso login)",
            ) from error
        except aws.NoRegionError as error:
            raise NotConfiguredError(f"the region of {self.name} is not known", "set AWS_REGION") from error
        except aws.InvalidRegionError as error:
            raise NotConfiguredError(
                f"the region of {self.name} cannot be one ({error})", "set AWS_REGION to one like eu-central-1"
            ) from error
        except aws.ClientError as error:
            raise self.error_of(error.response.get("Error", {})) from error
        except aws.EndpointConnectionError as error:
            named = (self.region, os.environ.get("AWS_REGION"), os.environ.get("AWS_DEFAULT_REGION"))
            where = next(filter(None, named), "the configured region")
            raise DependencyUnavailableError(
                self.dependency, f"{self}: {error} (is there a network, and is {where} a region of AWS?)"
            ) from error
        except aws.BotoCoreError as error:
            raise DependencyUnavailableError(self.dependency, f"{self}: {error}") from error

    def error_of(self, failure: Any) -> DependencyUnavailableError | NotConfiguredError:
        """The error of an answer's `Code` and `Message`."""
        code, text = failure.get("Code", ""), failure.get("Message", "")
        if code in _MISSING:
            return NotConfiguredError(
                f"there is no {self.kind} at {self}", f"set {self.setting} to one that exists, or AWS_REGION to its own"
            )
        if code in _EXPIRED:
            return NotConfiguredError(
                f"AWS credentials have expired ({code}) for the {self.kind} {self}",
                "sign in again (aws sso login), or set AWS_ACCESS_KEY_ID, its secret and AWS_SESSION_TOKEN anew",
            )
        why = f"{code}: {text}" if text else code
        if code in _UNKNOWN:
            return NotConfiguredError(
                f"AWS does not accept these credentials ({why}) for the {self.kind} {self}",
                "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret, to some that it knows; and look at this clock",
            )
        if code in _ELSEWHERE:
            return NotConfiguredError(
                f"the {self.kind} {self} is in another region ({why})", "set AWS_REGION to its own"
            )
        if code in _FORBIDDEN:
            return NotConfiguredError(
                f"AWS refuses the use of the {self.kind} {self} ({why})",
                f"use credentials that allow {self._denied(text)}",
            )
        if code in THROTTLED:
            return DependencyUnavailableError(
                self.dependency, f"AWS throttles the {self.kind} {self} ({why})", retry_delay_seconds=2.0
            )
        return DependencyUnavailableError(self.dependency, f"{self}: {code} {text}")

    def _denied(self, text: str) -> str:
        """The permission that AWS's words name, with all that the use needs, or those alone."""
        found = _DENIED_ACTION.search(text)
        every = _listed(self.permissions)
        if found is None or len(self.permissions) == 1:
            return every
        return f"{found[1]} (all that it needs: {every})"


def _listed(words: Sequence[str]) -> str:
    """The words as a sentence has them.

    >>> _listed(("sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage"))
    'sqs:SendMessage, sqs:ReceiveMessage and sqs:DeleteMessage'
    """
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def open_client(service: str, region: str, resource: AwsResource, instead: str, *, read_seconds: float) -> Any:
    """A boto3 client, safe to share between threads.

    Args:
        service: AWS's name of the service.
        region: Where; empty takes it from the AWS configuration.
        resource: What it is for.
        instead: What to do to go without AWS, as a clause: "set QUEUE_BACKEND=sqlite".
        read_seconds: Longest wait for an answer.

    Raises: NotConfiguredError when boto3, region or profile is missing.
    """
    session = open_session(region, resource, instead)
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": 3},
        connect_timeout=5,
        read_timeout=read_seconds,
        max_pool_connections=32,
        tcp_keepalive=True,
    )
    with resource.translated():
        return session.client(service, config=config)


def default_region() -> str:
    """The region that AWS's default chain names: AWS_REGION, AWS_DEFAULT_REGION, or the profile's; empty without one.

    For clients other than boto3's. Without boto3 the environment alone is asked.

    Raises: NotConfiguredError when there is no such profile.
    """
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return region
    try:
        from botocore import exceptions as aws
        from botocore.session import Session
    except ImportError:
        return ""
    try:
        return Session().get_config_variable("region") or ""
    except aws.ProfileNotFound as error:
        raise NotConfiguredError(
            f"AWS has no such profile here ({error})", "set AWS_PROFILE to one of yours"
        ) from error


def open_session(region: str, resource: AwsResource, instead: str) -> Any:
    """A boto3 session: the default chain's credentials, as they are now. The arguments are those of `open_client`.

    Raises: NotConfiguredError when boto3 or the profile is missing.
    """
    try:
        import boto3
    except ImportError as error:
        raise NotConfiguredError(
            f"the {resource.kind} {resource} needs boto3", f"install it (pip install -e '.[aws]'), or {instead}"
        ) from error
    with resource.translated():
        return boto3.Session(region_name=region or None)
