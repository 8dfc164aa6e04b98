"""The model card as Markdown, from metadata and figures."""

from collections.abc import Sequence
from typing import Any

from services.domain.model import ModelMetadata
from services.training.evaluation import LEFT_OUT
from services.training.fit import ALERTS_PER_SYMBOL_DAY
from services.training.injection import STRENGTHS
from services.training.pumps import section

SHIPPED = "tw-9041775ac3"
"""The version whose choice `_selection` tells; other versions' cards say nothing of theirs."""


def render(metadata: ModelMetadata, found: dict[str, Any], folder: str) -> str:
    """The card's text; `folder` is where its plots lie, relative to it."""
    cautions = found.get("cautions", [])
    tickers = "tickers" if cautions else "unseen tickers"
    parts = [_head(metadata, cautions)]
    for source in found.get("equities", []):
        parts.append(_equities(source, folder, tickers))
    if "days" in found:
        parts.append(_days(found["days"], tickers))
    if "left_out" in found:
        parts.append(_left_out(found["left_out"]))
    if "pumps" in found:
        parts.append(section.text(found["pumps"], folder))
    if "old_task" in found:
        parts.append(_old_task(found["old_task"]))
    if metadata.version == SHIPPED:
        parts.append(_selection())
    parts.append(_limits(metadata))
    return "\n\n".join(parts) + "\n"


def _head(metadata: ModelMetadata, cautions: Sequence[str]) -> str:
    return f"""# Model card: {metadata.version}

Written by `python -m services.training.evaluate`; every figure is measured by it{_measured_on(cautions)}

**What it does.** Judges one bar of one instrument from it and the {metadata.window_quotes - 1} bars before it: how far
price and volume are consistent with manipulation, of which kind, and why. It never finds intent.

**How.** {len(metadata.features)} causal features; an autoencoder of normal bars and a classifier of injected
manipulations, both TFLite float32; their outputs go into a logistic regression fitted on validation bars, in which
the autoencoder has {metadata.autoencoder_weight:.0%} of the say. Each trained bar length has classifiers of its own,
in one file; the row's bar length chooses. The threshold, {metadata.threshold:.4f}, is set on
untouched bars of tickers that the networks had not seen for at most {500 * ALERTS_PER_SYMBOL_DAY:.0f} alert per 500
symbols and day, on feeds with and without a benchmark each, and of short bars also outside sessions and without volume,
as training makes them up; shorter bars are held to the same budget by an offset.
{_set_on(metadata)}{_quantised(metadata)}

**Trained on.** {metadata.trained_on}. Fingerprint `{metadata.training_fingerprint[:16]}`.
{_made_by(metadata)}
**Intended use.** Pointing a market-surveillance analyst at bars worth a look. Not for trading, not as evidence alone.

**What it can name.** {", ".join(t.words for t in metadata.typologies)}.
{_practices(metadata)}
**What it cannot see** (needs orders, identities or news): {", ".join(metadata.not_observable)}."""


def _measured_on(cautions: Sequence[str]) -> str:
    if cautions:
        return f". Weak figures stand beside strong ones.\n\n**Careful.** {' '.join(cautions)}"
    return ", on bars of tickers and of times that\nnothing was fitted on. Weak figures stand beside strong ones."


def _made_by(metadata: ModelMetadata) -> str:
    if not metadata.trained_by:
        return ""
    return f"""
**Made by.** `{metadata.trained_by}`, at the commit that has this version's fingerprint; docs/training.md says more.
"""


def _practices(metadata: ModelMetadata) -> str:
    named = {t: t.regulatory_reference(86_400).partition("Annex II, ")[2] for t in metadata.typologies}
    fitting = "; ".join(practice for practice in named.values() if practice)
    others = ", ".join(t.words for t, practice in named.items() if not practice)
    return (
        f"Alerts name the practice of Delegated Regulation (EU) 2016/522, Annex II, that fits: {fitting} (points "
        f"as secondary sources quote them; marking the close of daily bars only). None fits {others}."
    )


def _set_on(metadata: ModelMetadata) -> str:
    found = {
        int(name.split("_")[1][:-1]): days
        for name, days in metadata.metrics.items()
        if name.startswith("threshold_") and name.endswith("_symbol_days")
    }
    days = " and ".join(f"{found[seconds]:,.0f} symbol-days of {seconds} s bars" for seconds in sorted(found)[::-1])
    return f"It is set on {days}." if found else ""


