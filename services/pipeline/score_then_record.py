"""Score, then record: the one path from quotes to durable scores, for dispatch and for a one-shot scorer."""

from collections.abc import Sequence

from services.domain.errors import InvalidRequestError, PredecessorFailedError, TapewatchError
from services.domain.quote import Quote, Series
from services.domain.score import Score, ScoredQuote
from services.pipeline.ports import QueuedQuote, Recorder, Scorer

Result = Score | TapewatchError


async def score_then_record(quotes: Sequence[Quote], scorer: Scorer, recorder: Recorder) -> list[Result]:
    """Score quotes and record the scores; quotes of one series come in order of event_time.

    The cursors are read first and afresh, because another dispatcher may have recorded since: a scorer whose state is
    not the gateway's rebuilds it. An equal quote that comes twice is scored once. After a quote that may be tried
    again, the later ones of its series are not recorded, so that order holds.

    Returns one result per quote, in order: the score, durable by then, or why there is none.
    Raises: DependencyUnavailableError when scorer or recorder cannot be reached; some scores may be durable already.
    """
    distinct = list({quote.quote_id: quote for quote in quotes}.values())
    if not distinct:
        return []
    cursors = await recorder.cursors(list({quote.series for quote in distinct}))
    results: dict[str, Result] = {}
    blocked: dict[Series, str] = {}
    to_record = []
    for quote, result in zip(distinct, await scorer.score(distinct, cursors), strict=True):
        if quote.series in blocked:
            result = PredecessorFailedError(blocked[quote.series])
        elif isinstance(result, Score):
            to_record.append(ScoredQuote(quote, result))
        elif not isinstance(result, InvalidRequestError):
            blocked[quote.series] = quote.quote_id
        results[quote.quote_id] = result
    if to_record:
        for item, outcome in zip(to_record, await recorder.record(to_record), strict=True):
            if isinstance(outcome, TapewatchError):
                results[item.quote.quote_id] = outcome
    return [results[quote.quote_id] for quote in quotes]


class ScoreThenRecord:
    """A `Carrier` by `score_then_record`: warm mode."""

    def __init__(self, scorer: Scorer, recorder: Recorder) -> None:
        self._scorer = scorer
        self._recorder = recorder

    async def carry(self, messages: Sequence[QueuedQuote]) -> list[Result]:
        """Score and record; one result per message."""
        return await score_then_record([message.quote for message in messages], self._scorer, self._recorder)
