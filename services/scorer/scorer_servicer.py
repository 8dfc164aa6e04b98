"""ScorerService over gRPC."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from services.domain.errors import FieldViolation, InvalidQuoteError, InvalidRequestError, TapewatchError
from services.domain.quote import Quote
from services.domain.score import Score
from services.runtime.errors import status_of
from services.runtime.read_ahead import read_ahead
from services.scorer.blocks import BlockProgress, BlockScoring, ScoredBlock
from services.scorer.convert import block_from_proto, scored_block_to_proto
from services.scorer.service import ScoringService, StreamProgress
from services.wire.checks import check_count
from services.wire.quote import cursors_from_proto, quote_from_proto, quotes_from_proto
from services.wire.score import score_to_proto
from tapewatch.market.v1 import quote_pb2
from tapewatch.scorer.v1 import block_pb2
from tapewatch.scorer.v1 import scorer_service_pb2 as pb
from tapewatch.scorer.v1.scorer_service_pb2_grpc import ScorerServiceServicer

_READ_AHEAD = 4
_READ_AHEAD_BLOCKS = 1
_BARS_LIMIT = 100_000


def _result(quote_id: str, result: Score | TapewatchError) -> pb.ScoreResult:
    if isinstance(result, Score):
        return pb.ScoreResult(quote_id=quote_id, score=score_to_proto(result))
    return pb.ScoreResult(quote_id=quote_id, error=status_of(result))


def _quote(message: quote_pb2.Quote, field: str) -> Quote:
    try:
        return quote_from_proto(message)
    except InvalidQuoteError as error:
        raise InvalidRequestError(
            [FieldViolation(f"{field}.{v.field}", v.description) for v in error.violations]
        ) from error


class ScorerServicer(ScorerServiceServicer):
    """Score, ScoreStream and ScoreBlocks."""

    def __init__(self, service: ScoringService, blocks: BlockScoring) -> None:
        self._service = service
        self._blocks = blocks

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        """Judge one quote by hand."""
        if not request.HasField("quote"):
            raise InvalidRequestError([FieldViolation("quote", "is required")])
        check_count("history", request.history, least=0)
        history = [_quote(message, f"history[{i}]") for i, message in enumerate(request.history)]
        score = await self._service.score_one(_quote(request.quote, "quote"), history)
        return pb.ScoreResponse(score=score_to_proto(score))

    async def ScoreStream(
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Any
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Judge quotes as they come. A reader of its own keeps taking requests while answers are being written."""
        progress = StreamProgress()
        async with aclosing(read_ahead(request_iterator, _READ_AHEAD)) as requests:
            async for request in requests:
                yield await self._answer(request, progress)

    async def _answer(self, request: pb.ScoreStreamRequest, progress: StreamProgress) -> pb.ScoreStreamResponse:
        check_count("quotes", request.quotes)
        formed = quotes_from_proto(request.quotes)
        quotes = [quote for quote in formed if isinstance(quote, Quote)]
        scored = iter(await self._service.score(quotes, cursors_from_proto(request.cursors), progress))
        return pb.ScoreStreamResponse(
            results=[
                _result(each.quote_id, next(scored)) if isinstance(each, Quote) else _result(message.quote_id, each)
                for message, each in zip(request.quotes, formed, strict=True)
            ]
        )

    async def ScoreBlocks(
        self, request_iterator: AsyncIterator[pb.ScoreBlocksRequest], context: Any
    ) -> AsyncIterator[pb.ScoreBlocksResponse]:
        """Judge bars in bulk."""
        progress = BlockProgress()
        async with aclosing(read_ahead(request_iterator, _READ_AHEAD_BLOCKS)) as requests:
            async for request in requests:
                yield await self._answer_blocks(request, progress)

    async def _answer_blocks(self, request: pb.ScoreBlocksRequest, progress: BlockProgress) -> pb.ScoreBlocksResponse:
        check_count("blocks", request.blocks)
        if (bars := sum(len(block.event_time_micros) for block in request.blocks)) > _BARS_LIMIT:
            raise InvalidRequestError([FieldViolation("blocks", f"have {bars:,} bars; {_BARS_LIMIT:,} are allowed")])
        results = []
        for message in request.blocks:
            result = pb.BlockResult(series=message.series)
            outcome = await self._score_block(message, progress)
            if isinstance(outcome, ScoredBlock):
                result.scored.CopyFrom(scored_block_to_proto(outcome))
            else:
                result.error.CopyFrom(status_of(outcome))
            results.append(result)
        return pb.ScoreBlocksResponse(results=results)

    async def _score_block(
        self, message: block_pb2.Block, progress: BlockProgress
    ) -> ScoredBlock | InvalidRequestError:
        try:
            block = block_from_proto(message)
        except InvalidRequestError as error:
            return error
        return await self._blocks.score(block, progress)
