"""How far replays and sources got, in a DynamoDB table, which outlives the task that ingest runs in.

Items: `replay` / tape with the replay as JSON, and `position` / series with the newest published event_time. While a
new task takes over, two servers save what each has done: the later save stays, and what is published again for it is
known to the queue and to the gateway.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from services.domain.quote import Series
from services.ingest.ports import Replay, ReplayState, replay_from_json, replay_to_json
from services.runtime.dynamodb_table import SORT, DynamoDbTable, Item, key

_REPLAYS = "replay"
_POSITIONS = "position"

PROGRESS_PERMISSIONS: Final = ("dynamodb:GetItem", "dynamodb:Query", "dynamodb:PutItem")
"""What `DynamoDbProgress` needs of its table."""


class DynamoDbProgress:
    """`Progress` in a table with the keys of `DynamoDbTable`."""

    def __init__(self, table: DynamoDbTable) -> None:
        self._table = table

    def check(self) -> None:
        """Ask for an item that is not there."""
        self._table.get(key(_REPLAYS, "-"))

    def save(self, replay: Replay) -> None:
        """One item."""
        text = json.dumps(replay_to_json(replay), separators=(",", ":"))
        self._table.put({**key(_REPLAYS, replay.tape), "replay": {"S": text}})

    def find(self, tape: str) -> Replay | None:
        """By its key."""
        item = self._table.get(key(_REPLAYS, tape)) if tape else None
        return None if item is None else _replay(item)

    def running(self) -> list[Replay]:
        """Of all of the partition, which is asked for once, at start."""
        replays = (_replay(item) for page in self._table.query(_REPLAYS) for item in page)
        return [replay for replay in replays if replay.state is ReplayState.RUNNING]

    def advance(self, event_times: Mapping[Series, datetime]) -> None:
        """An item for each series, several at once."""
        self._table.put_many(
            [
                {
                    **key(_POSITIONS, series.key),
                    "series": {"S": json.dumps([series.tape, series.source, series.symbol, series.interval_seconds])},
                    "event_time": {"S": moment.isoformat()},
                }
                for series, moment in event_times.items()
            ]
        )

    def advanced(self) -> dict[Series, datetime]:
        """All of the partition, asked for once, at start."""
        return {
            Series(*json.loads(item["series"]["S"])): datetime.fromisoformat(item["event_time"]["S"])
            for page in self._table.query(_POSITIONS)
            for item in page
        }

    def close(self) -> None:
        """Release connections."""
        self._table.close()


def _replay(item: Item) -> Replay:
    return replay_from_json(json.loads(item["replay"]["S"]) | {"tape": item[SORT]["S"]})
