"""What `train` and `evaluate` share on the command line: the bounds of options, and how data and errors are told."""

from collections.abc import Sequence
from typing import Final, NoReturn

import typer
from rich.console import Console

from services.domain.errors import InvalidRequestError, TapewatchError
from services.runtime.errors import exit_code_of
from services.training.sources import Tell

LARGEST_SEED: Final = 4_000_000
"""A training's seeds are a thousand times its own and a little more; NumPy and TensorFlow take 32 bits."""

LARGEST_MEMBERS: Final = 15
MOST_PASSES: Final = 800
"""Injections with a higher number are of other seeds: of stronger events, and of held-out bars."""

_OPTIONS = ("data", "calibration_data", "labels", "sectors")


def teller(console: Console, *, verbose: bool) -> Tell:
    """Prints what is told of the data, each sentence on one line; with `verbose` also all that is only counted."""

    def tell(words: str, counted: Sequence[str]) -> None:
        hint = " (--verbose lists them)" if counted and not verbose else ""
        for line in (f"{words}{hint}", *(f"  {line}" for line in counted if verbose)):
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    return tell


def refused(console: Console, error: TapewatchError) -> NoReturn:
    """Prints an error, with the option that was given what it is about, and leaves with its exit code."""
    message = error.message
    if isinstance(error, InvalidRequestError):
        message = "; ".join(
            f"{f'--{v.field}'.replace('_', '-') if v.field in _OPTIONS else v.field}: {v.description}"
            for v in error.violations
        )
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code_of(error)) from error
