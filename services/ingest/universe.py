"""Which symbols are polled when nobody says."""

from typing import Final

_DEFAULT = (
    "AAPL GOOGL MSFT AMZN TSLA NVDA META NFLX AMD INTC BABA JPM JNJ V PG UNH HD MA PYPL DIS VZ ADBE CRM CMCSA PFE KO "
    "PEP ABT TMO"
)
_FURTHER_LARGE_CAPS = (
    "ABBV ACN AMAT AMGN AVGO AXP BA BAC BKNG BLK BMY C CAT COP COST CSCO CVX DE DHR GE GILD GS HON IBM INTU ISRG KLAC "
    "LIN LLY LMT LOW LRCX MCD MDT MO MRK MS MU NEE NKE NOW ORCL PANW PGR PLTR PM QCOM RTX SBUX SCHW SPGI SYK T TJX "
    "TMUS TXN UBER UNP UPS VRTX WFC WMT XOM"
)

DEFAULT: Final = tuple(_DEFAULT.split())
"""The 29 symbols of the system that this one replaces."""

LARGE_CAPS: Final = (*DEFAULT, *_FURTHER_LARGE_CAPS.split())
"""Well-known US large caps under their present tickers; maintained by hand."""

NAMED: Final = {"default": DEFAULT, "large_caps": LARGE_CAPS}


def symbols_of(text: str) -> tuple[str, ...]:
    """The symbols that a setting names: a list's name, or tickers with commas between them.

    >>> symbols_of("aapl, msft")
    ('AAPL', 'MSFT')
    >>> len(symbols_of("default"))
    29
    """
    if text.strip().lower() in NAMED:
        return NAMED[text.strip().lower()]
    return tuple(dict.fromkeys(part.strip().upper() for part in text.split(",") if part.strip()))
