"""Recorded scores and what analysts decided of them, from a lake or from a running gateway, in one form."""

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.archive import lake
from services.archive.lake_decisions import Decision, read_decisions
from services.cli.tally import pages
from services.domain.alert import AlertState, Disposition, window
from services.domain.alert_budget import ScoredBars
from services.domain.errors import FieldViolation, InvalidRequestError
from services.domain.quote import LIVE_TAPE
from services.domain.score import Quality, RecordedQuote
from services.domain.typology import Typology
from services.runtime.channels import open_channel
from services.runtime.errors import error_from_rpc
from services.runtime.settings import ClientSettings
from services.wire.detection import scored_from_proto
from services.wire.time import timestamp_from_proto
from tapewatch.gateway.v1 import alert_pb2, alert_service_pb2, detection_service_pb2
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceStub

_QUOTES_PAGE = 2_000
_PAGE = 1_000
_MICROSECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class ScoreArchive:
    """One tape's scores, rows of `services.archive.lake.SCHEMA`, and its closed alerts by alert_id."""

    source: str
    tape: str
    table: pa.Table
    decisions: dict[str, Decision]

    def judged(self) -> dict[str, int]:
        """How many scores with enough history each model version has, most first."""
        versions = self.table["model_version"].filter(pa.array(self._may_alert()))
        return dict(Counter(map(str, versions.to_pylist())).most_common())

    def of_model(self, version: str) -> "ScoreArchive":
        """Only the scores of one version that may alert: those with enough history. Two versions have two scales.

        Raises: InvalidRequestError when nothing is left.
        """
        own = pc.equal(self.table["model_version"], pa.scalar(version)).to_numpy()
        left = self.table.filter(pa.array(own & self._may_alert()))
        if not left.num_rows:
            why = f"{version!r} has no scores with enough history on tape {self.tape}; there are {self._there()}"
            raise InvalidRequestError([FieldViolation("model_version", why)])
        return replace(self, table=left)

    def model_version(self, serving: Collection[str]) -> str:
        """Whose scores to take when nobody says: the only version's, or those of the one that serves.

        Raises: InvalidRequestError with the versions when neither says which.
        """
        judged = self.judged()
        if not judged:
            raise InvalidRequestError([FieldViolation("tape", f"{self.tape} has no scores with enough history")])
        if len(judged) == 1:
            return next(iter(judged))
        only = next(iter(serving)) if len(serving) == 1 else ""
        if only in judged:
            return only
        serves = f"{', '.join(sorted(serving))} serves" if serving else "no scorer says which one serves"
        why = f"is needed: tape {self.tape} has scores with enough history of {self._there()}, and {serves}"
        raise InvalidRequestError([FieldViolation("model_version", why)])

    def _there(self) -> str:
        return ", ".join(f"{version} ({count:,})" for version, count in self.judged().items()) or "none"

    def _may_alert(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Bool (n,): which scores have enough history."""
        quality = self.table["quality"].combine_chunks()
        names: pa.Array[Any] = pc.list_flatten(quality)
        warming = pc.equal(names, pa.scalar(Quality.WARMING_UP.name)).to_numpy(zero_copy_only=False)
        may_alert = np.ones(self.table.num_rows, dtype=bool)
        may_alert[pc.list_parent_indices(quality).to_numpy()[warming]] = False
        return may_alert

    def column(self, name: str) -> list[Any]:
        """A column's values."""
        return self.table[name].to_pylist()

    def _newest(self) -> int:
        """The row that was recorded last."""
        return int(np.argmax(self.table["sequence"].to_numpy()))

    @property
    def served_threshold(self) -> float:
        """The threshold that the newest score was judged at."""
        return float(self.column("threshold")[self._newest()])

    @property
    def thresholds(self) -> list[float]:
        """Every threshold that was in force, ascending."""
        return sorted(set(self.column("threshold")))

    def bars(self) -> ScoredBars:
        """The scores as arrays."""
        table = self.table
        interval: list[int] = self.column("interval_seconds")
        keys = zip(self.column("source"), self.column("symbol"), interval, strict=True)
        windows = {each: int(window(each).total_seconds()) * _MICROSECOND for each in set(interval)}
        days = [moment.date().isoformat() for moment in self.column("event_time")]
        return ScoredBars(
            quote_id=_objects(self.column("quote_id")),
            series=_objects([f"{source}/{symbol}/{seconds}s" for source, symbol, seconds in keys]),
            symbol=_objects(self.column("symbol")),
            day=_objects(days),
            time=table["event_time"].cast(pa.int64()).to_numpy(),
            window=np.array([windows[each] for each in interval], dtype=np.int64),
            ensemble=table["ensemble"].to_numpy(),
            typology=np.array([Typology[name].value for name in self.column("typology")], dtype=np.int64),
        )


def _objects(values: list[Any]) -> "np.ndarray[Any, np.dtype[np.object_]]":
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def from_lake(location: str, tape: str) -> ScoreArchive:
    """Read a lake. Raises: InvalidRequestError as `lake.read_table`."""
    if not tape:
        location, tape = lake.split_tape(location)
    table = lake.read_table(location, tape)
    tape = table["tape"][0].as_py() if table.num_rows else tape or LIVE_TAPE
    return ScoreArchive(location, tape, table, read_decisions(location, tape))


async def from_gateway(address: str, settings: ClientSettings, tape: str) -> ScoreArchive:
    """Read a running gateway. Raises: TapewatchError when it cannot be reached."""
    tape = tape or LIVE_TAPE
    try:
        async with open_channel(address, settings) as channel:
            recorded, decisions = await _fetch(channel, tape)
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error, f"gateway {address}") from error
    table = await asyncio.to_thread(lake.to_table, recorded)
    return ScoreArchive(f"gateway {address}", tape, table, decisions)


async def _fetch(channel: grpc.aio.Channel, tape: str) -> tuple[list[RecordedQuote], dict[str, Decision]]:
    detections, alerts = DetectionServiceStub(channel), AlertServiceStub(channel)
    alert_of = {
        detection.quote_id: detection.alert_id
        async for detection in pages(
            detections.ListDetections,
            detection_service_pb2.ListDetectionsRequest(tape=tape, page_size=_PAGE),
            "detections",
        )
    }
    recorded = []
    quotes = detection_service_pb2.ListQuotesRequest(tape=tape, page_size=_QUOTES_PAGE)
    async for message in pages(detections.ListQuotes, quotes, "quotes"):
        pair = scored_from_proto(detection_service_pb2.ScoredQuote(quote=message.quote, score=message.score))
        recorded.append(
            RecordedQuote(
                pair,
                timestamp_from_proto(message.record_time),
                sequence=int(timestamp_from_proto(message.record_time).timestamp() * _MICROSECOND),
                alert_id=alert_of.get(pair.quote.quote_id, ""),
            )
        )
    closed = alert_service_pb2.AlertFilter(tape=tape, states=[alert_pb2.AlertState.ValueType(AlertState.CLOSED)])
    decisions = {
        alert.alert_id: Decision(
            alert.alert_id,
            Disposition(alert.disposition),
            alert.peak_score,
            timestamp_from_proto(alert.update_time),
        )
        async for alert in pages(
            alerts.ListAlerts, alert_service_pb2.ListAlertsRequest(filter=closed, page_size=_PAGE), "alerts"
        )
    }
    return recorded, decisions
