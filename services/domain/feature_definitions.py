"""What the model sees of a bar: the names, formulas, units and words of its features.

Notation: bars of one series, split-adjusted inside the window; t is the bar judged, "history" the up to 60 bars before
it. C, O, H, L, V are close, open, high, low, volume; r = ln(C[t] / C[t-1]). f = sqrt(max(1, elapsed / (4 x the usual
time between bars))) stretches what is usual over nights and halts and is 1 within a session and over a weekend of daily
bars. sigma is the robust deviation of r / f over the history (1.4826 x median |r / f|, at least 0.63 x its mean and
1 basis point), so one jump in the history does not hide the next. e = r - beta x ln(1 + benchmark return); beta is the
slope of r (within 5 f sigma) on the benchmark through the origin over the history, a third of the way drawn to 1 (Blume
1971) and within -1 to 4; 1 with fewer than 20 benchmark returns. A missing benchmark counts as flat, as busy as usual.
u = e - gamma x s, s = ln((1 + return of the peers) / (1 + benchmark return)), so u is what neither market nor sector
explain; gamma is the slope of e on s as beta is of r, drawn to 0.5 and within -1 to 3; 0.5 with fewer than 20 returns
of peers. Missing peers count as moving with the market, and as busy as it.

A value that cannot be known (no history, a missing volume, a feed without trade counts) is the feature's neutral
value, 0, unless said otherwise. Every feature is unchanged by scaling all prices and by scaling all volumes.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import Enum
from math import exp

WINDOW = 61
"""Bars that the features look on: the bar judged and 60 before it."""

LAGS = 9
"""Bars before the one judged that the model sees one by one, beside what it sees of them together."""

FORMULA_VERSION = 5
"""Rises with every change of a formula in `services.domain.features`; a golden test holds the values."""

BAR_FIELDS = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "split_ratio",
    "trades",
    "buy_volume",
    "benchmark_return",
    "benchmark_volume_ratio",
    "peer_return",
    "peer_volume_ratio",
    "event_seconds",
    "interval_seconds",
)
"""Raw inputs of one bar, all float64; NaN is missing. `event_seconds` counts from 1970 in UTC."""


class Unit(Enum):
    """How a feature's value is written."""

    DEVIATIONS = "robust deviations"
    STANDARD_DEVIATIONS = "standard deviations"
    LOG_RATIO = "natural logarithm of a ratio"
    SHARE = "share, -1 to 1"
    BARS = "bars"
    LOG_PERCENT = "natural logarithm of a percentage"
    LOG_MINUTES = "natural logarithm of minutes"

    def words(self, value: float) -> str:
        """The value as an analyst reads it.

        >>> Unit.LOG_RATIO.words(2.639), Unit.DEVIATIONS.words(-3.21), Unit.SHARE.words(0.7)
        ('14.0x', '-3.2', '+70 %')
        """
        if self in (Unit.DEVIATIONS, Unit.STANDARD_DEVIATIONS):
            return f"{value:+.1f}"
        if self is Unit.LOG_RATIO:
            ratio = exp(value)
            return f"{ratio:.1f}x" if ratio >= 0.95 else f"{ratio:.2f}x"
        if self is Unit.SHARE:
            return f"{100 * value:+.0f} %"
        if self is Unit.BARS:
            return f"{value:.0f}"
        if self is Unit.LOG_PERCENT:
            return f"{exp(value):.2f} %"
        return f"{exp(value):.1f}"


@dataclass(frozen=True, slots=True)
class FeatureDefinition:
    """One input of the model.

    `phrase` says it in words with `{value}` for the value; `description` is formula and source; `usual` is the rough
    range on normal bars (the model's metadata holds the measured one, by bar length). `optional` is one that is neutral
    on every bar of a feed without the benchmark, peers, trade counts or takers' side that it is made of.
    """

    name: str
    unit: Unit
    phrase: str
    description: str
    usual: tuple[float, float]
    optional: bool = False


_D, _SD, _L, _S = Unit.DEVIATIONS, Unit.STANDARD_DEVIATIONS, Unit.LOG_RATIO, Unit.SHARE
_ROBUST = "robust z-score after Iglewicz and Hoaglin 1993"


