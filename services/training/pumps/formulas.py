"""What each column of a pump model's input is, as a formula: a model's file is described by them.

w is the chunk's own value, floor a tenth of the usual of a bar of 5 s with trades, usual the root mean square of a
chunk's move over the day before, ln the natural logarithm; prices are logarithms, so that their differences are
relative moves. Quantities are sums over the chunk.
"""

import re

from services.domain.feature_definitions import FEATURES
from services.training.pumps.recordings import PAST_PREFIX

_QUANTITIES = {
    "volume": "traded volume in the quote currency",
    "active": "bars of 5 s with trades",
    "path": "high-low path of the price",
    "rise": "rises of the high over the close before",
    "bought": "volume that takers bought",
    "sold": "volume that takers sold",
    "trades": "trades",
    "buys": "trades that takers bought in",
    "rush": "rush orders: milliseconds with more than one buy",
}

_OF_A_QUANTITY = {
    r"usual": "ln(mean a chunk over the 70 hours before)",
    r"now": "ln(1 + w / (10 floor))",
    r"mean_(\d+)": "ln((w + floor) / (mean a chunk over the {0} s before + floor))",
    r"peak_(\d+)": "ln((w + floor) / (largest sum of as many bars in the {0} s before + floor))",
    r"sum_(\d+)": "ln((sum of {0} chunks with this one + floor) / (their mean over the day before + floor))",
    r"share_(\d+)": "w / sum of {0} chunks with this one",
    r"burst": "largest bar of 5 s / w",
    r"late": "last bar of 5 s / w",
    r"hour_of_day": "ln((sum of the hour + floor) / (hourly mean of 2 hours around it on the 2 days before + floor))",
}

_OF_PRICE = {
    r"usual_move": "ln(usual)",
    r"tick": "ln(1e-8 / close): the smallest step of the price, relative",
    r"move": "close - close before the chunk",
    r"move_z": "(close - close before the chunk) / usual",
    r"gap_z": "(open - close before the chunk) / usual",
    r"top_z": "(high - close before the chunk) / usual",
    r"top": "high - close before the chunk",
    r"bottom_z": "(low - close before the chunk) / usual",
    r"close_location": "(close - low) / (high - low) - 1/2",
    r"last_step_z": "last move of 5 s / usual",
    r"largest_step_z": "largest move of 5 s / usual",
    r"move_(\d+)_z": "move over {0} chunks with this one / (usual x sqrt({0}))",
    r"before_(\d+)_z": "move over {0} chunks before this one / (usual x sqrt({0}))",
    r"before_(\d+)": "move over the {0} s before the chunk",
    r"over_high_(\d+)": "high - highest of the {0} s before",
    r"over_low_(\d+)": "close before the chunk - lowest of the {0} s before",
    r"move_over_peak_(\d+)_z": "(move - largest move of a chunk in the {0} s before) / usual",
    r"impact": "ln((path + 1e-4) / (volume + 1e-4)), after Amihud 2002",
    r"impact_ratio": "impact - impact over the day before",
    r"quiet": "ln(1 + bars of 5 s since the last trade before the chunk)",
    r"buy_share_(\d+)": "bought / traded volume of {0} chunks with this one",
    r"buy_share_day": "bought / traded volume over the day before",
    r"buys_share": "trades that takers bought in / trades",
    r"trade_size": "ln((volume + 1e-6) / trades)",
    r"trade_size_ratio": "trade_size - the same over the day before",
    r"rush_a_buy": "rush orders / trades that takers bought in",
    r"net_bought_ratio": "(2 bought - volume) / (mean volume a chunk over the day before + 1e-6)",
    r"(day|hour)_(sin|cos)": "{1} of the time within the {0}",
    r"round_(\d+)": "seconds from the nearest multiple of {0} s to the chunk's begin",
}

_OF_THE_STUDY = {
    "std_rush_order": "rush orders, moving standard deviation, percent change",
    "avg_rush_order": "rush orders, moving mean, percent change",
    "std_trades": "trades, moving standard deviation, percent change",
    "std_volume": "volume, moving standard deviation, percent change",
    "avg_volume": "volume, moving mean, percent change",
    "std_price": "price, moving standard deviation, percent change",
    "avg_price": "price, moving mean, percent change",
    "avg_price_max": "highest price, moving mean, percent change",
    "hour_sin": "sin of the hour of the day",
    "hour_cos": "cos of the hour of the day",
    "minute_sin": "sin of the minute of the hour",
    "minute_cos": "cos of the minute of the hour",
}
_STUDY = " (La Morgia et al. 2020)"

_AGAINST_CHUNKS = {
    r"(.+)_before": "the chunk before: ",
    r"(.+)_over_highest_of_(\d+)": "less the highest of the {1} chunks before: ",
    r"(.+)_highest_of_(\d+)": "the highest of the {1} chunks before: ",
}


def formula(name: str) -> str:
    """The formula of a column. Raises: KeyError when no column has this name."""
    for quantity, words in _QUANTITIES.items():
        if name.startswith(f"{quantity}_"):
            found = _matched(_OF_A_QUANTITY, name.removeprefix(f"{quantity}_"))
            if found:
                return f"{words}: {found}"
    found = _matched(_OF_PRICE, name)
    if found:
        return found
    if name.startswith(PAST_PREFIX):
        return _against_chunks(name.removeprefix(PAST_PREFIX))
    return _OF_THE_STUDY[name] + _STUDY


def _against_chunks(name: str) -> str:
    for pattern, words in _AGAINST_CHUNKS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return words.format(*match.groups()) + _own(match.group(1))
    return _own(name)


def _own(name: str) -> str:
    by_name = {feature.name: feature.description for feature in FEATURES}
    return by_name[name] if name in by_name else _OF_THE_STUDY[name] + _STUDY


def _matched(patterns: dict[str, str], name: str) -> str | None:
    for pattern, words in patterns.items():
        match = re.fullmatch(pattern, name)
        if match:
            return words.format(*match.groups())
    return None
