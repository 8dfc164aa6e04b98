"""The bundled tape: daily bars of AAPL, FB, GOOG, IBM and MSFT, 2000-2013, unadjusted, public domain."""

import importlib

import numpy as np

from services.archive.bars import Bars, causal_split_ratio
from services.domain.errors import NotConfiguredError
from services.domain.quote import DAY_SECONDS

LOCATION = "bokeh"
SOURCE = "quandl_wiki"
SYMBOLS = ("AAPL", "FB", "GOOG", "IBM", "MSFT")


def check_installed() -> None:
    """Raises: NotConfiguredError when the package that holds the tape is missing."""
    try:
        importlib.import_module("bokeh_sampledata")
    except ModuleNotFoundError as error:
        raise NotConfiguredError(
            "the bundled tape needs bokeh-sampledata", "install it with pip install -e ."
        ) from error


def read() -> list[Bars]:
    """All 12,154 bars of `bokeh-sampledata`, by symbol. Raises: NotConfiguredError when it is missing."""
    check_installed()
    from bokeh_sampledata import stocks  # parses its file on import

    history = []
    for symbol in SYMBOLS:
        columns = getattr(stocks, symbol)
        close = np.array(columns["close"], dtype=np.float64)
        history.append(
            Bars(
                symbol=symbol,
                interval_seconds=DAY_SECONDS,
                event_time=np.array(columns["date"], dtype="datetime64[us]"),
                open=np.array(columns["open"], dtype=np.float64),
                high=np.array(columns["high"], dtype=np.float64),
                low=np.array(columns["low"], dtype=np.float64),
                close=close,
                volume=np.array(columns["volume"], dtype=np.float64),
                split_ratio=causal_split_ratio(close, np.array(columns["adj_close"], dtype=np.float64)),
                currency="USD",
            )
        )
    return history