def _quantised(metadata: ModelMetadata) -> str:
    figures = metadata.metrics
    if "quantised_bytes" not in figures:
        return ""
    loss = figures.get("quantised_average_precision_loss")  # missing where there was no event to measure it on
    precision = "" if loss is None else f" and PR-AUC by {-loss:+.4f}"
    return (
        f" With int8 weights both take {figures['quantised_bytes'] / 1024:.0f} instead of "
        f"{figures['float32_bytes'] / 1024:.0f} KiB; the score moves by "
        f"{figures['quantised_mean_score_difference']:.5f} on average{precision}."
    )


def _number(value: float, digits: int = 3) -> str:
    return "–" if value != value else f"{value:.{digits}f}"


def _between(value: float, interval: list[float], digits: int = 3) -> str:
    return f"{_number(value, digits)} ({_number(interval[0], digits)} to {_number(interval[1], digits)})"


def _recalls(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| typology | " + " | ".join(f"{s:g}" for s in STRENGTHS) + " | events |",
        "|---" * (len(STRENGTHS) + 2) + "|",
    ]
    for row in rows:
        cells = " | ".join(_number(recall, 2) for recall, _ in row["cells"])
        lines.append(f"| {row['typology']} | {cells} | {sum(count for _, count in row['cells'])} |")
    return "\n".join(lines)


def _hours(parts: dict[str, dict[str, float]]) -> str:
    if not parts:
        return ""
    said = "; ".join(
        f"{_number(part['average_precision'])} {name} ({part['manipulated']:,} of {part['bars']:,} bars manipulated)"
        for name, part in parts.items()
    )
    return f"PR-AUC by hours: {said}.\n"


def _budgets(rows: list[dict[str, float]]) -> str:
    known = [row for row in rows if row["recall"] == row["recall"]]
    return "; ".join(
        f"{row['recall']:.3f} at {row['alerts_per_500_symbol_days']:g} per 500 symbol-days" for row in known
    )


