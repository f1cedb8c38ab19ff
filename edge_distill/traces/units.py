"""Units that can be converted into each other."""

from __future__ import annotations

from fractions import Fraction

__all__ = ["Unit", "unit_of"]

# dimension, and how many of the dimension's base unit it is
Unit = tuple[str, Fraction]

_TABLE: dict[str, dict[str, str]] = {
    "time": {
        "1": "second seconds sec secs s", "60": "minute minutes min mins", "3600": "hour hours hr hrs h",
        "86400": "day days", "604800": "week weeks",
    },
    "calendar": {"1": "month months", "12": "year years"},
    "length": {
        "1": "mm millimeter millimeters", "10": "cm centimeter centimeters", "1000": "m meter meters metre metres",
        "1000000": "km kilometer kilometers kilometre kilometres",
    },
    "distance": {"1": "inch inches", "12": "foot feet ft", "36": "yard yards yd", "63360": "mile miles"},
    "mass": {"1": "mg", "1000": "g gram grams", "1000000": "kg kilogram kilograms", "1000000000": "tonne tonnes"},
    "weight": {"1": "ounce ounces oz", "16": "pound pounds lb lbs"},
    "volume": {"1": "ml milliliter milliliters", "10": "cl", "1000": "l liter liters litre litres"},
    "money $": {"1/100": "cent cents ¢", "1": "$ dollar dollars"},
    "money €": {"1": "€ euro euros"},
    "money £": {"1/100": "pence", "1": "£"},
    "money ¥": {"1": "¥ yen"},
    "money ₹": {"1": "₹ rupee rupees"},
}  # fmt: skip
_UNITS = {
    word: (dimension, Fraction(factor))
    for dimension, words_of in _TABLE.items()
    for factor, words in words_of.items()
    for word in words.split()
}


def unit_of(word: str) -> Unit | None:
    """The unit that a word names; None for one that cannot be converted, as rolls."""
    return _UNITS.get(word if len(word) == 1 else word.casefold())
