"""Publish quotes, score one by hand, watch alerts, triage one and read its evidence, against a running mesh.

tapewatch up                                   # in one terminal
python clients/python/examples/watch_and_triage.py
"""

import argparse
import uuid
from datetime import UTC, datetime, timedelta
from random import Random

from tapewatch_client import AlertFilter, AlertState, Client, Quote


def quiet_bars(tape: str, symbol: str, count: int) -> list[Quote]:
    """A random walk of minute bars."""
    random = Random(7)  # noqa: S311
    start = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
    price = 100.0
    bars = []
    for i in range(count):
        opened, price = price, price * (1 + random.gauss(0, 0.0008))
        spread = abs(random.gauss(0, 0.0004)) * price
        bars.append(
            Quote(
                tape=tape,
                source="example",
                symbol=symbol,
                event_time=start + timedelta(minutes=i),
                open=opened,
                high=max(opened, price) + spread,
                low=min(opened, price) - spread,
                close=price,
                volume=float(random.randint(8_000, 12_000)),
                split_ratio=1.0,
            )
        )
    return bars


def pumped(after: Quote) -> list[Quote]:
    """Five minutes in which volume, then price, leave the usual far behind."""
    assert after.event_time is not None
    bars = []
    price = after.close
    for i, (volume, step) in enumerate(((60_000, 0.004), (150_000, 0.02), (300_000, 0.04), (250_000, 0.03)), 1):
        opened, price = price, price * (1 + step)
        bars.append(
            Quote(
                tape=after.tape,
                source=after.source,
                symbol=after.symbol,
                event_time=after.event_time + timedelta(minutes=i),
                open=opened,
                high=price * 1.002,
                low=opened * 0.999,
                close=price,
                volume=float(volume),
                split_ratio=1.0,
            )
        )
    return bars


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateway", default="127.0.0.1:50054")
    parser.add_argument("--ingest", default="127.0.0.1:50052")
    parser.add_argument("--scorer", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    tape = f"example-{uuid.uuid4().hex[:8]}"
    with Client(arguments.gateway, arguments.ingest, arguments.scorer) as tapewatch:
        print(f"model {tapewatch.model().version}")
        history = quiet_bars(tape, "ACME", 90)
        quotes = history + pumped(history[-1])
        by_hand = tapewatch.score(quotes[-2], quotes[:-2])
        print(f"scored by hand: {by_hand.ensemble:.3f} {[reason.text for reason in by_hand.reasons]}")
        durable = sum(result.acknowledgement is not None for result in tapewatch.publish(quotes))
        print(f"published {durable} quotes on tape {tape}")
        change = next(tapewatch.watch_alerts(AlertFilter(tape=tape), from_start=True))
        assert change.alert is not None
        print(f"alert: {change.alert.summary}")
        alert = next(tapewatch.list_alerts(AlertFilter(tape=tape)))
        seen = tapewatch.triage(alert, "example", AlertState.ACKNOWLEDGED, comment="seen")
        evidence = tapewatch.evidence(seen.alert_id)
        print(f"{seen.state.name}; evidence: {len(evidence.quotes)} quotes, {len(evidence.events)} audit events")


if __name__ == "__main__":
    main()
