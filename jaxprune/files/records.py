"""Records: one array in several parts, such as a ``QArray``. A new one takes its place among the ``RECORDS`` here.

Of codes, the first part has the shape of the array that they make, the second scales its values. Other records have
``values``, fewer than the array has.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Calibration, QuantSpec
from jaxprune.files.bytestream import FormatError
from jaxprune.kernels.viterbi import TAPS
from jaxprune.quantization import ranges
from jaxprune.quantization.arrays import n_of_m, protocol
from jaxprune.quantization.arrays.coded import CodebookArray, QArray, ScaledArray, TrellisArray
from jaxprune.quantization.arrays.n_of_m import NOfMArray
from jaxprune.quantization.leaves import ShortScale


@dataclass(frozen=True)
class NamedCalibration:
    """What comes back from a file for a calibration that is a function of somebody's own: its name.

    A file from a stranger must not choose what is imported and run, so it cannot be called.
    """

    name: str

    def __call__(self, *args: Any) -> Any:
        said = f"the calibration of this spec was {self.name}, of which a file holds the name alone: put the function"
        raise ValueError(f"{said} in its place, as in dataclasses.replace(spec, calibration=function)")


_DEFAULT = QuantSpec()
_CALIBRATIONS = {  # what a file can name: the class, with one field, and what makes it of that
    "percentile": (ranges.Percentile, ranges.percentile),
    "mean_squared_error": (ranges.MeanSquaredError, ranges.mean_squared_error),
    "short_scale": (ShortScale, lambda digits: ShortScale(_whole(lambda number: 0 <= number <= 23)(digits))),
    "function": (NamedCalibration, NamedCalibration),
}


def _whole(allowed: Callable[[int], bool]) -> Callable[[Any], int]:
    """An integer that is allowed."""

    def made(value: Any) -> int:
        if type(value) is not int or not allowed(value):
            raise ValueError(value)
        return value

    return made


def _spec(given: Any) -> QuantSpec:
    axis, block = given["axis"], given["block_size"]
    along = given.get("block_axis")
    numbers = [*(axis if isinstance(axis, list) else [axis or 0]), block or 1, along or 0]
    if any(type(number) is not int for number in numbers) or (block or 1) < 1:
        raise ValueError(given)
    axis = tuple(axis) if isinstance(axis, list) else axis
    return QuantSpec(bool(given["symmetric"]), axis, block, _calibration(given.get("calibration")), along)


def _calibration(given: Any) -> Calibration | None:
    if given is None:
        return None
    ((name, value),) = given.items()
    if name == "function" and type(value) is not str:
        raise ValueError(given)
    return _CALIBRATIONS[name][1](value)


def _named(calibration: Calibration) -> dict[str, Any]:
    """A calibration as JSON: its kind and its setting."""
    for name, (cls, _) in _CALIBRATIONS.items():
        if type(calibration) is cls:
            return dict.fromkeys([name], *vars(calibration).values())
    named = calibration if hasattr(calibration, "__qualname__") else type(calibration)
    return {"function": f"{named.__module__}:{named.__qualname__}"}


def _shape(value: Any) -> tuple[int, ...]:
    lengths = tuple(map(_whole(lambda length: length >= 0), value))
    if math.prod(max(n, 1) for n in lengths) >= 2**62:
        raise ValueError(value)
    return lengths


def _no_centroid(record: CodebookArray) -> str:
    codes, number = np.asarray(record.codes), record.centroids.shape[-1]
    if record.centroids.shape[:-1] != record.keeps_zeros.shape:
        return f"centroids of shape {record.centroids.shape} for {record.keeps_zeros.shape} tables"
    beyond = codes.size and not 0 <= codes.min() <= codes.max() < number
    return f"codes from {codes.min()} to {codes.max()} for {number} centroids" if beyond else ""


def _no_index(record: TrellisArray) -> str:
    held = np.iinfo(record.indices.dtype)
    fits = record.zero is None or held.min <= record.zero <= held.max
    return "" if fits else f"zeros as index {record.zero}, which no {record.indices.dtype} is"


_CLASSES = (QArray, CodebookArray, TrellisArray, ScaledArray, NOfMArray)
RECORDS: dict[str, Any] = {kind.__name__: kind for kind in _CLASSES}
_FAULTS: dict[Any, Callable[[Any], str]] = {  # what is wrong with parts of the right shapes, if anything
    CodebookArray: _no_centroid,
    TrellisArray: _no_index,
    NOfMArray: n_of_m.fault,
}
_STATIC: dict[str, Callable[[Any], Any]] = {  # fields of any record: what makes each of JSON, or raises
    "bits": _whole(lambda bits: 1 <= bits <= 16),
    "dtype": lambda name: np.dtype(getattr(jnp, str(name))),
    "spec": _spec,
    "states": _whole(lambda states: states in TAPS),
    "zero": lambda index: None if index is None else _whole(lambda zero: True)(index),
    "n": _whole(lambda count: 1 <= count <= 256),
    "m": _whole(lambda count: 1 <= count <= 256),
    "axis": _whole(lambda axis: axis < 0),
    "shape": _shape,
}


def is_record(leaf: Any) -> bool:
    """Whether a node of a tree is an array in several parts."""
    return isinstance(leaf, _CLASSES)


def to_json(name: str, static: tuple[Any, ...]) -> dict[str, Any]:
    """The static fields of a record as JSON; a spec is left out if it is the default."""
    named = zip(protocol.statics(RECORDS[name]), static, strict=True)
    return {key: _plain(value) for key, value in named if value != _DEFAULT}


def from_json(name: str, kind: dict[str, Any]) -> dict[str, Any] | None:
    """The static fields of a record, or None if they make no sense."""
    given = {"spec": _plain(_DEFAULT), **kind}
    try:
        return {key: _STATIC[key](given[key]) for key in protocol.statics(RECORDS[name])}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def with_scales(record: Any, change: Callable[[Any], Any]) -> Any:
    """The record with its scales, or centroids, changed; as it is if it has none."""
    codes, scales, *_ = protocol.parts(record)
    return record if codes == "values" else replace(record, **{scales: change(getattr(record, scales))})


def check(record: Any) -> None:
    """Raises :class:`FormatError` unless the parts of a record fit together."""
    first = protocol.parts(record)[0]
    codes = getattr(record, first)
    try:
        made = jax.eval_shape(protocol.dense, record)
    except (TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise FormatError(f"parts of a {type(record).__name__} that do not fit together: {error}") from error
    if first != "values" and (made.shape != codes.shape or not np.issubdtype(codes.dtype, np.integer)):
        raise FormatError(f"codes of shape {codes.shape} and dtype {codes.dtype} for values of shape {made.shape}")
    if type(record) in _FAULTS and (fault := _FAULTS[type(record)](record)):
        raise FormatError(fault)


def _plain(value: Any) -> Any:
    """A static field as JSON."""
    if isinstance(value, QuantSpec):
        axis = list(value.axis) if isinstance(value.axis, tuple) else value.axis
        found = {"symmetric": value.symmetric, "axis": axis, "block_size": value.block_size}
        found |= {} if value.block_axis is None else {"block_axis": value.block_axis}
        if value.calibration is not None:
            found["calibration"] = _named(value.calibration)
        return found
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, int | str) else np.dtype(value).name
