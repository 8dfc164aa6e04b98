"""Detections by key from DAX, AWS's cache in front of DynamoDB. Never seen against a real cluster: none runs locally.

The gateway's transactions go past DAX, which may therefore answer with an item as it once was, or with none where there
is one by now. What `GetDetection` answers never changes once it is recorded, so that an old item is as good as a new
one; everything else, "none" included, is the table's to say (docs/data-model.md).
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import metrics

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.domain.score import RecordedQuote
from services.gateway import dynamodb_items as rows
from services.runtime import telemetry_names as names
from services.runtime.aws import AwsResource, open_session
from services.runtime.backoff import REPAIR_SECONDS, backoff_seconds

_PERMISSIONS: Final = ("dax:GetItem",)
_WITHOUT: Final = "set DAX_ENDPOINT to nothing"
_ANSWER_SECONDS = 1.0
"""Longest wait for a connection, and for an answer: the table answers in less, so that more would only delay."""

_FIRST_PAUSE_SECONDS = 2.0
_SEARCH_SECONDS = 15.0
"""Longest that a check waits for the first attempt to connect, which tries the cluster's nodes one by one."""

_log = logging.getLogger(__name__)


class DaxDetections:
    """Detections as a DAX cluster knows them. Safe to share between threads; nothing here waits for an absent cluster.

    The cluster is looked for in a thread, again and again with growing pauses. When it fails a read, the following ones
    do not ask it until a pause is over, and then one does. The log has a line when it goes and one when it comes.

    Args:
        resource: The cluster, for messages.
        table: Name of the table behind it.
        open_client: Connects: blocks until the cluster is found, and raises when it is not.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        resource: AwsResource,
        table: str,
        open_client: Callable[[], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resource = resource
        self._table = table
        self._open_client = open_client
        self._clock = clock
        self._client: Any = None
        self._lock = threading.Lock()
        self._failures = 0
        """Reads, or attempts to connect, that failed since the last that did not."""
        self._again_at = 0.0
        self._why = ""
        self._tried = threading.Event()
        self._closed = threading.Event()
        self._reads = metrics.get_meter("tapewatch").create_counter(names.CACHE_READS, unit="{read}")
        threading.Thread(target=self._connect, name="dax-connect", daemon=True).start()

    @classmethod
    def connect(cls, endpoint: str, table: str, region: str = "") -> "DaxDetections":
        """The cluster at `endpoint`, as AWS gives it. Nothing is asked of it yet.

        Args:
            endpoint: `daxs://host`, or without encryption `dax://host`; with `:port` where it is not the usual one.
            table: Name of the table behind it.
            region: Where; empty takes the AWS configuration's.

        Raises: NotConfiguredError when the endpoint is no such URL, or the client, region or profile is missing.
        """
        if not _is_endpoint(endpoint):
            raise NotConfiguredError(
                f"DAX needs a cluster, and {endpoint!r} is no URL of a cluster",
                "set DAX_ENDPOINT to daxs://<host> or dax://<host>",
            )
        resource = AwsResource("DAX", "DAX cluster", endpoint, "DAX_ENDPOINT", _PERMISSIONS, region)
        try:
            from amazondax import AmazonDaxClient
        except ImportError as error:
            raise NotConfiguredError(
                f"the cluster {resource} needs amazon-dax-client",
                f"install it (pip install -e '.[aws]'), or {_WITHOUT}",
            ) from error
        session = open_session(region, resource, _WITHOUT)
        from botocore.config import Config

        if not _log.isEnabledFor(logging.DEBUG):
            # Its health checks of an absent node are a few lines every five seconds; ours says it once.
            logging.getLogger("amazondax").setLevel(logging.ERROR)
        # One more attempt, for a connection that the cluster closed while it was idle.
        config = Config(connect_timeout=_ANSWER_SECONDS, read_timeout=_ANSWER_SECONDS, retries={"max_attempts": 1})
        return cls(resource, table, lambda: AmazonDaxClient(session, endpoint_url=endpoint, config=config))

    def get(self, quote_id: str) -> RecordedQuote | None:
        """A detection, whose counts of repetitions may be old; None when the table is to be asked. Raises nothing."""
        item_key = rows.parse_quote_id(quote_id)
        if item_key is None:
            return None
        failures = self._permit()
        if failures is None:
            self._count("away")
            return None
        try:
            item = self._client.get_item(TableName=self._table, Key=item_key).get("Item")
            found = None if item is None else rows.recorded_of(item)
        except Exception as error:  # the client's own, botocore's, the socket's: the table answers whatever it is
            self._failed(failures, error)
            self._count("failed")
            return None
        self._worked()
        if found is None or not found.alert_id or found.scored.quote.quote_id != quote_id:
            self._count("miss")
            return None
        self._count("hit")
        return found

    def check(self) -> None:
        """Wait until it is known whether the cluster is there. Raises: DependencyUnavailableError when it is not."""
        if not self._tried.wait(_SEARCH_SECONDS):
            raise DependencyUnavailableError("DAX", f"{self._resource} is not found within {_SEARCH_SECONDS:.0f} s")
        with self._lock:
            if self._failures:
                raise DependencyUnavailableError("DAX", self._why)

    def close(self) -> None:
        """Release connections and threads. Calling it twice is harmless."""
        self._closed.set()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connect(self) -> None:
        """Look for the cluster until it is found. From then on the client itself follows its nodes."""
        while not self._closed.is_set():
            failures = self._failures
            try:
                client = self._open_client()
            except Exception as error:  # as above
                self._closed.wait(self._failed(failures, error))
                continue
            with self._lock:
                if not self._closed.is_set():
                    self._client, client = client, None
            if client is not None:
                client.close()
                return
            self._worked()
            return

    def _permit(self) -> int | None:
        """The failures so far, when the cluster may be asked now."""
        with self._lock:
            if self._client is None:
                return None
            if self._failures:
                if self._clock() < self._again_at:
                    return None
                self._again_at = self._clock() + REPAIR_SECONDS  # for the others: this one tries
            return self._failures

    def _failed(self, failures: int, error: Exception) -> float:
        """Note a failure of what began after `failures`, once for all that were under way. The pause, in seconds."""
        why = self._explain(error)
        pause = backoff_seconds(failures + 1, _FIRST_PAUSE_SECONDS, REPAIR_SECONDS)
        with self._lock:
            if failures != self._failures or self._closed.is_set():
                return pause
            self._failures += 1
            self._again_at = self._clock() + pause
            self._why = why
        self._tried.set()
        if not failures:
            _log.warning("DAX does not answer, detections are read from the table until it does: %s", why)
        return pause

    def _worked(self) -> None:
        with self._lock:
            news = self._failures > 0 or not self._tried.is_set()
            self._failures = 0
            self._tried.set()
        if news:
            _log.info("detections are read through %s", self._resource)

    def _explain(self, error: Exception) -> str:
        from botocore.exceptions import ClientError  # the base of the client's own errors

        if isinstance(error, ClientError):
            return self._resource.error_of(error.response.get("Error", {})).message
        return f"{self._resource}: {type(error).__name__}: {error}"

    def _count(self, outcome: str) -> None:
        self._reads.add(1, {"outcome": outcome})


def _is_endpoint(endpoint: str) -> bool:
    """Whether the client can take it.

    >>> [_is_endpoint(each) for each in ("daxs://c.dax-clusters.eu-central-1.amazonaws.com", "dax://10.0.0.1:8111")]
    [True, True]
    >>> [_is_endpoint(each) for each in ("", "localhost:8111", "https://host", "dax://", "dax://host:port")]
    [False, False, False, False, False]
    """
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("dax", "daxs") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        return False
