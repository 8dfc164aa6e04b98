"""Kinds of manipulation, and which of them price and volume can show at all."""

from enum import IntEnum

from services.domain.quote import DAY_SECONDS


class Typology(IntEnum):
    """What price and volume are consistent with; the numbers are the proto's."""

    UNSPECIFIED = 0
    PUMP_AND_DUMP = 1
    TRASH_AND_CASH = 2
    RAMPING = 3
    MARKING_THE_CLOSE = 4
    MOMENTUM_IGNITION = 5
    PRICE_SPIKE = 6
    VOLUME_SPIKE = 7

    @property
    def words(self) -> str:
        """The name as an analyst writes it, for example "pump and dump"."""
        return self.name.lower().replace("_", " ")

    def regulatory_reference(self, interval_seconds: int) -> str:
        """The practice of EU law that bars of this length would show, intent given; empty where none fits.

        It is one of Delegated Regulation (EU) 2016/522, Annex II; its point is named where that was verified. Price and
        volume show the shape of a practice, never the practice. A bar that ends within a session shows no close.
        """
        if self is Typology.MARKING_THE_CLOSE and interval_seconds < DAY_SECONDS:
            return ""
        practice = _PRACTICES.get(self)
        return f"Delegated Regulation (EU) 2016/522, Annex II, {practice}" if practice else ""


_PRACTICES = {
    Typology.PUMP_AND_DUMP: "Section 1, point 4(c), pump and dump",
    Typology.TRASH_AND_CASH: "trash and cash",
    Typology.MARKING_THE_CLOSE: "marking the close",
    Typology.MOMENTUM_IGNITION: "Section 1, point 4(e), momentum ignition",
}

OBSERVABLE = tuple(t for t in Typology if t is not Typology.UNSPECIFIED)

NOT_OBSERVABLE = ("spoofing", "layering", "wash trades", "quote stuffing", "insider dealing")
"""They need order, identity or news data."""
