"""Whether what is measured is unseen."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.archive.benchmark import benchmarks
from services.scorer.registry import ModelRegistry
from services.training import dataset, provenance
from services.training.sources import Source
from tests.daily_bars import series


def source(symbols: int) -> Source:
    history = [series(600, seed, symbol=f"S{seed}") for seed in range(symbols)]
    return Source("daily.parquet", 86_400, history, dataset.split(history), benchmarks(history, {})[86_400])


@pytest.mark.parametrize(
    ("symbols", "known", "cautions"), [(20, True, 0), (19, True, 1), (20, False, 1), (19, False, 2)]
)
def test_bars_are_unseen_where_they_are_those_of_the_training_and_enough(
    symbols: int, known: bool, cautions: int
) -> None:
    measured = source(symbols)
    said = provenance.words(measured)
    assert said.startswith(f"{symbols} symbols with {600 * symbols:,} bars of 86400 s, 2005-01-03 to 2006-")
    registry = ModelRegistry()
    metadata = registry.metadata(registry.names()[0])
    metadata = replace(metadata, trained_on=f"{said} (daily): of each …" if known else metadata.trained_on)
    stamp = provenance.stamp(metadata, [measured])
    assert len(stamp["cautions"]) == cautions
    assert stamp["data_sha256"] == provenance.stamp(metadata, [source(symbols)])["data_sha256"]
    assert stamp["data_sha256"] != provenance.stamp(metadata, [source(symbols + 1)])["data_sha256"]


def test_other_peers_than_the_trainings_are_said(tmp_path: Path) -> None:
    measured, sectors = source(40), tmp_path / "sectors.csv"
    sectors.write_text("symbol,sector\nAAPL,XLK\n")
    registry = ModelRegistry()
    metadata = registry.metadata(registry.names()[0])
    known = replace(metadata, trained_on=provenance.words(measured))
    with_it = replace(known, trained_by=f"{known.trained_by} --sectors sectors.csv")
    (said,) = provenance.stamp(known, [measured], sectors)["cautions"]
    assert "was trained without a file of sectors" in said
    (said,) = provenance.stamp(with_it, [measured])["cautions"]
    assert "was trained with a file of sectors" in said
    assert provenance.stamp(with_it, [measured], sectors)["cautions"] == []
    digests = {provenance.stamp(known, [measured], given)["data_sha256"] for given in (None, sectors)}
    assert len(digests) == 2


def test_few_symbols_are_as_few_as_the_split_means() -> None:
    assert provenance.FEWEST_SYMBOLS == dataset._FEW_SYMBOLS
