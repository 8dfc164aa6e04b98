"""Which package brings which module, for the sentence that a missing one deserves."""

from collections.abc import Mapping
from typing import Final

PACKAGES: Final[Mapping[str, tuple[str, str]]] = {
    "ai_edge_litert": ("ai-edge-litert", ""),
    "bokeh_sampledata": ("bokeh-sampledata", ""),
    "google": ("protobuf", ""),
    "google.protobuf": ("protobuf", ""),
    "google.rpc": ("googleapis-common-protos", ""),
    "grpc": ("grpcio", ""),
    "grpc_health": ("grpcio-health-checking", ""),
    "grpc_reflection": ("grpcio-reflection", ""),
    "grpc_status": ("grpcio-status", ""),
    "numpy": ("numpy", ""),
    "opentelemetry": ("opentelemetry-api", ""),
    "opentelemetry.exporter": ("opentelemetry-exporter-otlp-proto-grpc", ""),
    "opentelemetry.instrumentation": ("opentelemetry-instrumentation-grpc", ""),
    "opentelemetry.sdk": ("opentelemetry-sdk", ""),
    "pyarrow": ("pyarrow", ""),
    "pydantic": ("pydantic-settings", ""),
    "pydantic_settings": ("pydantic-settings", ""),
    "rich": ("rich", ""),
    "typer": ("typer", ""),
    "yfinance": ("yfinance", "yahoo"),
    "boto3": ("boto3", "aws"),
    "botocore": ("boto3", "aws"),
    "amazondax": ("amazon-dax-client", "aws"),
    "duckdb": ("duckdb", "lake"),
    "exchange_calendars": ("exchange-calendars", "calendar"),
    "matplotlib": ("matplotlib", "plot"),
    "sklearn": ("scikit-learn", "train"),
    "tensorflow": ("tensorflow-cpu", "train"),
}
"""Module: its package, and the extra that declares it; empty is declared always."""


def install_command(extra: str) -> str:
    """What installs an extra, or, empty, what is always needed.

    >>> install_command("lake")
    "pip install -e '.[lake]'"
    """
    return f"pip install -e '.[{extra}]'" if extra else "pip install -e ."


def missing_package(module: str) -> str | None:
    """What is missing and what installs it; None when the module is of no declared dependency, such as our own.

    >>> missing_package("pyarrow.csv")
    'needs pyarrow: pip install -e .'
    >>> missing_package("services.cli.nothing") is None
    True
    """
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (found := PACKAGES.get(".".join(parts[:length]))) is not None:
            package, extra = found
            return f"needs {package}: {install_command(extra)}"
    return None
