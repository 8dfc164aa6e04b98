"""Which practice of EU law an alert names."""

import pytest

from services.domain.typology import OBSERVABLE, Typology


@pytest.mark.parametrize(
    ("typology", "practice"),
    [
        (Typology.PUMP_AND_DUMP, "Section 1, point 4(c), pump and dump"),
        (Typology.MOMENTUM_IGNITION, "Section 1, point 4(e), momentum ignition"),
        (Typology.TRASH_AND_CASH, "trash and cash"),
    ],
)
def test_the_practice_of_a_typology_is_named_at_every_bar_length(typology: Typology, practice: str) -> None:
    for seconds in (5, 60, 86_400):
        expected = f"Delegated Regulation (EU) 2016/522, Annex II, {practice}"
        assert typology.regulatory_reference(seconds) == expected


def test_a_bar_within_a_session_marks_no_close() -> None:
    assert Typology.MARKING_THE_CLOSE.regulatory_reference(60) == ""
    assert Typology.MARKING_THE_CLOSE.regulatory_reference(86_400).endswith("Annex II, marking the close")


def test_what_fits_no_practice_names_none() -> None:
    named = {t for t in OBSERVABLE if t.regulatory_reference(86_400)}
    assert set(OBSERVABLE) - named == {Typology.RAMPING, Typology.PRICE_SPIKE, Typology.VOLUME_SPIKE}
    assert Typology.UNSPECIFIED.regulatory_reference(86_400) == ""
