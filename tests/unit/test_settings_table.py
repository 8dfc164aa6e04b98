"""The README's configuration table is the settings classes' own."""

from pathlib import Path

from services.cli.settings_table import table

README = Path(__file__).resolve().parents[2] / "README.md"


def test_readme_has_the_table_that_the_command_prints() -> None:
    text = README.read_text()
    between = text.partition("<!-- settings:begin -->")[2].partition("<!-- settings:end -->")[0]
    assert between.strip() == table(), "paste the output of `tapewatch settings` between the marks"


def test_what_only_the_lambda_reads_is_there_too() -> None:
    (row,) = (row for row in table().splitlines() if row.startswith("| `TOKEN_SECRET_ARN` |"))
    assert row.split(" | ")[2] == "function"


def test_every_setting_is_described() -> None:
    for row in table().splitlines()[2:]:
        name, _, who, what = (cell.strip() for cell in row.strip("|").split(" | "))
        assert name.strip("|` ")
        assert who
        assert len(what.strip("| ")) > 5, row
