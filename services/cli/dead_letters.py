"""Looking into the queue from the command line."""

import sys

from rich.console import Console
from rich.table import Table

from services.domain.errors import TapewatchError
from services.queue.open import open_queue
from services.queue.settings import QueueSettings
from services.runtime.errors import exit_code_of


def show(limit: int, console: Console) -> int:
    """Print dead letters with their reasons. The exit code."""
    try:
        queue = open_queue(QueueSettings())
        letters = queue.list_dead_letters(limit)
        queue.close()
    except TapewatchError as error:
        print(f"tapewatch dispatch dead-letters: {error.message}", file=sys.stderr)
        return exit_code_of(error)
    table = Table("group", "reason", "message")
    for letter in letters:
        table.add_row(letter.group_id, letter.reason, letter.body)
    console.print(table if letters else "no dead letters")
    return 0