def lagged(name: str, lag: int) -> str:
    """The name of a feature of the bar that is `lag` bars before the one judged."""
    return f"{name}_lag_{lag}"


_LAGGED = (
    ("peer_relative_return_standard_z", "price change beyond the peers'", "u / f", (-2.0, 2.0)),
    ("body_standard_z", "move from open to close", "ln(C / O)", (-2.0, 2.0)),
    ("upper_shadow_standard_z", "fall from the high", "ln(H / max(O, C))", (0.0, 1.2)),
    ("lower_shadow_standard_z", "rise from the low", "ln(min(O, C) / L)", (0.0, 1.2)),
    ("volume_standard_z", "volume", "(ln V - mean of the history)", (-2.0, 2.0)),
)


def _lags() -> tuple[FeatureDefinition, ...]:
    """The course of the last bars, bar by bar: an event of several bars is told from one jump by it."""
    return tuple(
        FeatureDefinition(
            lagged(name, lag),
            _SD,
            f"{words} {lag} bar{'s' if lag > 1 else ''} before {{value}} standard deviations",
            f"{formula} of bar t-{lag} / standard deviation of {'ln V' if name.startswith('volume') else 'u / f'} over "
            "the history of bar t",
            usual,
        )
        for name, words, formula, usual in _LAGGED
        for lag in range(1, LAGS + 1)
    )


