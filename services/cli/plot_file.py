"""Where commands draw: pyplot, imported on use only, for a file of a kind that it can write."""

from pathlib import Path
from typing import Any

from services.domain.errors import FieldViolation, InvalidRequestError, NotConfiguredError


def open_pyplot(path: Path) -> Any:
    """pyplot, to draw into `path`.

    Raises: NotConfiguredError when matplotlib is not installed; InvalidRequestError when it writes no such file.
    """
    try:
        import matplotlib
    except ImportError:
        raise NotConfiguredError("the plot needs matplotlib", "install it with pip install -e '.[plot]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise InvalidRequestError([FieldViolation("plot", f"{path} ends in none of .{', .'.join(kinds)}")])
    return pyplot
