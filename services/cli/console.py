"""Where the command prints: what callers, files and services say is shown as it is, never read as markup."""

from typing import TextIO

from rich.console import Console


def make_console(*, stderr: bool = False, file: TextIO | None = None, width: int | None = None) -> Console:
    """A console that takes brackets and colons for themselves; styles come as arguments or as `Text`."""
    return Console(stderr=stderr, file=file, width=width, markup=False, emoji=False)
