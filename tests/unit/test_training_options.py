"""The options of `tapewatch train` and `tapewatch evaluate`, and what both print of their data."""

import io

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from services.domain.errors import FieldViolation, InvalidRequestError, TapewatchError
from services.training import evaluate, train
from services.training.console import refused, teller

LONG = "bars.parquet: " + "a sentence that is longer than eighty columns " * 4 + "ends here"


@pytest.mark.parametrize(
    ("app", "option", "value"),
    [
        (train.app, "--seed", "-1"),
        (train.app, "--seed", "99999999999999999999"),
        (train.app, "--members", "16"),
        (evaluate.app, "--seed", "-1"),
        (evaluate.app, "--seed", "99999999999999999999"),
        (evaluate.app, "--epochs", "0"),
        (evaluate.app, "--passes", "0"),
        (evaluate.app, "--passes", "801"),
        (evaluate.app, "--members", "0"),
        (evaluate.app, "--members", "16"),
    ],
)
def test_a_number_that_no_training_can_have_is_refused_by_its_option(app: typer.Typer, option: str, value: str) -> None:
    result = CliRunner().invoke(app, ["--data", "/nowhere", option, value], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': Input should be " in result.output


def test_help_names_the_lake() -> None:
    said = " ".join(CliRunner().invoke(train.app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "a lake (folder or s3://…, or one tape of it, LAKE#TAPE)" in said


def printed(verbose: bool) -> list[str]:
    out = io.StringIO()
    tell = teller(Console(file=out, width=80), verbose=verbose)
    tell(LONG, ())
    tell('and 2 more of the kind "is late"', ["bars.csv, row 4: A is late", "bars.csv, row 5: A is late"])
    return out.getvalue().splitlines()


def test_what_is_only_counted_is_printed_on_demand() -> None:
    counted = 'and 2 more of the kind "is late"'
    assert printed(verbose=False) == [LONG, f"{counted} (--verbose lists them)"]
    assert printed(verbose=True) == [LONG, counted, "  bars.csv, row 4: A is late", "  bars.csv, row 5: A is late"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InvalidRequestError([FieldViolation("calibration_data", LONG)]), f"--calibration-data: {LONG}"),
        (InvalidRequestError([FieldViolation("data", LONG)]), f"--data: {LONG}"),
        (TapewatchError(LONG), LONG),
    ],
)
def test_an_error_is_one_line_that_names_the_option(error: TapewatchError, line: str) -> None:
    out = io.StringIO()
    with pytest.raises(typer.Exit) as left:
        refused(Console(file=out, width=80), error)
    assert left.value.exit_code == 2
    assert out.getvalue() == line + "\n"
