"""The warm pool: scorers that are always running, with each series routed to one of them."""

import asyncio
import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache

import grpc

from services.domain.errors import DependencyUnavailableError, TapewatchError
from services.domain.quote import Quote, Series
from services.domain.score import Score
from services.pipeline.ports import Cursors
from services.runtime.channels import open_channel
from services.runtime.errors import error_from_status, unavailable_from_rpc
from services.runtime.health import channel_serving
from services.runtime.settings import ClientSettings
from services.wire.quote import cursors_to_proto, quote_to_proto
from services.wire.score import score_from_proto
from tapewatch.scorer.v1 import scorer_service_pb2 as pb
from tapewatch.scorer.v1.scorer_service_pb2_grpc import ScorerServiceStub

_log = logging.getLogger(__name__)
HEALTH_SERVICE = "tapewatch.scorer.v1.ScorerService"
REQUEST_QUOTES = 250
"""Quotes in one request of a stream; further ones overlap with its answer."""
REST_SECONDS = 1.0
"""How long a scorer that failed is passed over while others are there."""


@lru_cache(maxsize=50_000)
def rank(series: Series, addresses: tuple[str, ...]) -> list[str]:
    """The addresses from best to worst for a series, by rendezvous hash: one that leaves moves only its own series.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
    """
    return sorted(addresses, key=lambda a: hashlib.blake2b(f"{a}|{series.key}".encode(), digest_size=8).digest())


class WarmPool:
    """Implements the port Scorer on one or several running scorers. Must be made on a running event loop."""

    def __init__(self, addresses: Sequence[str], settings: ClientSettings) -> None:
        self.addresses = tuple(addresses)
        self._timeout = settings.rpc_timeout_seconds
        self._channels = {a: open_channel(a, settings, health_service=HEALTH_SERVICE) for a in addresses}
        self._stubs = {a: ScorerServiceStub(channel) for a, channel in self._channels.items()}
        self._rests_until = dict.fromkeys(addresses, 0.0)

    def route(self, series: Series) -> str:
        """The scorer for a series: its best one that is not resting after a failure, or its best one."""
        ranked = rank(series, self.addresses)
        now = time.monotonic()
        return next((address for address in ranked if self._rests_until[address] <= now), ranked[0])

    async def score(self, quotes: Sequence[Quote], cursors: Cursors) -> list[Score | TapewatchError]:
        """One result per quote; a scorer that cannot be reached fails only the quotes routed to it."""
        routed: dict[str, list[Quote]] = defaultdict(list)
        for quote in quotes:
            routed[self.route(quote.series)].append(quote)
        answers = await asyncio.gather(*(self._stream(a, part, cursors) for a, part in routed.items()))
        results = {quote_id: result for answer in answers for quote_id, result in answer.items()}
        return [results[quote.quote_id] for quote in quotes]

    async def _stream(self, address: str, quotes: list[Quote], cursors: Cursors) -> dict[str, Score | TapewatchError]:
        async def requests() -> AsyncIterator[pb.ScoreStreamRequest]:
            told: set[Series] = set()
            for start in range(0, len(quotes), REQUEST_QUOTES):
                part = quotes[start : start + REQUEST_QUOTES]
                fresh = {q.series for q in part} - told  # later requests continue where the earlier ones ended
                told |= fresh
                yield pb.ScoreStreamRequest(
                    quotes=[quote_to_proto(quote) for quote in part],
                    cursors=cursors_to_proto({series: cursors.get(series) for series in fresh}),
                )

        peer = f"scorer {address}"
        results: dict[str, Score | TapewatchError] = {}
        failure: TapewatchError = DependencyUnavailableError(peer, "ended the stream early")
        try:
            async for response in self._stubs[address].ScoreStream(requests(), timeout=self._timeout):
                for result in response.results:
                    answered = result.WhichOneof("outcome") == "score"
                    results[result.quote_id] = (
                        score_from_proto(result.score) if answered else error_from_status(result.error, peer)
                    )
        except grpc.aio.AioRpcError as error:
            self._rests_until[address] = time.monotonic() + REST_SECONDS
            failure = unavailable_from_rpc(error, peer)
        for quote in quotes:
            results.setdefault(quote.quote_id, failure)
        return results

    async def serving(self, address: str) -> bool:
        """Whether a scorer's health says SERVING."""
        return await channel_serving(self._channels[address], HEALTH_SERVICE)

    async def any_serving(self) -> bool:
        """Whether a scorer is serving."""
        return any(await asyncio.gather(*(self.serving(address) for address in self.addresses)))

    async def check(self) -> None:
        """Return when a scorer is serving. Raises: DependencyUnavailableError when none is."""
        if not await self.any_serving():
            raise DependencyUnavailableError("scorer", f"none of {', '.join(self.addresses)} is serving")

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
