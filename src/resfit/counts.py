"""Counts of parameters or operations as people write them, such as 500k and 2.5M."""

from __future__ import annotations

import re

from resfit.errors import BadInput

_UNITS = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000, "g": 1_000_000_000}


def parse_count(text: str, option: str = "--budget") -> int:
    """Parse a number of parameters or MACs, such as 5_000_000, 500k, 2.5M, 1B or 1G; raise BadInput if invalid."""
    number, unit = text.strip().replace("_", ""), 1
    if re.fullmatch(r"\d{1,3}(,\d{3})+[kKmMbBgG]?", number):  # thousands separators only: 2,5M could mean 2.5M or 25M
        number = number.replace(",", "")
    if number[-1:].lower() in _UNITS:
        number, unit = number[:-1], _UNITS[number[-1].lower()]
    try:
        count = round(float(number) * unit)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise BadInput(f"{text!r} is not a count ({option}): give one such as 500k or 5M")
    return count


def short_count(count: int) -> str:
    """Return the shortest text that `parse_count` parses as `count`, such as 500k or 2.5M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size and parse_count(text := f"{count / size:g}{unit}") == count:
            return text
    return str(count)
