"""Kinds of manipulation, and which of them price and volume can show at all."""

from enum import IntEnum


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


OBSERVABLE = tuple(t for t in Typology if t is not Typology.UNSPECIFIED)

NOT_OBSERVABLE = ("spoofing", "layering", "wash trades", "quote stuffing", "insider dealing")
"""They need order, identity or news data."""
