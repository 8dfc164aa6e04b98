"""Fits the networks of one training run: its sources, settings, decisions and progress bars."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from services.archive.bars import Bars
from services.archive.benchmark import Benchmark
from services.archive.sectors import read_sectors
from services.domain.session_profile import LONGEST_INTERVAL_SECONDS
from services.domain.typology import OBSERVABLE, Typology
from services.training import dataset, networks
from services.training.checkpoint import Checkpoint
from services.training.dataset import Part, Rows
from services.training.figures import STRONG
from services.training.injection import MANIPULATED
from services.training.labels import Labels, decided
from services.training.sources import Source, Tell, read_sources

WEAK_WEIGHT = 0.2
"""How much a manipulated row below strength STRONG counts: most such bars look like normal ones, and teach them so."""

DECIDED_WEIGHT = 20.0
"""How much a bar that an analyst decided counts: as much as that many drawn rows."""

ALERTS_PER_SYMBOL_DAY = 1.0 / 500.0
"""The alert budget on untouched bars."""

FEW_ALERTS = 10.0
"""Fewest alerts that the budget must allow on the validation side for the threshold to be set there."""

BEYOND = (16.0, 24.0, 48.0)
"""Strengths of a few more events, in deviations: else what is stronger than all of STRENGTHS is learnt as normal."""

_OTHER_HOURS = np.timedelta64(12, "h")
"""So much later a bar of a US session, or of the hours around it, lies outside: as of a market with other hours."""

_BEYOND_SHARE = 0.004
_PASSES_A_BEYOND = 8
_BEYOND_SEED = 800
_NORMAL_PER_MANIPULATED = 7
_NEAR_BARS = 6
_STANDARD_ROWS = 300_000


@dataclass(frozen=True, slots=True)
class View:
    """How a part of the training sees the real series.

    `mirrored`: upside down. `alone`: by a feed without a benchmark. `elsewhere`: short bars at other hours.
    `silent`: short bars without volume, as feeds print them outside sessions.
    """

    mirrored: bool = False
    alone: bool = False
    elsewhere: bool = False
    silent: bool = False


PLAIN, MIRRORED = View(), View(mirrored=True)
ALONE, MIRRORED_ALONE = View(alone=True), View(mirrored=True, alone=True)
ELSEWHERE = View(alone=True, elsewhere=True)
SILENT = View(alone=True, elsewhere=True, silent=True)
VIEWS = (
    PLAIN,
    MIRRORED,
    ALONE,
    MIRRORED,
    PLAIN,
    ELSEWHERE,
    PLAIN,
    MIRRORED,
    MIRRORED_ALONE,
    MIRRORED,
    PLAIN,
    SILENT,
)
"""Of the injections, one after another."""

FEEDS = (PLAIN, ALONE, ELSEWHERE, SILENT)
"""The views as which feeds differ: the alert budget is kept on each."""

NORMAL_SHARES = {PLAIN: 0.35, MIRRORED: 0.35, ALONE: 0.075, MIRRORED_ALONE: 0.075, ELSEWHERE: 0.075, SILENT: 0.075}
"""Of the normal bars, by view."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The two networks as TFLite files: float32, which are shipped, and with int8 weights, whose loss is measured.

    `members` are those of each bar length, in seconds, whose members have each left a fold of tickers out.
    """

    autoencoder: bytes
    classifier: bytes
    autoencoder_quantised: bytes
    classifier_quantised: bytes
    members: Mapping[int, tuple[bytes, ...]]


def strength_weight(rows: Rows) -> NDArray[np.float64]:
    """How much each row counts by the strength of its event, float64 (n,)."""
    weak = (rows.label == MANIPULATED) & (rows.strength < STRONG)
    return np.where(weak, WEAK_WEIGHT, 1.0)


class Training:
    """One training run.

    Args:
        locations: What the networks learn from, one for each bar length.
        calibration: Further locations, of other bar lengths, for the calibration only.
        seed: Decides injection, weights and order.
        epochs: Passes over the rows.
        passes: Injections into the training series.
        members: Networks whose mean is the classifier.
        progress: Shows the progress.
        labels: File of bars that analysts decided.
        sectors: File of sectors by symbol.
        tell: Called with what of the data is left out, and why, and with how many decisions are learnt.
    """

    def __init__(
        self,
        locations: Sequence[str],
        calibration: Sequence[str] = (),
        *,
        seed: int,
        epochs: int,
        passes: int,
        members: int,
        progress: Progress,
        labels: Path | None = None,
        sectors: Path | None = None,
        tell: Tell = lambda words, counted: None,
    ) -> None:
        self.seed, self.epochs, self.passes, self.members = seed, epochs, passes, members
        self.sectors = sectors
        self.progress = progress
        self.labels = Labels.read(labels) if labels is not None else Labels()
        known = {} if sectors is None else read_sectors(sectors)
        self.sources = read_sources(locations, calibration, tell, known)
        if labels is not None:
            self._tell_decisions(labels, tell)
        trained = [source.interval_seconds for source in self.sources if source.trained]
        settings = json.dumps(
            {
                "seed": seed,
                "epochs": epochs,
                "passes": passes,
                "members": members,
                "trained": trained,
                "labels": self.labels.digest,
                "sectors": sorted(known.items()),
            }
        )
        everything = [bars for source in self.sources for bars in source.history]
        self.fingerprint = dataset.fingerprint(everything, settings)

    def _tell_decisions(self, labels: Path, tell: Tell) -> None:
        learnt = sum(
            int(
                np.isin(
                    bars.event_time[dataset.LEAD :].astype("M8[us]").astype(np.int64), list(self.labels.of(bars))
                ).sum()
            )
            for source in self.trained
            for bars in source.history
        )
        of = "the others are" if learnt else "they are"
        why = f"; {of} on bars that no --data holds, of symbols left out, or with fewer than {dataset.LEAD} before them"
        tell(f"{labels}: {learnt:,} of {len(self.labels):,} decisions learnt{why * (learnt < len(self.labels))}", ())

    @property
    def trained(self) -> list[Source]:
        """The sources that the networks learn from."""
        return [source for source in self.sources if source.trained]

    def rows(
        self,
        source: Source,
        part: Part,
        *,
        seed: int | None = None,
        without: Literal["", "peers", "benchmark"] = "",
    ) -> Rows:
        """A side's rows: untouched without a seed, else injected by it; without the bars that analysts decided.

        `without` leaves the peers out, or the benchmark and them, as of a feed that has none.
        """
        side = source.sides[part]
        words = f"{part.value}{without and f', no {without}'}"
        benchmark = None if without == "benchmark" else source.benchmark
        if benchmark is not None and without:
            benchmark = replace(benchmark, peers={})
        if seed is None:
            return self.untouched(source, side, words, benchmark)
        advance = self._advance(f"features of {source.interval_seconds} s bars, {words}, injected ({seed})", side)
        rows = dataset.injected(side, seed, advance=advance, benchmark=benchmark)
        return rows.where(~self.labels.among(side, rows))

    def untouched(self, source: Source, history: Sequence[Bars], words: str, benchmark: Benchmark | None) -> Rows:
        """The rows of some of a source's bars as they are, without the bars that analysts decided."""
        advance = self._advance(f"features of {source.interval_seconds} s bars, {words}, untouched", history)
        rows = dataset.untouched(history, advance, benchmark=benchmark)
        return rows.where(~self.labels.among(history, rows))

    def _advance(self, words: str, side: Sequence[Bars]) -> Callable[[], None]:
        task = self.progress.add_task(words, total=len(side))
        return lambda: self.progress.advance(task)

    def watch(self, words: str) -> networks.Progress:
        """A progress bar over the epochs."""
        task = self.progress.add_task(words, total=self.epochs)

        def advance(_: int, losses: dict[str, float]) -> None:
            loss = losses.get("loss", float("nan"))
            self.progress.update(task, advance=1, description=f"{words}, loss {loss:.4f}")

        return advance

    def networks(
        self,
        normals: list[Rows],
        typologies: tuple[Typology, ...] = OBSERVABLE,
        checkpoint: Checkpoint | None = None,
    ) -> Exported:
        """The trained autoencoder and classifier as TFLite files.

        Args:
            normals: The untouched training rows of each source that is trained on.
            typologies: Those injected; evaluation leaves one out.
            checkpoint: Where fitted networks are kept, and taken from when they are there already.
        """
        checkpoint = checkpoint or Checkpoint(None)
        rng = np.random.default_rng(self.seed)
        share = _STANDARD_ROWS // len(normals)
        sample = dataset.concatenate([rows.where(rng.permutation(len(rows))[:share]) for rows in normals])
        networks.tensorflow().config.experimental.enable_op_determinism()
        autoencoder = networks.train_autoencoder(
            sample.features,
            networks.standardise(sample.features),
            seed=self.seed,
            epochs=self.epochs,
            bottleneck=10,
            progress=self.watch("autoencoder"),
            checkpoint=checkpoint,
        )
        by_length = {
            source.interval_seconds: self._members(source, normal, typologies, rng, checkpoint)
            for source, normal in zip(self.trained, normals, strict=True)
        }
        classifier = networks.by_bar_length(
            {seconds: networks.mean_of(members, f"mean_{seconds}s") for seconds, members in by_length.items()}
        )
        return Exported(
            networks.export(autoencoder),
            networks.export(classifier),
            networks.export(autoencoder, quantised=True),
            networks.export(classifier, quantised=True),
            {
                source.interval_seconds: tuple(map(networks.export, by_length[source.interval_seconds]))
                for source in self.trained
                if self.folded(source)
            },
        )

    def folded(self, source: Source) -> bool:
        """Whether each of the source's members leaves a fold of tickers out: member k each (k + members i)th.

        They do where the validation side is too short to set a threshold on: what each says of the tickers that it
        has not seen makes up for it.
        """
        days = sum(
            len(np.unique(bars.event_time[dataset.LEAD :].astype("datetime64[D]")))
            for bars in source.sides[Part.VALIDATION]
        )
        several = min(self.members, len(source.sides[Part.TRAIN])) > 1
        return several and days * ALERTS_PER_SYMBOL_DAY < FEW_ALERTS

    def _members(
        self,
        source: Source,
        normal: Rows,
        typologies: tuple[Typology, ...],
        rng: np.random.Generator,
        checkpoint: Checkpoint,
    ) -> list[Any]:
        """The networks that learn from one source: bars of other lengths would only take up their room."""
        rows, weight, fold = self._classified(source, normal, typologies, rng)
        kinds = np.array([int(t) for t in OBSERVABLE])
        label = (rows.label == MANIPULATED).astype(np.float32)
        known = np.isin(rows.typology, kinds)
        kind = np.where(known, np.searchsorted(kinds, rows.typology.astype(np.int64)), -1).astype(np.int64)
        seconds = source.interval_seconds
        folded = self.folded(source)
        return networks.train_classifiers(
            rows.features,
            label,
            kind,
            [np.where(fold == k, np.float32(0.0), weight) if folded else weight for k in range(self.members)],
            networks.standardise(normal.features),
            kinds=len(kinds),
            seed=self.seed,
            epochs=self.epochs,
            progress=self.watch(f"{self.members} classifiers of {seconds} s bars"),
            name=f"member_{seconds}s",
            checkpoint=checkpoint,
        )

    def _classified(
        self, source: Source, normal: Rows, typologies: tuple[Typology, ...], rng: np.random.Generator
    ) -> tuple[Rows, NDArray[np.float32], NDArray[np.int64]]:
        """What the classifier learns from, how much each row counts, and the fold of its ticker."""
        shares: dict[View, float] = {}
        for view, share in NORMAL_SHARES.items():
            shares[_as_of(source, view)] = shares.get(_as_of(source, view), 0.0) + share
        views = {view: self._seen(source, view, source.sides[Part.TRAIN]) for view in shares}
        strong = -(-self.passes // _PASSES_A_BEYOND)
        task = self.progress.add_task(f"injections into {source.interval_seconds} s bars", total=self.passes + strong)

        def injected(k: int, number: int, **choices: Any) -> Rows:
            bars, benchmark = views[_as_of(source, VIEWS[k % len(VIEWS)])]
            seed = self.seed * 1_000 + number
            rows = dataset.injected(bars, seed, benchmark=benchmark, typologies=typologies, **choices)
            self.progress.advance(task)
            return rows.where(~self.labels.among(source.sides[Part.TRAIN], rows))

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy leaves other threads their turn
            drawn = [pool.submit(injected, k, k, only_near=_NEAR_BARS) for k in range(self.passes)]
            beyond = {"only_near": 0, "strengths": BEYOND, "share": _BEYOND_SHARE}
            drawn += [pool.submit(injected, k, _BEYOND_SEED + k, **beyond) for k in range(strong)]
            parts = [each.result() for each in drawn]
        positive = sum(int((near.label == MANIPULATED).sum()) for near in parts)
        for view, share in shares.items():
            rows = normal if view == PLAIN else self._normal(source, view, source.sides[Part.TRAIN], *views[view])
            wanted = max(1, int(share * _NORMAL_PER_MANIPULATED * positive))
            parts.append(rows.where(rng.permutation(len(rows))[:wanted]))
        for k, rows in enumerate(parts):  # one after another: all at once would take twice the memory
            parts[k] = rows.where(~dataset.unjudged(rows))
        said = decided(self.labels, source.history, source.benchmark)
        drawn_rows = sum(map(len, parts))
        parts.append(said)
        rows = dataset.concatenate(parts)
        weight = strength_weight(rows).astype(np.float32)
        fold = rows.series.astype(np.int64) % self.members
        weight[drawn_rows:], fold[drawn_rows:] = DECIDED_WEIGHT, -1
        return rows, weight, fold

    def feeds(self, source: Source, history: Sequence[Bars]) -> Iterator[Rows]:
        """The untouched rows of some of a source's bars as each kind of feed gives them, the feed as it is first."""
        for view in dict.fromkeys(_as_of(source, each) for each in FEEDS):
            yield self._normal(source, view, history, *self._seen(source, view, history))

    def _seen(self, source: Source, view: View, history: Sequence[Bars]) -> tuple[list[Bars], Benchmark | None]:
        """Some of the source's series and their market in a view."""
        side = list(history)
        if view.mirrored:
            side = [dataset.mirrored(bars) for bars in side]
        if view.elsewhere:
            side = [replace(bars, event_time=bars.event_time + _OTHER_HOURS) for bars in side]
        if view.silent:
            side = [replace(bars, volume=np.zeros(len(bars))) for bars in side]
        if view.alone:
            return side, None
        return side, dataset.mirrored_benchmark(source.benchmark) if view.mirrored else source.benchmark

    def _normal(
        self, source: Source, view: View, history: Sequence[Bars], bars: Sequence[Bars], benchmark: Benchmark | None
    ) -> Rows:
        """The untouched rows of series in a view, without the bars that analysts decided."""
        words = ", ".join(f.name for f in fields(View) if getattr(view, f.name)) or "as they are"
        advance = self._advance(f"features of {source.interval_seconds} s bars, {words}", bars)
        rows = dataset.untouched(bars, advance, benchmark=benchmark)
        return rows.where(~self.labels.among(history, rows))


def _as_of(source: Source, view: View) -> View:
    """How a source's bars are seen in a view: only short bars have hours, or none of their usual volume."""
    short = source.interval_seconds <= LONGEST_INTERVAL_SECONDS
    return view if short else replace(view, elsewhere=False, silent=False)