def _equities(found: dict[str, Any], folder: str, tickers: str) -> str:
    seconds = found["interval_seconds"]
    name = {86_400: "daily bars", 60: "one-minute bars"}.get(seconds, f"bars of {seconds} s")
    lines = [
        "| model | PR-AUC (95 %) | PR-AUC, all strengths | event recall (95 %) | bar recall | precision at recall 0.99 "
        "| at 0.90 | alerts per 500 symbol-days |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in found["models"]:
        lines.append(
            f"| {m['model']} | {_between(m['average_precision'], m['average_precision_interval'])} "
            f"| {_number(m['average_precision_all'])} | {_between(m['recall'], m['recall_interval'])} "
            f"| {_number(m['bar_recall'])} | {_number(m['precision_at_recall_0.99'])} "
            f"| {_number(m['precision_at_recall_0.90'])} | {_number(m['alerts_per_500_symbol_days'], 2)} |"
        )
    explained = found["explanations"]
    return f"""## Equities, {name}, injected manipulations

{found["tickers"]} {tickers}, {found["first"]} to {found["last"]}, {found["bars"]:,} untouched bars; at most 1.5 %
of bars manipulated. Strength is in the event's own deviations (`services/training/injection.py`). Figures count
strengths from 4 on unless said otherwise; every other model's threshold is set by the same budget on the same
validation bars. Intervals are bootstraps by ticker. An event is found when one of its bars is a detection.

{chr(10).join(lines)}

Ensemble against the classifier alone, PR-AUC: {_between(found["ensemble_gain"], found["ensemble_gain_interval"], 4)}.
Typology right among detected manipulated bars: {found["typology_accuracy"]:.3f}.
Flattening the up to three named features lowers the score more than flattening three random ones in
{explained["share_better"]:.1%} of {explained["alerts"]} alerts.
Strength 0: a probe (boosted trees, unseen tickers) tells {found["probe"]["injected"]:,} bars injected with nothing from
{found["probe"]["untouched"]:,} untouched ones with AUC {found["probe"]["auc"]:.3f}.

Recall of events at the shipped threshold, by strength:

{_recalls(found["recall"])}

Event recall where these very bars set the threshold, by the alerts that it allows (what `tapewatch calibrate` buys):
{_budgets(found["budgets"])}.
{_hours(found["hours"])}
![Precision and recall]({folder}/precision-recall-{seconds}s.png)
![Recall over strength]({folder}/recall-{seconds}s.png)
![Calibration]({folder}/calibration-{seconds}s.png)
![Alerts over threshold]({folder}/alerts-{seconds}s.png)"""


def _days(found: dict[str, Any], tickers: str) -> str:
    lines = [f"| day | what | {tickers} | detections |", "|---|---|---|---|"]
    lines += [f"| {d['day']} | {d['what']} | {d['tickers']} | {d['detections']} |" for d in found["days"]]
    text = f"""## Known real days

Untouched daily bars of {tickers} (the early days lie in the training period). On all days together
{found["all"]:.2%} of bars are detections.

{chr(10).join(lines)}"""
    if "amc" in found:
        days = ", ".join(f"{d['day']} ({d['score']:.2f})" for d in found["amc"]["days"]) or "none"
        text += f"\n\nAMC, January 2021 (ticker on the {found['amc']['side']} side): detections {days}."
    return text


def _left_out(found: dict[str, Any]) -> str:
    lines = ["| " + " | ".join(["model", *(f"{s:g}" for s in STRENGTHS)]) + " |", "|---" * (len(STRENGTHS) + 1) + "|"]
    for name in ("with", "without"):
        lines.append(f"| {name} it | " + " | ".join(_number(recall, 2) for recall, _ in found[name]) + " |")
    return f"""## A typology left out of training

Recall of daily {LEFT_OUT.words} events by strength, of the shipped model and of one (fewer passes) trained
without it, at the same alert budget:

{chr(10).join(lines)}"""


def _old_task(found: dict[str, Any]) -> str:
    lines = ["| split | AUC | best F1 | AP | positives / rows |", "|---|---|---|---|---|"]
    for split, name in (("random_rows", "random rows, as the old system's"), ("ticker_and_time", "by ticker and time")):
        m = found[split]
        row = (name, *(f"{m[key]:.4f}" for key in ("auc", "f1", "average_precision")))
        lines.append(f"| {' | '.join(row)} | {m['positives']} / {m['rows']:,} |")
    return f"""## The old system's own task: recovery of a rule

Labels are a rule over volume, return and Bollinger position ({found["positive_share"]:.2%} of bars), so this measures
how well a rule is recovered, by trees on Tapewatch's features, and says nothing of manipulation. The old system: AUC
0.9971, best F1 0.8723.

{chr(10).join(lines)}"""


def _selection() -> str:
    return """## How the shipped model was chosen

The recipe was looked for on validation bars; test bars were measured after that, and the figures of the five models
before this one on them (PR-AUC on daily bars 0.759, 0.771, 0.808, 0.873, then 0.875) were known. Tried, by PR-AUC on
daily validation bars, strengths from 4 on, mean of three injections, one network each:

| what | PR-AUC |
|---|---|
| a model of 53 features, 24 injections into each series, ReLU | 0.820 |
| and the last 10 bars one by one: price, shadows, volume | 0.841 |
| and the last 20 bars one by one (0.835 with price and volume only) | 0.838 |
| these 53, and mirrored bars | 0.828 |
| these 53, and training tickers' bars until the test's period | 0.831 |
| all three: the last 10 bars, mirrored bars, the longer time | 0.856 |
| and swish instead of ReLU | 0.866 |
| and a fourth layer of 256 | 0.869 |
| swish, 4 epochs instead of 6 | 0.863 |
| swish, three fifths of the normal bars | 0.859 |
| swish, events below strength 4 with twice the weight | 0.861 |
| the mean of two such networks | 0.871 |
| ReLU, layers of 512, 256, 128, the last 20 bars and mirrored bars (0.854 with 256, 128, 64) | 0.848 |
| ReLU, mean of what it says of a bar and of the bar mirrored (0.856 without) | 0.853 |
| a model of 98 features, 16 injections, 5 epochs | 0.868 |
| and the moves beyond the peers' | 0.870 |
| and these bar by bar for the last 10 bars, beside those beyond the benchmark's | 0.871 |
| and these instead of those beyond the benchmark's | 0.871 |

By earlier models, one injection: 0.794 with three layers of 96, 64, 32 and 4 injections into each series, 0.823 with 24
and nearly all normal bars, 0.832 with the market's volume, 0.844 with layers of 256, 128, 64. The largest moves around
60, 125, 190 and 250 bars before (as after earnings), extremes of the last 250 bars, and how far the market's symbols
move apart did not help. Of the last four rows, precision at recall 0.90 is 0.545, 0.560, 0.577 and 0.569.

On one-minute bars, by folds of tickers over all bars before the test period (100 tickers, 1,752 symbol-days), PR-AUC
and event recall at one alert per 500 symbol-days:

| what | PR-AUC | event recall |
|---|---|---|
| the second model | 0.818 | 0.140 |
| and the market's volume, and nearly all normal bars | 0.833 | 0.143 |
| and events of 16 to 48 deviations | 0.833 | 0.158 |
| and standard deviations, wider layers | 0.857 | 0.166 |

- Kept are, of all this, the last 10 bars one by one, the moves beyond the peers', mirrored bars, the longer time,
  swish, 5 epochs, and the mean of three networks. One-minute bars got the same, and a twelfth of the injections into
  bars without volume, as feeds print them outside sessions: that was not measured apart.
- A volume spike is no longer injected into bars without volume, where it is nothing: 5 of 183 one-minute events less.
- **Boosted trees do not win** on daily bars: 0.815 to a network's 0.832 with the features of the second model and the
  market's volume. So no trees are shipped. On one-minute test bars they find more at the alert budget (see above: 0.183
  of the events without a false alert, to 0.144 with two), and have the lower PR-AUC; the intervals overlap.
- One network for daily and one-minute bars was worse on both, with the second model. So each bar length has its own.
- This recipe was measured on test bars three times. At first the budget was kept on the feeds as they are only: daily
  event recall 0.847 and 0.89 alerts per 500 symbol-days, one-minute event recall 0.250 and 13.9. Then it was kept on
  each kind of feed, which raised both thresholds: 0.829 and 0.77, 0.202 and 13.9. This third time the networks are
  others, by another order of the rows, and peers are learnt only where the market is known; nothing else was changed,
  and nothing to move the figures. On one-minute bars 6 of 104 events are lost; how much of that is chance, of one
  training against another, was not measured.
- **Two untouched one-minute test bars alert** (72 symbol-days: 13.9 per 500, 95 % interval of a Poisson count 1.7 to
  50): over the budget, which is kept on the 1,752 symbol-days that the threshold is set on. Both are of AMC outside the
  session in spring 2022, where the feed prints no volume: of such bars training has made-up ones only. The model of 98
  features had none.
- A threshold of their own for one-minute bars without volume was measured out of fold, on the networks of a training on
  one-minute bars alone: at the budget it would lie at log-odds of 7.2, where bars within sessions have 8.7 (8.9 without
  a benchmark), set by real jumps of funds around New Year 2020. So it would let more of such bars alert, not fewer; and
  half of the budget for each finds 0.076 of the 1,524 events within sessions of strength 4 and up where one threshold
  for all finds 0.219.

The bundled tape (`tests/integration/test_model_on_bundled_tape.py`) was known while features and injection were made:
there, the model is chosen rather than tested."""


def _limits(metadata: ModelMetadata) -> str:
    return f"""## Limits

- Labels on equities are injected, not found: recall says how well such shapes are seen, not how often they happen.
- Real jumps on news look like price and volume spikes. Held to one alert per 500 symbols and day, a one-bar event of
  strength 4 mostly drowns among them; runs of bars and strengths from 6 on do not.
- Untouched bars on which price change and volume both exceed twice the largest of 60 bars before are not shown to
  training as normal; on held-out bars they count as false alerts.
- Below {metadata.min_history_quotes} quotes of history a score is WARMING_UP and raises nothing.
- Bar lengths other than the calibrated ones are judged with the nearest one's offset: calibrate before relying on them.
- On one-minute bars the budget asks for one alert in some 200,000 bars: only the strongest events alert at it. One bar
  of a real jump looks like one of an injected one, and there are hundreds of bars a day. In a quiet series a jump of
  4 % (40 deviations) alerts without volume, and with 20 times the usual volume one of 6 %. `tapewatch calibrate` sets
  a budget of your own; what it buys stands above.
- The one-minute bars learnt from are mostly of funds, in US sessions of a month. More than half of those tested are
  of one stock two years later (AMC, spring 2022), many outside the session and without volume: what is outside sessions
  is judged worse (see the PR-AUC by hours), as training has only made-up bars like them.
- The kind it names is a guess from price and volume. On bars within a session "marking the close" says that the bar's
  own close is displaced, at whatever hour.
- The fitted weight of the autoencoder is near nothing: beside the classifier it adds no skill on validation bars.
- An index, or any series without volumes, is outside what it was trained on.
- The time-of-day profile is one table of US sessions for all symbols: it knows no holidays and no other market's hours.
- A benchmark needs ten symbols, or a feed that stamps it: the bundled tape has none, and the row "feed without a
  benchmark" says what that costs. Nor has it peers, which are stamped beside a benchmark only.{_sectors(metadata)}"""


def _sectors(metadata: ModelMetadata) -> str:
    if "--sectors " in metadata.trained_by:
        return ""
    return """
- No feed here says a symbol's sector: peers are the symbols that moved most alike before. Where a file of sectors, or
  a sector's fund, says what the sector did instead, the same features are used, and this was not measured."""
