"""What a model was trained on and is measured on: in words, as a fingerprint, and whether the two go together."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.domain.model import ModelMetadata
from services.training import dataset
from services.training.sources import Source

FEWEST_SYMBOLS = 20
"""With fewer, `dataset.split` holds no ticker out."""


def words(source: Source) -> str:
    """A source's symbols, bars and time, as a version's `trained_on` has them."""
    first = min(bars.event_time[0] for bars in source.history).astype("datetime64[D]")
    last = max(bars.event_time[-1] for bars in source.history).astype("datetime64[D]")
    bars = sum(map(len, source.history))
    return f"{len(source.history)} symbols with {bars:,} bars of {source.interval_seconds} s, {first} to {last}"


def stamp(metadata: ModelMetadata, sources: Sequence[Source], sectors: Path | None = None) -> dict[str, Any]:
    """What figures are kept with: whose they are, on which data, and what they must not be taken for."""
    digest = hashlib.sha256(b"" if sectors is None else sectors.read_bytes())
    for source in sources:
        dataset.add_bars(digest, source.history)
    return {
        "version": metadata.version,
        "data": [words(source) for source in sources],
        "data_sha256": digest.hexdigest(),
        "cautions": cautions(metadata, sources, sectors),
    }


def cautions(metadata: ModelMetadata, sources: Sequence[Source], sectors: Path | None) -> list[str]:
    """Why bars of the test side are not of tickers and times that nothing was fitted on; nothing when they are."""
    found = []
    if (sectors is not None) != ("--sectors " in metadata.trained_by):
        had = "with" if sectors is None else "without"
        found.append(f"{metadata.version} was trained {had} a file of sectors: its peers were others than here.")
    for source in sources:
        if (said := words(source)) not in metadata.trained_on:
            found.append(
                f"{said} are not the data that {metadata.version} was trained on: it may have been fitted on some of "
                "these tickers and times, and a split of other data holds out other times."
            )
        if len(source.history) < FEWEST_SYMBOLS:
            found.append(
                f"Of {len(source.history)} symbols with bars of {source.interval_seconds} s none is held out: a model "
                "trained on them has learnt from earlier bars of the very tickers that it is measured on."
            )
    return found
