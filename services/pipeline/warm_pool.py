"""The warm pool: scorers that are always running, with each series routed to one of them."""

import asyncio
import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import grpc

from services.domain.errors import DependencyUnavailableError, TapewatchError
from services.domain.quote import Quote, Series
from services.domain.score import Score
from services.pipeline.pool_addresses import PoolAddresses, Resolve, resolve
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


@dataclass
class _Member:
    """One scorer: its channel, until when it is passed over after a failure, and how many calls are on it."""

    channel: grpc.aio.Channel
    rests_until: float = 0.0
    calls: int = 0
    gone: bool = False

    def __post_init__(self) -> None:
        self.stub = ScorerServiceStub(self.channel)

    def taken(self) -> "_Member":
        """The scorer, for a call that ends with `released`."""
        self.calls += 1
        return self

    async def released(self) -> None:
        """The call has ended; the last one of a scorer that is gone closes its channel."""
        self.calls -= 1
        await self.close_unless_called()

    async def close_unless_called(self) -> None:
        if self.gone and not self.calls:
            await self.channel.close()


class WarmPool:
    """Implements the port Scorer on one or several running scorers. Must be made on a running event loop.

    A name with several addresses is several scorers. It is looked up again every few seconds, and after a failure, as
    calls come; scorers that are there before and after keep their series.

    Args:
        targets: host:port of each scorer, or of the name that several have.
        settings: How to call them.
        resolve: Looks names up.
    """

    def __init__(self, targets: Sequence[str], settings: ClientSettings, resolve: Resolve = resolve) -> None:
        self._targets = tuple(targets)
        self._settings = settings
        self._timeout = settings.rpc_timeout_seconds
        self._addresses = PoolAddresses(targets, resolve)
        self._members: dict[str, _Member] = {}
        self._open()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The scorers that are known now."""
        return tuple(self._members)

    def _open(self) -> list[_Member]:
        """Open channels to scorers that are new. Those that are gone."""
        endpoints = {endpoint.address: endpoint for endpoint in self._addresses.endpoints}
        gone = [member for address, member in self._members.items() if address not in endpoints]
        self._members = {
            address: self._members.get(address)
            or _Member(
                open_channel(address, self._settings, health_service=HEALTH_SERVICE, server_name=endpoint.server_name)
            )
            for address, endpoint in endpoints.items()
        }
        return gone

    async def _refresh(self) -> None:
        await self._addresses.refresh()
        if tuple(endpoint.address for endpoint in self._addresses.endpoints) == self.addresses:
            return
        gone = self._open()
        _log.info("the warm pool is %s", ", ".join(self.addresses))
        for member in gone:
            member.gone = True
            await member.close_unless_called()

    def route(self, series: Series) -> str:
        """The scorer for a series: its best one that is not resting after a failure, or its best one."""
        ranked = rank(series, self.addresses)
        now = time.monotonic()
        return next((address for address in ranked if self._members[address].rests_until <= now), ranked[0])

    async def score(self, quotes: Sequence[Quote], cursors: Cursors) -> list[Score | TapewatchError]:
        """One result per quote; a scorer that cannot be reached fails only the quotes routed to it."""
        await self._refresh()
        routed: dict[str, list[Quote]] = defaultdict(list)
        for quote in quotes:
            routed[self.route(quote.series)].append(quote)
        taken = [(address, self._members[address].taken(), part) for address, part in routed.items()]
        answers = await asyncio.gather(*(self._stream(*one, cursors) for one in taken))
        results = {quote_id: result for answer in answers for quote_id, result in answer.items()}
        return [results[quote.quote_id] for quote in quotes]

    async def _stream(
        self, address: str, member: _Member, quotes: list[Quote], cursors: Cursors
    ) -> dict[str, Score | TapewatchError]:
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
            async for response in member.stub.ScoreStream(requests(), timeout=self._timeout):
                for result in response.results:
                    answered = result.WhichOneof("outcome") == "score"
                    results[result.quote_id] = (
                        score_from_proto(result.score) if answered else error_from_status(result.error, peer)
                    )
        except grpc.aio.AioRpcError as error:
            member.rests_until = time.monotonic() + REST_SECONDS
            self._addresses.failed(address)
            failure = unavailable_from_rpc(error, peer)
        finally:
            await member.released()
        for quote in quotes:
            results.setdefault(quote.quote_id, failure)
        return results

    async def serving(self) -> dict[str, bool]:
        """Of each scorer whether its health says SERVING."""
        await self._refresh()

        async def one(member: _Member) -> bool:
            try:
                return await channel_serving(member.channel, HEALTH_SERVICE)
            finally:
                await member.released()

        members = {address: member.taken() for address, member in self._members.items()}
        return dict(zip(members, await asyncio.gather(*map(one, members.values())), strict=True))

    async def any_serving(self) -> bool:
        """Whether a scorer is serving."""
        return any((await self.serving()).values())

    async def check(self) -> None:
        """Return when a scorer is serving. Raises: DependencyUnavailableError when none is."""
        if not await self.any_serving():
            raise DependencyUnavailableError("scorer", f"none of {', '.join(self._targets)} is serving")

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(member.channel.close() for member in self._members.values()))
