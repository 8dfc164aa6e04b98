"""One client for the whole mesh. Every call takes and gives the generated messages; nothing is hidden."""

import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from tapewatch_client.generated.google.protobuf import FieldMask
from tapewatch_client.generated.tapewatch.gateway.v1 import (
    Alert,
    AlertChange,
    AlertFilter,
    AlertServiceStub,
    AlertState,
    DetectionServiceStub,
    Disposition,
    GetEvidenceRequest,
    GetEvidenceResponse,
    ListAlertsRequest,
    ListQuotesRequest,
    RecordedQuote,
    UpdateAlertRequest,
    WatchAlertsRequest,
)
from tapewatch_client.generated.tapewatch.ingest.v1 import (
    Coverage,
    GetCoverageRequest,
    IngestServiceStub,
    PublishQuotesRequest,
    PublishResult,
)
from tapewatch_client.generated.tapewatch.market.v1 import Quote
from tapewatch_client.generated.tapewatch.scorer.v1 import (
    Block,
    BlockResult,
    GetModelRequest,
    Model,
    ModelServiceStub,
    Score,
    ScoreBlocksRequest,
    ScoreRequest,
    ScoreResult,
    ScorerServiceStub,
    ScoreStreamRequest,
)

_BATCH_QUOTES = 250
_LONGEST_PAUSE_SECONDS = 5.0
_MESSAGE_BYTES_LIMIT = 16 * 1024 * 1024
"""What the servers take and send: grpcio's own limit, 4 MB, is below a full page of quotes."""

_RESUMABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)

_Details = namedtuple("_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression"))


class _CallDetails(_Details, grpc.ClientCallDetails):
    """A call's details that can be made anew: grpcio offers only the interface."""


