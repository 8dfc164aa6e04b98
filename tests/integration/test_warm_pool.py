"""Routing of series to scorers, and what a refusing scorer means for the messages."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from services.domain.errors import DependencyUnavailableError, FieldViolation, InvalidRequestError
from services.domain.quote import Series
from services.pipeline.warm_pool import WarmPool, rank
from services.runtime.server import Lifetime, Mount
from services.runtime.settings import ClientSettings, ServerSettings
from tapewatch.scorer.v1 import scorer_service_pb2 as pb
from tapewatch.scorer.v1.scorer_service_pb2_grpc import ScorerServiceServicer, add_ScorerServiceServicer_to_server
from tests.pipeline_fakes import quote
from tests.servers.in_process import served

POOL = tuple(f"10.0.0.{i}:50051" for i in range(5))
SERIES = [Series("live", "s", f"SYM{i}", 60) for i in range(2_000)]


def test_each_scorer_gets_its_share() -> None:
    counts = dict.fromkeys(POOL, 0)
    for series in SERIES:
        counts[rank(series, POOL)[0]] += 1
    assert all(0.7 * 400 < count < 1.3 * 400 for count in counts.values()), counts


def test_a_scorer_that_leaves_moves_only_its_own_series() -> None:
    rest = POOL[1:]
    for series in SERIES:
        before, after = rank(series, POOL)[:2], rank(series, rest)[0]
        assert after == (before[1] if before[0] == POOL[0] else before[0])


class Refusing(ScorerServiceServicer):
    """A scorer of another version, which refuses every batch as a whole."""

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        raise InvalidRequestError([FieldViolation("quote", "is refused")])

    async def ScoreStream(
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Any
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        async for _ in request_iterator:
            raise InvalidRequestError([FieldViolation("quotes", "has 250 items; 1 to 100 are allowed")])
        yield pb.ScoreStreamResponse()


async def test_a_refused_batch_waits_and_is_not_taken_for_invalid_quotes() -> None:
    async def build(lifetime: Lifetime) -> Sequence[Mount]:
        service = pb.DESCRIPTOR.services_by_name["ScorerService"]
        return [Mount(add_ScorerServiceServicer_to_server, Refusing(), service)]  # type: ignore[abstract]

    async with served("scorer", ServerSettings(), build) as server:
        pool = WarmPool([server.address], ClientSettings())
        results = await pool.score([quote(0), quote(1)], {})
        assert [type(result) for result in results] == [DependencyUnavailableError] * 2
        await pool.close()


async def test_an_unreachable_scorer_rests_while_others_are_there() -> None:
    pool = WarmPool(["127.0.0.1:1", "127.0.0.1:2"], ClientSettings(rpc_timeout_seconds=2))
    series = quote(0).series
    first = pool.route(series)
    (result,) = await pool.score([quote(0)], {})
    assert isinstance(result, DependencyUnavailableError)
    assert pool.route(series) != first
    await pool.close()