FEATURES = (
    FeatureDefinition(
        "return_z", _D, "price change {value} robust deviations", f"r / (f sigma); {_ROBUST}", (-2.2, 2.2)
    ),
    FeatureDefinition(
        "return_standard_z",
        _SD,
        "price change {value} standard deviations",
        "r / f / standard deviation of r / f over the history (at least 1 basis point): beside return_z, it tells "
        "a series that often jumps, or moves in steps of its tick, from a smooth one",
        (-2.0, 2.0),
    ),
    FeatureDefinition(
        "relative_return_standard_z",
        _SD,
        "price change beyond the benchmark's {value} standard deviations",
        "as return_standard_z of e",
        (-2.0, 2.0),
    ),
    FeatureDefinition(
        "relative_return_z",
        _D,
        "price change beyond the benchmark's {value} robust deviations",
        "e / (f sigma of e), e = r - beta x benchmark return; market-model residual of event studies (Brown and Warner "
        "1985); return_z where the feed has no benchmark",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "relative_runup_3_z",
        _D,
        "price change beyond the benchmark's over 3 bars {value} robust deviations",
        "sum of e over 3 bars / (sigma of e x sqrt(sum of f^2)); runup_3_z where the feed has no benchmark",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "relative_runup_10_z",
        _D,
        "price change beyond the benchmark's over 10 bars {value} robust deviations",
        "as relative_runup_3_z over 10 bars",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "relative_return_over_past_extreme",
        _L,
        "price change beyond the benchmark's {value} the largest of the 60 bars before",
        "ln(|e / f| / max |e / f| of the history), -3 to 4; return_over_past_extreme where the feed has no benchmark",
        (-3.0, -0.2),
    ),
    FeatureDefinition(
        "relative_volatility_log_ratio",
        _L,
        "usual move beyond the benchmark's {value} the usual move",
        "ln(sigma of e / sigma): what the benchmark leaves unexplained",
        (-0.5, 0.1),
        optional=True,
    ),
    FeatureDefinition(
        "peer_relative_return_standard_z",
        _SD,
        "price change beyond the peers' {value} standard deviations",
        "as return_standard_z of u",
        (-2.0, 2.0),
    ),
    FeatureDefinition(
        "peer_relative_return_z",
        _D,
        "price change beyond the peers' {value} robust deviations",
        "u / (f sigma of u); what neither the market nor the peers explain (peer groups after Bolton and Hand 2001; of "
        "stocks Kim and Sohn 2012); relative_return_z where the feed has no peers",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "peer_relative_runup_3_z",
        _D,
        "price change beyond the peers' over 3 bars {value} robust deviations",
        "as relative_runup_3_z of u",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "peer_relative_runup_10_z",
        _D,
        "price change beyond the peers' over 10 bars {value} robust deviations",
        "as relative_runup_10_z of u",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "peer_relative_return_over_past_extreme",
        _L,
        "price change beyond the peers' {value} the largest of the 60 bars before",
        "as relative_return_over_past_extreme of u",
        (-3.0, -0.2),
    ),
    FeatureDefinition(
        "peer_relative_volatility_log_ratio",
        _L,
        "usual move beyond the peers' {value} the usual move",
        "ln(sigma of u / sigma): what market and peers leave unexplained",
        (-0.7, 0.1),
        optional=True,
    ),
    FeatureDefinition(
        "peer_move_z",
        _D,
        "move with the peers beyond the market's {value} robust deviations",
        "gamma x s / (f sigma)",
        (-1.0, 1.0),
        optional=True,
    ),
    FeatureDefinition(
        "benchmark_move_z",
        _D,
        "move with the benchmark {value} robust deviations",
        "beta x benchmark return / (f sigma)",
        (-1.2, 1.2),
        optional=True,
    ),
    FeatureDefinition(
        "gap_z", _D, "opening gap {value} robust deviations", "ln(O[t] / C[t-1]) / (f sigma)", (-1.3, 1.3)
    ),
    FeatureDefinition(
        "body_z", _D, "move from open to close {value} robust deviations", "ln(C / O) / sigma", (-2.0, 2.0)
    ),
    FeatureDefinition(
        "range_z",
        _D,
        "high-low range {value} robust deviations",
        "(ln(H / L) - median of the history) / its robust deviation (at least sigma / 4); range as volatility after "
        "Parkinson 1980",
        (-1.3, 3.0),
    ),
    FeatureDefinition(
        "range_log_ratio",
        _L,
        "high-low range {value} its usual",
        "ln((ln(H / L) + sigma / 10) / (median of the history + sigma / 10))",
        (-0.9, 0.9),
    ),
    FeatureDefinition(
        "upper_shadow_z",
        _D,
        "fall from the bar's high {value} robust deviations",
        "ln(H / max(O, C)) / sigma",
        (0, 1.3),
    ),
    FeatureDefinition(
        "lower_shadow_z", _D, "rise from the bar's low {value} robust deviations", "ln(min(O, C) / L) / sigma", (0, 1.3)
    ),
    FeatureDefinition(
        "close_location",
        _S,
        "close at {value} between the bar's low (-100 %) and high (+100 %)",
        "((C - L) - (H - C)) / (H - L), 0 when H = L; after Chaikin's accumulation/distribution; displaced when the "
        "close is marked (Comerton-Forde and Putnins 2011)",
        (-0.95, 0.95),
    ),
    FeatureDefinition(
        "runup_3_z",
        _D,
        "price change over 3 bars {value} robust deviations",
        "ln(C[t] / C[t-3]) / (sigma sqrt(sum of f^2 over the 3 bars))",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "runup_5_z", _D, "price change over 5 bars {value} robust deviations", "as runup_3_z over 5 bars", (-2.2, 2.2)
    ),
    FeatureDefinition(
        "runup_10_z",
        _D,
        "price change over 10 bars {value} robust deviations",
        "as runup_3_z over 10 bars",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "runup_20_z",
        _D,
        "price change over 20 bars {value} robust deviations",
        "as runup_3_z over 20 bars",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "peak_reversal_3_z",
        _D,
        "rise and fall back within 3 bars {value} robust deviations",
        "min(ln(highest H of 3 bars / C[t-3]), ln(highest H / C[t])) / (sigma sqrt(sum of f^2)), not below 0",
        (0, 1.2),
    ),
    FeatureDefinition(
        "peak_reversal_10_z",
        _D,
        "rise and fall back within 10 bars {value} robust deviations",
        "as peak_reversal_3_z over 10 bars; the dump after the pump (La Morgia et al. 2020)",
        (0, 1.2),
    ),
    FeatureDefinition(
        "dip_recovery_3_z",
        _D,
        "fall and recovery within 3 bars {value} robust deviations",
        "min(ln(C[t-3] / lowest L of 3 bars), ln(C[t] / lowest L)) / (sigma sqrt(sum of f^2)), not below 0",
        (0, 1.2),
    ),
    FeatureDefinition(
        "dip_recovery_10_z",
        _D,
        "fall and recovery within 10 bars {value} robust deviations",
        "as dip_recovery_3_z over 10 bars",
        (0, 1.2),
    ),
    FeatureDefinition(
        "trend_share_10",
        _S,
        "share of rising over falling bars in the last 10 {value}",
        "mean of sign(r) over 10 bars",
        (-0.6, 0.6),
    ),
    FeatureDefinition(
        "efficiency_10",
        _S,
        "net over total movement of the last 10 bars {value}",
        "sum of r / sum of |r| over 10 bars; Kaufman's efficiency ratio, with sign",
        (-0.65, 0.65),
    ),
    FeatureDefinition(
        "largest_step_share_10",
        _S,
        "largest step's share of the last 10 bars' movement {value}",
        "max |r| / sum of |r| over 10 bars: low in a ramp of many small steps",
        (0.15, 0.5),
    ),
    FeatureDefinition(
        "volatility_log_ratio",
        _L,
        "volatility of the last 5 bars {value} its usual",
        "ln(root mean square of r / f over 5 bars / sigma), -3 to 4",
        (-1.0, 1.0),
    ),
    FeatureDefinition(
        "usual_move",
        Unit.LOG_PERCENT,
        "usual move of a bar {value}",
        "ln(100 f sigma): how far a bar like this one usually moves, in percent; gives the other features their level",
        (-1.0, 1.8),
    ),
    FeatureDefinition(
        "past_extreme_z",
        _D,
        "largest move of the 60 bars before {value} robust deviations",
        "max |r / f| of the history / sigma: how jumpy the series is",
        (2.2, 9.0),
    ),
    FeatureDefinition(
        "return_over_past_extreme",
        _L,
        "price change {value} the largest of the 60 bars before",
        "ln(|r / f| / max |r / f| of the history), -3 to 4",
        (-3.0, -0.2),
    ),
    FeatureDefinition(
        "bars_since_jump",
        Unit.BARS,
        "{value} bars since the last jump",
        "bars since |r / f| > 5 sigma in the history, 60 when never",
        (4, 60),
    ),
    FeatureDefinition(
        "volume_log_ratio",
        _L,
        "volume {value} its usual",
        "ln(V / median V of the history); abnormal volume (Karpoff 1987)",
        (-0.9, 0.9),
    ),
    FeatureDefinition(
        "volume_z",
        _D,
        "volume {value} robust deviations",
        f"(ln V - median of the history) / its robust deviation (at least 0.2); {_ROBUST}",
        (-2.0, 2.2),
    ),
    FeatureDefinition(
        "volume_standard_z",
        _SD,
        "volume {value} standard deviations",
        "(ln V - mean of the history) / its standard deviation (at least 0.2)",
        (-2.0, 2.0),
    ),
    FeatureDefinition(
        "relative_volume_z",
        _D,
        "volume beyond the market's {value} robust deviations",
        "volume_z of ln V - ln(benchmark volume ratio): days on which everything is traded more do not count; volume_z "
        "where the feed has no benchmark volume",
        (-2.0, 2.2),
    ),
    FeatureDefinition(
        "benchmark_volume_log_ratio",
        _L,
        "the market's volume {value} its usual",
        "ln(benchmark volume ratio), -4 to 4; commonality in trading (Lo and Wang 2000)",
        (-0.4, 0.4),
        optional=True,
    ),
    FeatureDefinition(
        "peer_relative_volume_z",
        _D,
        "volume beyond the peers' {value} robust deviations",
        "volume_z of ln V - ln(peer volume ratio); relative_volume_z where the feed has no peers' volume",
        (-2.0, 2.2),
    ),
    FeatureDefinition(
        "peer_volume_log_ratio",
        _L,
        "the peers' volume beyond the market's {value} its usual",
        "ln(peer volume ratio / benchmark volume ratio), -4 to 4",
        (-0.6, 0.6),
        optional=True,
    ),
    FeatureDefinition(
        "volume_5_z",
        _D,
        "volume of the last 5 bars {value} robust deviations",
        "(mean of ln V over 5 bars - median of the history) / its robust deviation",
        (-1.4, 1.5),
    ),
    FeatureDefinition(
        "volume_before_z",
        _D,
        "volume of the 5 bars before {value} robust deviations",
        "as volume_5_z, over the 5 bars before this one: volume comes before price in a pump",
        (-1.4, 1.5),
    ),
    FeatureDefinition(
        "volume_over_past_extreme",
        _L,
        "volume {value} the largest of the 60 bars before",
        "ln(V / max V of the history)",
        (-2.5, -0.1),
    ),
    FeatureDefinition(
        "volume_price_divergence",
        _D,
        "volume beyond the price change {value} robust deviations",
        "volume_z - |return_z|: volume that the price does not follow",
        (-3.0, 1.8),
    ),
    FeatureDefinition(
        "impact_log_ratio",
        _L,
        "price change per share traded {value} its usual",
        "ln((|r / f| + sigma / 10) / V) - median of the history; Amihud's illiquidity (2002)",
        (-1.9, 1.7),
    ),
    FeatureDefinition(
        "signed_volume_10",
        _S,
        "volume on rising over falling bars of the last 10 {value}",
        "sum of sign(r) V / sum of V over 10 bars; Granville's on-balance volume",
        (-0.65, 0.65),
    ),
    FeatureDefinition(
        "missing_volume_share",
        _S,
        "share of the 60 bars before without volume {value}",
        "history bars with volume 0 or missing / history bars",
        (0, 0.1),
    ),
    FeatureDefinition(
        "unchanged_share",
        _S,
        "share of the 60 bars before without price change {value}",
        "history bars with r = 0 / history bars; zero returns as illiquidity (Lesmond et al. 1999)",
        (0, 0.1),
    ),
    FeatureDefinition(
        "session_volume_z",
        _D,
        "volume for this time of the session {value} robust deviations",
        "volume_z of ln V - session profile of ln V (`session_profile`); bars up to 15 minutes long in a US session",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "session_return_z",
        _D,
        "price change for this time of the session {value} robust deviations",
        "return_z of r / session profile of |r| (`session_profile`), U-shaped after Wood, McInish and Ord 1985; as "
        "session_volume_z",
        (-2.2, 2.2),
    ),
    FeatureDefinition(
        "elapsed_log_ratio",
        _L,
        "time since the last quote {value} its usual",
        "ln(time since the last bar / median of the history), 0 to 9",
        (0, 1.1),
    ),
    FeatureDefinition(
        "bar_length",
        Unit.LOG_MINUTES,
        "bars of {value} minutes",
        "ln(interval / 60 s): tells daily bars from one-minute bars",
        (0, 7.3),
    ),
    FeatureDefinition(
        "trades_log_ratio",
        _L,
        "number of trades {value} its usual",
        "ln(trades / median of the history)",
        (-1.5, 1.5),
        optional=True,
    ),
    FeatureDefinition(
        "trade_size_log_ratio",
        _L,
        "shares per trade {value} its usual",
        "ln((V / trades) / median of the history)",
        (-1.2, 1.2),
        optional=True,
    ),
    FeatureDefinition(
        "buy_share",
        _S,
        "takers' buying over selling {value}",
        "2 x buy volume / V - 1; order imbalance (Chordia, Roll and Subrahmanyam 2002)",
        (-0.9, 0.9),
        optional=True,
    ),
    FeatureDefinition(
        "buy_share_change",
        _S,
        "takers' buying above its usual {value}",
        "(buy volume / V) - median of the history",
        (-0.5, 0.5),
        optional=True,
    ),
    *_lags(),
)

FEATURE_NAMES = tuple(feature.name for feature in FEATURES)


def _hash() -> str:
    content = {
        "formula_version": FORMULA_VERSION,
        "window": WINDOW,
        "bar_fields": BAR_FIELDS,
        "features": [(f.name, f.unit.value, f.description) for f in FEATURES],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


FEATURE_HASH = _hash()
"""SHA-256 over the definitions and the formulas' version: a model made for others is refused."""
