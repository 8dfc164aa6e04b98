"""Configuration: one frozen class per service, read from the environment. README's table is made from these."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ADDRESS = r"^[^\s,]+:\d{1,5}$"
"""host:port, or any gRPC target that ends in a port."""

ADDRESS_OR_NONE = rf"{ADDRESS}|^none$"
ADDRESSES = r"^\s*[^\s,]+:\d{1,5}\s*(,\s*[^\s,]+:\d{1,5}\s*)*,?\s*$"
LOG_LEVELS = "^(?i:debug|info|warning|error|critical)$"
PATTERN_WORDS = {
    ADDRESS: "must be host:port",
    ADDRESS_OR_NONE: "must be host:port, or none",
    ADDRESSES: "must be host:port, several with commas",
    LOG_LEVELS: "must be debug, info, warning, error or critical",
}
"""What a value that does not match should have been, in words."""


def wrong_settings(error: ValidationError) -> Sequence[str]:
    """A sentence for each wrong setting, naming its environment variable."""
    sentences = []
    for wrong in error.errors():
        name = ".".join(str(part) for part in wrong["loc"]).upper()
        wanted = PATTERN_WORDS.get(wrong.get("ctx", {}).get("pattern", ""), wrong["msg"].removeprefix("Value error, "))
        sentences.append(f"{name}={str(wrong['input'])!r}: {wanted}")
    return sentences


class Settings(BaseSettings):
    """The root of every settings class: the environment variable is the field's name in upper case."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)


class FunctionSettings(Settings):
    """What the dispatch Lambda asks Secrets Manager for when its environment starts: nobody puts files there."""

    tls_secret_arn: str = Field("", description="Secrets Manager secret with the certificate, key and authority's PEMs")
    token_secret_arn: str = Field(
        "", description="Secrets Manager secret with the token, which the Lambda takes for `AUTH_TOKEN`"
    )


class TelemetrySettings(Settings):
    """Logs, traces and metrics."""

    log_format: str = Field("human", pattern="^(human|json)$", description="`human` or `json` log lines on stderr")
    log_level: str = Field("INFO", pattern=LOG_LEVELS, description="lowest level that is logged")
    otel_exporter_otlp_endpoint: str = Field(
        "",
        description="OTLP/gRPC collector for traces and metrics, e.g. `http://127.0.0.1:4317`; empty exports nothing",
    )


class AwsSettings(Settings):
    """Where AWS is. Credentials, profiles and endpoints (`AWS_ENDPOINT_URL_SQS`, …) are AWS's own variables."""

    aws_region: str = Field("", description="AWS region; empty takes it from the AWS configuration")


class ClientSettings(Settings):
    """How to call other services."""

    auth_token: SecretStr = Field(SecretStr(""), description="bearer token that servers ask for and clients send")
    tls_ca_file: Path | None = Field(
        None, description="PEM of the authority that clients check servers against; turns TLS on"
    )
    tls_cert_file: Path | None = Field(
        None, description="PEM certificate chain that a server shows, and a client where a server asks for one"
    )
    tls_key_file: Path | None = Field(None, description="PEM private key of TLS_CERT_FILE, without passphrase")
    rpc_timeout_seconds: float = Field(10.0, gt=0, description="deadline of a unary call, seconds")


class ServerSettings(TelemetrySettings, ClientSettings):
    """What every server needs."""

    grpc_host: str = Field(
        "127.0.0.1", description="address to listen on; other than loopback needs TLS, and a token or mutual TLS"
    )
    grpc_port: int = Field(0, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM of the authority that a server checks clients against; turns mutual TLS on"
    )
    tls_secret_arn: str = Field(
        "", description="Secrets Manager secret that the TLS files are refreshed from while the service runs"
    )
    tls_refresh_seconds: float = Field(300.0, gt=0, description="how often that secret is asked, seconds")
    shutdown_grace_seconds: float = Field(10.0, ge=0, description="time that calls in flight have on shutdown, seconds")
    health_check_seconds: float = Field(
        5.0, gt=0, description="how often health looks at what a service needs (on AWS each look costs), seconds"
    )
    exit_with_parent: int = Field(
        0, ge=0, description="process id of what started this one: drain when it is gone; 0 stays"
    )

    @field_validator("grpc_host")
    @classmethod
    def _bracket_ipv6(cls, host: str) -> str:
        return f"[{host}]" if ":" in host and not host.startswith("[") else host
