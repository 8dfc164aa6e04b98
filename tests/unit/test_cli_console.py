"""What callers, files and services say reaches the terminal as it was said."""

import io

import pytest
from rich.table import Table

from services.cli.console import make_console
from services.cli.doctor import Finding, show
from services.cli.live_view import LiveView, Reading

HOSTILE = ("/tmp/[/x].csv", "[red]abc.csv", "pip install -e '.[aws]'", ":bug: [link=file:///]")


@pytest.mark.parametrize("words", HOSTILE)
def test_messages_and_cells_keep_their_brackets(words: str) -> None:
    out = io.StringIO()
    console = make_console(file=out, width=120)
    console.print(f"playing {words}", style="bold red")
    table = Table(words, title=words)
    table.add_row(words)
    console.print(table)
    assert out.getvalue().count(words) == 4


@pytest.mark.parametrize("words", HOSTILE)
def test_doctor_shows_details_as_they_are(words: str) -> None:
    out = io.StringIO()
    code = show([Finding("boto3", "off", words), Finding("model", "ok", words)], make_console(file=out, width=120))
    assert code == 0
    assert out.getvalue().count(words) == 2


@pytest.mark.parametrize("words", HOSTILE)
def test_the_live_screen_shows_its_title_as_it_is(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    out = io.StringIO()
    console = make_console(file=out, width=120)
    assert console.is_terminal
    with LiveView(console, f"tapewatch · {words} on tape run-1") as view:
        view.show(Reading(published=1, total=2))
    assert words in out.getvalue()
