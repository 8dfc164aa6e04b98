"""Alert changes pushed over AWS AppSync Events: what a browser hears at once, over a WebSocket.

A change goes to the channel `/alerts/<tape>/<SYMBOL>`; `/alerts/live/*` hears every live one. An event is what
`WatchAlerts` would have sent, in proto JSON: the change with its sequence, and the resume token after it. AppSync does
not promise delivery, so that a subscriber that finds a gap in the sequence, or has been away, reads the change log from
its token on.
"""

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from google.protobuf.json_format import MessageToJson

from services.domain.alert import AlertChange
from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.gateway.requests import resume_token
from services.runtime.aws import AwsResource, open_session
from services.wire.alert import change_to_proto
from tapewatch.gateway.v1 import alert_service_pb2

NAMESPACE: Final = "alerts"
EVENTS_LIMIT: Final = 5
"""Events that AppSync takes in one publication."""

EVENT_BYTES_LIMIT: Final = 240 * 1024
_SEGMENT_CHARACTERS = 50
_ANSWER_SECONDS = 5
_REGION = re.compile(r"\.appsync-api\.([a-z0-9-]+)\.amazonaws\.com")
_AGAIN = {408, 425, 429}
"""Statuses below 500 of an event that may be published later."""


def channel_of(tape: str, symbol: str) -> str:
    """The channel of a symbol's alerts. What AppSync takes in no channel becomes a dash: the event has the symbol.

    >>> channel_of("live", "BRK.B")
    '/alerts/live/BRK-B'
    >>> channel_of("live", "^GSPC")
    '/alerts/live/GSPC'
    """
    return "/".join(("", NAMESPACE, _segment(tape), _segment(symbol)))


def _segment(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", text)[:_SEGMENT_CHARACTERS].strip("-") or "0"


def event_of(change: AlertChange, store_id: str) -> str:
    """The change as an event. One beyond AppSync's limit leaves out texts, which `GetAlert` has."""
    response = alert_service_pb2.WatchAlertsResponse(
        resume_token=resume_token(store_id, change.sequence), change=change_to_proto(change)
    )
    event = MessageToJson(response, indent=None)
    if len(event.encode()) <= EVENT_BYTES_LIMIT:
        return event
    for field in ("reasons", "summary", "assignee"):
        response.change.alert.ClearField(field)
    return MessageToJson(response, indent=None)


class AppSyncPublisher:
    """Publishes over HTTP, with an API key or signed as IAM asks. Safe to share between threads.

    Args:
        endpoint: The API's HTTP endpoint, with or without `/event`.
        store_id: Names the store whose change log the events come from.
        api_key: Empty signs with the credentials of the default chain instead.
        region: For the signature; empty takes it from the endpoint, or the AWS configuration.
        host: The API's host where the endpoint is reached at another address.

    Raises: NotConfiguredError when the endpoint is no URL, or boto3, credentials or region are missing.
    """

    def __init__(self, endpoint: str, store_id: str, *, api_key: str = "", region: str = "", host: str = "") -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise NotConfiguredError(
                f"the alerts' push needs a URL, and {endpoint!r} is none", "set APPSYNC_ENDPOINT to https://<api>/event"
            )
        self._url = f"{parts.scheme}://{parts.netloc}/event"
        self._host = host or parts.netloc
        self._store_id = store_id
        self._api_key = api_key
        found = _REGION.search(self._host)
        self._region = region or (found[1] if found else "")
        self.resource = AwsResource(
            "alerts' push",
            "AppSync Events API",
            self._host,
            "APPSYNC_ENDPOINT",
            ("appsync:EventPublish",),
            self._region,
        )
        self._session = open_session(self._region, self.resource, "leave APPSYNC_ENDPOINT empty")
        if not api_key:
            self._sign(b"")  # a missing region or credential is told now, not with the first alert
        from botocore.httpsession import URLLib3Session

        self._http = URLLib3Session(timeout=_ANSWER_SECONDS)
        self._lock = threading.Lock()

    def publish(self, changes: Sequence[AlertChange]) -> int:
        """Publish changes of one tape and symbol, in order. Returns how many AppSync refused for good."""
        refused = 0
        for start in range(0, len(changes), EVENTS_LIMIT):
            part = changes[start : start + EVENTS_LIMIT]
            channel = channel_of(part[0].alert.tape, part[0].alert.symbol)
            events = [event_of(change, self._store_id) for change in part]
            answer = self._post(json.dumps({"channel": channel, "events": events}).encode())
            for failure in answer.get("failed") or ():
                code = int(failure.get("code") or 500)
                if code >= 500 or code in _AGAIN:
                    raise DependencyUnavailableError(
                        self.resource.dependency, f"{self.resource}: {code} {failure.get('errorMessage', '')}"
                    )
                refused += 1
        return refused

    def close(self) -> None:
        """Release the connections."""
        self._http.close()

    def _sign(self, body: bytes) -> Any:
        """The request, ready to be sent."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        headers = {"Content-Type": "application/json", "Host": self._host}
        if self._api_key:
            headers["x-api-key"] = self._api_key
            return AWSRequest("POST", self._url, headers=headers, data=body).prepare()
        request = AWSRequest("POST", self._url, headers=headers, data=body)
        with self.resource.translated():
            region = self._region or self._session.region_name
            if not region:
                raise NotConfiguredError(f"the region of {self.resource.name} is not known", "set AWS_REGION")
            credentials = self._session.get_credentials()
            if credentials is None:
                raise NotConfiguredError(
                    f"AWS credentials are missing for the {self.resource.kind} {self.resource}",
                    "set APPSYNC_API_KEY, AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
                )
            SigV4Auth(credentials.get_frozen_credentials(), "appsync", region).add_auth(request)
        return request.prepare()

    def _post(self, body: bytes) -> Mapping[str, Any]:
        with self._lock:  # refreshed credentials and the connection are used by one thread at a time
            request = self._sign(body)
            with self.resource.translated():
                response = self._http.send(request)
        content = response.content
        try:
            answer = json.loads(content) if content else {}
        except ValueError:
            answer = {}
        if response.status_code == 200:
            return answer if isinstance(answer, dict) else {}
        failures = answer.get("errors") if isinstance(answer, dict) else None
        failure = failures[0] if failures else {}
        if self._api_key and response.status_code in (401, 403):
            raise NotConfiguredError(
                f"AppSync refuses the key for {self.resource}",
                "set APPSYNC_API_KEY to a key of that API that has not expired",
            )
        kind = str(failure.get("errorType") or response.headers.get("x-amzn-errortype") or response.status_code)
        text = str(failure.get("message") or content[:200].decode(errors="replace"))
        raise self.resource.error_of({"Code": kind.partition(":")[0], "Message": text})
