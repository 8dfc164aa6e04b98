"""Reasons: the features that hold the score up, strongest first, in words."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from services.domain import reasons
from services.domain.feature_definitions import FEATURE_NAMES
from services.domain.model import FeatureUsual

USUAL = tuple(FeatureUsual(name, name, 0.0, -1.0, 1.0) for name in FEATURE_NAMES)
COLUMN = {name: i for i, name in enumerate(FEATURE_NAMES)}


def row(**values: float) -> NDArray[np.float32]:
    features = np.zeros((1, len(FEATURE_NAMES)), np.float32)
    for name, value in values.items():
        features[0, COLUMN[name]] = value
    return features


def weighted(**weights: float) -> reasons.Margin:
    def margin(features: NDArray[np.float32]) -> NDArray[np.float64]:
        total = np.full(len(features), -3.0)
        for name, weight in weights.items():
            total += weight * features[:, COLUMN[name]]
        return total

    return margin


def test_strongest_first_with_value_and_usual_range() -> None:
    margin = weighted(volume_log_ratio=1.0, range_z=0.9, gap_z=0.1)
    (found,) = reasons.explain(row(volume_log_ratio=2.639, range_z=5.0, gap_z=8.0, body_z=9.0), margin, USUAL)
    assert [r.feature for r in found] == ["range_z", "volume_log_ratio", "gap_z"]
    assert found[1].text == "volume 14.0x its usual (usual 0.37x to 2.7x)"
    assert found[0].contribution > found[1].contribution > found[2].contribution > 0


def test_a_feature_that_does_not_move_the_score_is_not_named() -> None:
    (found,) = reasons.explain(row(volume_z=6.0, body_z=9.0), weighted(volume_z=1.0), USUAL)
    assert [r.feature for r in found] == ["volume_z"]


def test_one_price_change_is_not_named_twice_without_a_benchmark() -> None:
    margin = weighted(return_z=0.5, relative_return_z=0.5, volume_z=0.1)
    (found,) = reasons.explain(row(return_z=9.0, relative_return_z=9.0, volume_z=4.0), margin, USUAL)
    assert [r.feature for r in found] == ["return_z", "volume_z"]


def test_of_the_price_changes_that_are_the_same_the_plainest_is_named() -> None:
    margin = weighted(relative_return_z=0.3, peer_relative_return_z=0.5, volume_z=0.1)
    without_peers = row(return_z=3.0, relative_return_z=9.0, peer_relative_return_z=9.0, volume_z=4.0)
    (found,) = reasons.explain(without_peers, margin, USUAL)
    assert [r.feature for r in found] == ["relative_return_z", "volume_z"]
    with_peers = row(return_z=3.0, relative_return_z=9.0, peer_relative_return_z=12.0, volume_z=4.0)
    (found,) = reasons.explain(with_peers, margin, USUAL)
    assert [r.feature for r in found] == ["peer_relative_return_z", "relative_return_z", "volume_z"]
    neither = row(return_z=9.0, relative_return_z=9.0, peer_relative_return_z=9.0)
    (found,) = reasons.explain(neither, margin, USUAL)
    assert [r.feature for r in found] == ["return_z"]


def test_one_change_in_two_kinds_of_deviations_is_named_once() -> None:
    margin = weighted(volume_z=0.2, volume_standard_z=0.5, return_standard_z=0.3, range_z=0.1)
    changed = row(volume_z=0.9, volume_standard_z=9.0, return_z=9.0, return_standard_z=7.0, range_z=3.0)
    (found,) = reasons.explain(changed, margin, USUAL)
    assert [r.feature for r in found] == ["volume_z", "return_z", "range_z"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(60, "3 minutes"), (3_600, "3 hours"), (86_400, "3 days"), (300, "3 bars")]
)
def test_bars_are_called_what_they_are(seconds: int, said: str) -> None:
    features = row(runup_3_z=9.0, bar_length=math.log(seconds / 60.0), upper_shadow_z=5.0)
    (found,) = reasons.explain(features, weighted(runup_3_z=1.0, upper_shadow_z=0.5), USUAL)
    assert found[0].text == f"price change over {said} +9.0 robust deviations (usual -1.0 to +1.0)"
    assert found[1].text.startswith("fall from the bar's high")


def test_there_is_always_a_reason() -> None:
    (found,) = reasons.explain(row(), weighted(), USUAL)
    assert len(found) == 1


def test_a_price_change_is_said_in_percent_too_unless_it_is_out_of_bounds() -> None:
    margin = weighted(return_z=-0.5, relative_return_z=-0.5)
    (found,) = reasons.explain(row(return_z=-9.0, relative_return_z=-9.0, usual_move=math.log(2.0)), margin, USUAL)
    assert found[0].text == "price change -16.5 %, -9.0 robust deviations (usual -1.0 to +1.0)"
    (found,) = reasons.explain(row(return_z=-60.0, relative_return_z=-60.0), margin, USUAL)
    assert found[0].text == "price change -60.0 robust deviations (usual -1.0 to +1.0)"


def test_the_bars_length_is_never_a_reason() -> None:
    margin = weighted(bar_length=1.0, volume_z=0.1)
    (found,) = reasons.explain(row(bar_length=7.3, volume_z=4.0), margin, USUAL)
    assert [r.feature for r in found] == ["volume_z"]
    (found,) = reasons.explain(row(bar_length=7.3), margin, USUAL)
    assert found[0].feature != "bar_length"
