"""What the command's exit codes mean."""

from typing import Final

EXIT_FAILED: Final = 1
"""It ran and did not succeed, or the server asked is not serving."""

EXIT_MISCONFIGURED: Final = 2
"""A setting or an argument is wrong; the message names it."""

EXIT_FAULT: Final = 70
"""It met a fault of its own; the log has it."""

EXIT_INTERRUPTED: Final = 130
"""Stopped by Ctrl-C."""
