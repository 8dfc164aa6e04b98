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

_SECTOR_FUNDS = {
    "XLB": "LIN",
    "XLC": "GOOGL META NFLX DIS VZ CMCSA T TMUS",
    "XLE": "COP CVX XOM",
    "XLF": "JPM V MA PYPL AXP BAC BLK C GS MS PGR SCHW SPGI WFC",
    "XLI": "BA CAT DE GE HON LMT RTX UBER UNP UPS",
    "XLK": "AAPL MSFT NVDA AMD INTC ADBE CRM ACN AMAT AVGO CSCO IBM INTU KLAC LRCX MU NOW ORCL PANW PLTR QCOM TXN",
    "XLP": "PG KO PEP COST MO PM WMT",
    "XLU": "NEE",
    "XLV": "JNJ UNH PFE ABT TMO ABBV AMGN BMY DHR GILD ISRG LLY MDT MRK SYK VRTX",
    "XLY": "AMZN TSLA HD BKNG LOW MCD NKE SBUX TJX",
}

SECTOR_FUNDS: Final = {symbol: fund for fund, symbols in _SECTOR_FUNDS.items() for symbol in symbols.split()}
"""The fund of each large cap's sector in the S&P 500; BABA is in none of them. Maintained by hand."""

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
