"""The published card is of the shipped model, and nothing in it is written by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from services.scorer.registry import PACKAGED_MODELS
from services.training import card, evaluation
from services.training.evaluate import figures_text, newest, read_figures

CARD = Path(__file__).parents[2] / "docs" / "model-card.md"


def test_the_published_card_follows_from_the_shipped_metadata_and_the_measured_figures() -> None:
    metadata = evaluation.load(newest(PACKAGED_MODELS)).metadata
    figures = read_figures((CARD.with_suffix("") / "figures.json").read_text(encoding="utf-8"))
    assert CARD.read_text(encoding="utf-8") == card.render(metadata, figures, "model-card")


def test_figures_that_could_not_be_measured_are_null_in_their_file_and_read_as_no_number() -> None:
    figures = {
        "recall": [{"at": 0.5, "cells": (math.nan, np.float32(0.25), np.float64(math.nan))}],
        "bars": np.int64(7),
    }
    text = figures_text(figures)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(text, parse_constant=refuse) == {"recall": [{"at": 0.5, "cells": [None, 0.25, None]}], "bars": 7}
    first, second, third = read_figures(text)["recall"][0]["cells"]
    assert math.isnan(first)
    assert second == 0.25
    assert math.isnan(third)


def test_it_says_how_the_shipped_model_is_made_and_was_chosen() -> None:
    text = CARD.read_text(encoding="utf-8")
    assert text.startswith(f"# Model card: {card.SHIPPED}\n")
    assert "`tapewatch train --data " in text
    assert "## How the shipped model was chosen" in text


def test_another_version_does_not_claim_how_it_was_chosen() -> None:
    metadata = replace(evaluation.load(newest(PACKAGED_MODELS)).metadata, version="tw-other", trained_by="")
    text = card.render(metadata, {}, "model-card")
    assert "was chosen" not in text
    assert "Made by" not in text
