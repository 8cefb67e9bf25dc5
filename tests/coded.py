"""Codes by each coder alone, whichever would be chosen for them."""

import numpy as np

from jaxprune.files import classes, coders, gaps, lanes, mixing, packing, tables


def _static(codes, number):
    counted = tables.histogram(codes)
    if counted is None or len(counted[0]) < 2:
        return None
    table = tables.from_histogram(*counted)
    stream = lanes.write(table, codes) if number == coders.LANES else tables.write_stream([(table, codes)])
    return None if stream is None else tables.write(table) + stream


def alone(number: int, codes: np.ndarray) -> bytes | None:
    """What that coder makes of codes; None if it does not take them."""
    if not codes.size:
        return b""
    if number in (coders.ANS, coders.LANES):
        return _static(codes, number)
    others = {coders.PACKING: packing, coders.CLASSES: classes, coders.MIXING: mixing, coders.GAPS: gaps}
    return others[number].encode(codes)


def each(codes: np.ndarray) -> list[tuple[int, bytes]]:
    """The coders that take these codes, and what they make of them."""
    found = [(number, alone(number, codes)) for number in range(len(coders.NAMES))]
    return [(number, data) for number, data in found if data is not None]
