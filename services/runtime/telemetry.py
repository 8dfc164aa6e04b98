"""OpenTelemetry traces and metrics, and logs that carry trace ids.

Spans always exist, so that logs and evidence have trace ids; they leave the process only when
OTEL_EXPORTER_OTLP_ENDPOINT is set.
"""

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.runtime.cloud_resource import cloud_attributes
from services.runtime.settings import TelemetrySettings

_PROPAGATOR = TraceContextTextMapPropagator()
_STANDARD_RECORD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def current_trace_id() -> str:
    """The trace id of the running span as 32 hexadecimal digits, or an empty string."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def current_trace_context() -> dict[str, str]:
    """The W3C `traceparent` and `tracestate` of the running span, where there are any."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier


def context_of(carrier: Mapping[str, str]) -> Context:
    """The trace context in message attributes or environment variables (names in any case)."""
    return _PROPAGATOR.extract({key.lower(): value for key, value in carrier.items()})


class HumanFormatter(logging.Formatter):
    """One readable line per record, with the first digits of the trace id where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        trace_id = current_trace_id()
        suffix = f" [{trace_id[:8]}]" if trace_id else ""
        line = f"{moment} {record.levelname:<7} {record.name}: {record.getMessage()}{suffix}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per record; `extra=` fields become members."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace_id := current_trace_id():
            entry["trace_id"] = trace_id
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD_RECORD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure_logging(settings: TelemetrySettings) -> None:
    """Send every log line of the process to stderr in the configured format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else HumanFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


class Telemetry:
    """The process's providers. `shutdown` exports what is left."""

    def __init__(self, service_name: str, settings: TelemetrySettings) -> None:
        configure_logging(settings)
        resource = Resource.create(
            {
                "service.name": service_name,
                "service.namespace": "tapewatch",
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
                "process.pid": os.getpid(),
                **cloud_attributes(os.environ),
            }
        )
        endpoint = settings.otel_exporter_otlp_endpoint
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        readers = []
        if endpoint:
            # A tenth of the CPU that starting a process takes, and most export nothing.
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            self._traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
            readers = [PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint))]
        self._metrics = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
        trace.set_tracer_provider(self._traces)
        metrics.set_meter_provider(self._metrics)

    def flush(self, timeout_seconds: float = 0.5) -> None:
        """Export what is there: a Lambda environment may be frozen after each invocation."""

        def export() -> None:
            self._traces.force_flush()
            self._metrics.force_flush()

        # In a thread: the exporters retry a collector that is away for longer than an invocation has.
        thread = threading.Thread(target=export, name="telemetry flush", daemon=True)
        thread.start()
        thread.join(timeout_seconds)

    def shutdown(self) -> None:
        """Export what is left, waiting a few seconds at most for a collector that is away."""
        self._traces.shutdown()
        self._metrics.shutdown()
