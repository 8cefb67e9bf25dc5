"""A file of at most so many bytes, of the least loss that this allows."""

from collections.abc import Callable

from jaxprune.files.compressed import Compressed

_PARTS = 16  # of an octave, by which steps are told apart
_OCTAVES = 40  # from the first step, either way


def finest(code: Callable[[float], Compressed], max_bytes: float) -> Compressed:
    """The file of the finest step, of those told apart, that takes at most ``max_bytes``; finer steps take more.

    An equal step for all leaves costs the least error for the bits: one more then saves as much error in any of them.

    Raises:
      ValueError: no step is coarse enough.
    """
    smallest, error = None, None

    def fits(part: int) -> Compressed | None:
        nonlocal smallest, error
        try:
            made = code(2.0 ** (part / _PARTS))
        except ValueError as reason:  # such as codes that are too large, which is no matter if coarser steps fit
            error = reason
            return None
        smallest = min(smallest or made.nbytes, made.nbytes)
        return made if made.nbytes <= max_bytes else None

    best, high = fits(0), 0
    while best is None:
        high += _PARTS
        if high > _OCTAVES * _PARTS:
            if smallest is None and error is not None:
                raise error
            raise ValueError(f"max_bytes {max_bytes:,.0f} is too small: all zeros take {smallest:,}")
        best = fits(high)
    low = high - _PARTS
    while high > -_OCTAVES * _PARTS and high <= 0 and (finer := fits(low)):
        best, high, low = finer, low, low - _PARTS
    while high - low > 1:
        middle = (high + low) // 2
        finer = fits(middle)
        best, high, low = (finer, middle, low) if finer else (best, high, middle)
    return best
