"""One OpenTelemetry producer span per published quote."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.domain.quote import Quote
from services.ingest.ports import TraceContext
from services.runtime import telemetry_names as names

_PROPAGATOR = TraceContextTextMapPropagator()
_SYSTEMS = {"sqs": "aws_sqs", "sqlite": "sqlite"}


class ProducerSpans:
    """`Tracing` through the OpenTelemetry API; the process's provider decides where spans go."""

    def __init__(self, destination: str, backend: str) -> None:
        self._tracer = trace.get_tracer("tapewatch.ingest")
        self._name = names.SPAN_PUBLISH.format(destination=destination)
        self._attributes = {
            names.ATTRIBUTE_MESSAGING_SYSTEM: _SYSTEMS[backend],
            names.ATTRIBUTE_DESTINATION: destination,
            names.ATTRIBUTE_OPERATION: "publish",
        }

    @contextmanager
    def publishing(self, quotes: Sequence[Quote]) -> Iterator[list[TraceContext]]:
        """One producer span per quote, open until the block ends; an error of the block is every span's."""
        spans = [
            self._tracer.start_span(
                self._name,
                kind=trace.SpanKind.PRODUCER,
                attributes={
                    **self._attributes,
                    names.ATTRIBUTE_QUOTE_ID: quote.quote_id,
                    names.ATTRIBUTE_TAPE: quote.tape,
                    names.ATTRIBUTE_SYMBOL: quote.symbol,
                },
            )
            for quote in quotes
        ]
        try:
            yield [_context_of(span) for span in spans]
        except Exception as error:
            for span in spans:
                span.set_status(trace.StatusCode.ERROR, str(error))
            raise
        finally:
            for span in spans:
                span.end()


def _context_of(span: trace.Span) -> TraceContext:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return TraceContext(carrier.get("traceparent", ""), carrier.get("tracestate", ""))
