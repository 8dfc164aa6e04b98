"""Without a terminal, `run` and `up` print in lines what the live screen shows."""

import io
from pathlib import Path

from rich.console import Console

from services.cli.console import make_console
from services.cli.live_view import LiveView, Reading
from services.cli.run_state import RunState


def printed(out: io.StringIO) -> list[str]:
    return [line for line in out.getvalue().splitlines() if line.startswith("scored ")]


def test_every_fact_of_the_screen_is_in_the_line() -> None:
    out = io.StringIO()
    with LiveView(make_console(file=out, width=40), "title") as view:
        view.show_troubles({"scorer": "is down; it will be started again", "gateway": "is not serving: the store"})
        view.show(
            Reading(
                published=1_200,
                total=5_000,
                backlog=200,
                dead_letters=3,
                latency_seconds=1.394,
                position="2013-03-01",
                stale=["AAPL", "MSFT"],
            )
        )
    assert printed(out)[-1] == (
        "scored 1,000 of 5,000, 0 quotes/s · published 1,200 · waiting 200 · freshness 1,394 ms from ingest to store · "
        "tape at 2013-03-01 · alerts 0 · dead letters 3 · scorer is down; it will be started again · "
        "gateway is not serving: the store · silent: AAPL, MSFT"
    )


def test_troubles_are_told_while_no_reading_comes() -> None:
    out = io.StringIO()
    now = 1_000.0
    view = LiveView(make_console(file=out, width=200), "title", lambda: now)
    view.show(Reading(published=1))
    for seconds, troubles in ((1, {"ingest": "is down"}), (2.5, {"ingest": "is down"}), (3, {}), (5, {})):
        now = 1_000.0 + seconds
        view.show_troubles(troubles)
    assert [line.rpartition(" · ")[2] for line in printed(out)] == ["alerts 0", "ingest is down", "alerts 0"]


def test_the_screen_shows_troubles() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, force_terminal=True, width=120), "title") as view:
        view.show(Reading(published=3))
        view.show_troubles({"gateway": "is not serving: the store: it is locked"})
    assert "gateway is not serving: the store: it is locked" in out.getvalue()


def test_an_unknown_total_is_not_told() -> None:
    out = io.StringIO()
    with LiveView(make_console(file=out, width=200), "title") as view:
        view.show(Reading(published=3))
    assert printed(out) == ["scored 3, 0 quotes/s · published 3 · waiting 0 · alerts 0"]


def test_lines_come_at_intervals_and_seldom_when_nothing_changes() -> None:
    out = io.StringIO()
    now = 1_000.0
    view = LiveView(make_console(file=out, width=200), "title", lambda: now)
    for seconds, published in ((0, 1), (1, 2), (2, 3), (10, 3), (20, 3), (79, 3), (81, 3)):
        now = 1_000.0 + seconds
        view.show(Reading(published=published))
    counts = [line.split(",")[0] for line in printed(out)]
    assert counts == ["scored 1", "scored 3", "scored 3", "scored 3"]
    rates = [line.split(", ")[1].split(" ")[0] for line in printed(out)]
    assert rates == ["0", "1", "0", "0"], "the rate falls to nothing, then a line a minute says that all is as it was"


def test_messages_of_other_tapes_take_nothing_back() -> None:
    out = io.StringIO()
    now = 1_000.0
    view = LiveView(make_console(file=out, width=200), "title", lambda: now)
    for published, backlog in ((500, 300), (600, 500), (700, 450), (0, 450)):
        now += 2.0
        view.show(Reading(published=published, total=1_000, backlog=backlog))
    assert [line.split(" quotes/s")[0] for line in printed(out)] == [
        "scored 200 of 1,000, 0",
        "scored 200 of 1,000, 0",
        "scored 250 of 1,000, 25",
        "scored 250 of 1,000, 0",
    ]
    view.show(Reading(published=3))
    now += 2.0
    view.show(Reading(published=1))
    assert printed(out)[-1].startswith("scored 1, 0 quotes/s"), "ingest counts anew after a restart"


def test_the_last_reading_is_always_printed() -> None:
    out = io.StringIO()
    with LiveView(make_console(file=out, width=200), "title") as view:
        view.show(Reading(published=1))
        view.show(Reading(published=7))
    assert [line.split(",")[0] for line in printed(out)] == ["scored 1", "scored 7"]


def test_a_stopped_run_goes_on_and_a_finished_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    state, goes_on = RunState.load_or_new(path, "bokeh", ["FB"])
    assert not goes_on
    state.save(path)
    assert RunState.load_or_new(path, "bokeh", ["FB"]) == (state, True)
    assert RunState.load_or_new(path, "bokeh", [])[1] is False
    state.finished = True
    state.save(path)
    assert RunState.load_or_new(path, "bokeh", ["FB"])[1] is False
