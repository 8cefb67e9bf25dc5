"""Codes by each coder alone, whichever would be chosen for them."""

import numpy as np

from jaxprune.files import classes, coders, mixing, tables


def alone(number: int, codes: np.ndarray) -> bytes | None:
    """What that coder makes of codes; None if it does not take them."""
    if not codes.size:
        return b""
    if number in (coders.CLASSES, coders.MIXING, coders.PACKING):
        return {coders.PACKING: coders.pack, coders.CLASSES: classes.encode, coders.MIXING: mixing.encode}[number](
            codes
        )
    counted = tables.histogram(codes)
    if counted is None or (len(counted[0]) < 2 and number != coders.GAPS):
        return None
    if number == coders.GAPS:
        return coders.by_gaps(codes, counted)
    return coders.with_table(codes, counted, number == coders.LANES)


def each(codes: np.ndarray) -> list[tuple[int, bytes]]:
    """The coders that take these codes, and what they make of them."""
    found = [(number, alone(number, codes)) for number in range(len(coders.NAMES))]
    return [(number, data) for number, data in found if data is not None]