class _Prepare(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Gives unary calls a deadline and every call the token: the generated stubs take neither.

    Unary calls wait for a server within their deadline, watches for ever. A stream of quotes has no deadline, for it
    lasts as long as its quotes: it does not wait, and fails with UNAVAILABLE when no server can be reached.
    """

    def __init__(self, token: str, timeout_seconds: float) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._timeout = timeout_seconds

    def _details(self, details: Any, timeout: float | None, *, waits: bool) -> _CallDetails:
        metadata = (*(details.metadata or ()), *self._metadata)
        return _CallDetails(details.method, timeout, metadata, details.credentials, waits, details.compression)

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._details(details, self._timeout, waits=True), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._details(details, None, waits=True), request)

    def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return continuation(self._details(details, None, waits=False), requests)


def _batches(quotes: Iterable[Quote]) -> Iterator[list[Quote]]:
    batch = []
    for quote in quotes:
        batch.append(quote)
        if len(batch) == _BATCH_QUOTES:
            yield batch
            batch = []
    if batch:
        yield batch


class Client:
    """Calls a mesh. Addresses are host:port, those of `tapewatch up` by default; channels open on first use.

    Args:
        gateway: The gateway's address.
        ingest: Ingest's address.
        scorer: A scorer's address.
        token: Bearer token, where the servers ask for one.
        ca_file: PEM of the authority to check servers against; turns TLS on.
        cert_file: PEM certificate chain to show, where the servers ask for one.
        key_file: Its private key.
        timeout_seconds: Deadline of unary calls, and how long a stream of quotes may take to connect.

    Every call raises `grpc.RpcError` with the server's status; its `google.rpc` details are in the trailing metadata.
    """

    def __init__(
        self,
        gateway: str = "127.0.0.1:50054",
        ingest: str = "127.0.0.1:50052",
        scorer: str = "127.0.0.1:50051",
        *,
        token: str = "",
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        timeout_seconds: float = 10.0,
    ) -> None:
        credentials = None
        if ca_file is not None:
            key, certificate = (None if path is None else path.read_bytes() for path in (key_file, cert_file))
            credentials = grpc.ssl_channel_credentials(ca_file.read_bytes(), key, certificate)
        prepare = _Prepare(token, timeout_seconds)
        options = [
            ("grpc.max_receive_message_length", _MESSAGE_BYTES_LIMIT),
            ("grpc.max_send_message_length", _MESSAGE_BYTES_LIMIT),
            # A peer that accepts no connection is away after this long, and one that vanished in mid-stream is noticed.
            ("grpc.min_reconnect_backoff_ms", max(1, round(1_000 * timeout_seconds))),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]
        self._channels: list[grpc.Channel] = []

        def channel(address: str) -> grpc.Channel:
            opened = (
                grpc.insecure_channel(address, options)
                if credentials is None
                else grpc.secure_channel(address, credentials, options)
            )
            self._channels.append(opened)
            return grpc.intercept_channel(opened, prepare)

        gateway_channel, scorer_channel = channel(gateway), channel(scorer)
        self.alerts = AlertServiceStub(gateway_channel)
        self.detections = DetectionServiceStub(gateway_channel)
        self.ingest = IngestServiceStub(channel(ingest))
        self.scorer = ScorerServiceStub(scorer_channel)
        self.models = ModelServiceStub(scorer_channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            channel.close()

    def publish(self, quotes: Iterable[Quote]) -> Iterator[PublishResult]:
        """Feed quotes, those of one symbol in order of time. Yields one result per quote once it is durable.

        Fails with UNAVAILABLE when ingest is away.
        """
        for response in self.ingest.publish_quotes(PublishQuotesRequest(quotes=b) for b in _batches(quotes)):
            yield from response.results

    def coverage(self, symbols: Sequence[str] = ()) -> list[Coverage]:
        """What ingest hears, and what is silent."""
        return self.ingest.get_coverage(GetCoverageRequest(symbols=list(symbols))).coverages

    def score(self, quote: Quote, history: Sequence[Quote] = ()) -> Score:
        """Judge one quote by hand, after the given history or the gateway's. Changes nothing."""
        response = self.scorer.score(ScoreRequest(quote=quote, history=list(history)))
        assert response.score is not None
        return response.score

    def score_stream(self, quotes: Iterable[Quote]) -> Iterator[ScoreResult]:
        """Judge quotes, those of one series in order of time, without recording. Yields one result per quote.

        Fails with UNAVAILABLE when the scorer is away.
        """
        for response in self.scorer.score_stream(ScoreStreamRequest(quotes=b) for b in _batches(quotes)):
            yield from response.results

    def score_blocks(self, blocks: Iterable[Block]) -> Iterator[BlockResult]:
        """Judge bars in bulk, in columns, those of one series in order of time. Yields one result per block.

        For back-testing: a series begins without history, and nothing is recorded. Fails with UNAVAILABLE when the
        scorer is away.
        """
        for response in self.scorer.score_blocks(ScoreBlocksRequest(blocks=[block]) for block in blocks):
            yield from response.results

    def model(self, version: str = "") -> Model:
        """A model's metadata; empty means the one that serves."""
        response = self.models.get_model(GetModelRequest(version=version))
        assert response.model is not None
        return response.model

    def watch_alerts(
        self, alert_filter: AlertFilter | None = None, *, resume_token: str = "", from_start: bool = False
    ) -> Iterator[AlertChange]:
        """Every change of an alert, from now on (or from the token, or the start), without gap or repeat.

        Goes on with the last token when the gateway goes away and comes back.
        """
        pause = 0.1
        while True:
            request = WatchAlertsRequest(
                filter=alert_filter,
                resume_token=resume_token,
                from_start=from_start and not resume_token,
                heartbeat_interval=timedelta(seconds=5),
            )
            try:
                for response in self.alerts.watch_alerts(request):
                    resume_token = response.resume_token
                    pause = 0.1
                    if response.change is not None:
                        yield response.change
            except grpc.RpcError as error:
                if error.code() not in _RESUMABLE:
                    raise
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause)

    def list_alerts(self, alert_filter: AlertFilter | None = None) -> Iterator[Alert]:
        """Alerts, newest change first, page by page."""
        token = ""
        while True:
            response = self.alerts.list_alerts(ListAlertsRequest(filter=alert_filter, page_token=token))
            yield from response.alerts
            token = response.next_page_token
            if not token:
                return

    def list_quotes(self, symbol: str, tape: str = "live") -> Iterator[RecordedQuote]:
        """A symbol's quotes with their scores, oldest first, page by page."""
        token = ""
        while True:
            request = ListQuotesRequest(tape=tape, symbol=symbol, page_size=1_000, page_token=token)
            response = self.detections.list_quotes(request)
            yield from response.quotes
            token = response.next_page_token
            if not token:
                return

    def evidence(self, alert_id: str) -> GetEvidenceResponse:
        """What an analyst files: the alert with its detections, quotes, reasons, audit trail and trace ids."""
        return self.alerts.get_evidence(GetEvidenceRequest(alert_id=alert_id))

    def triage(
        self, alert: Alert, actor: str, state: AlertState, *, comment: str = "", disposition: Disposition | None = None
    ) -> Alert:
        """Take an alert, as last read, to a state. Closing needs a disposition and a comment.

        A `grpc.RpcError` with ABORTED means that the alert changed since it was read.
        """
        paths = ["state"] if disposition is None else ["state", "disposition"]
        wanted = Alert(alert_id=alert.alert_id, etag=alert.etag, state=state)
        if disposition is not None:
            wanted.disposition = disposition
        request = UpdateAlertRequest(alert=wanted, update_mask=FieldMask(paths=paths), actor=actor, comment=comment)
        response = self.alerts.update_alert(request)
        assert response.alert is not None
        return response.alert
