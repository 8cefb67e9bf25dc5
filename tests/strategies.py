"""Hypothesis strategies that the tests share; everything they draw is NumPy (ml_dtypes for bfloat16)."""

import math

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))

# Magnitudes stay well inside the normal range, so that squares, scales and range widths neither overflow nor underflow.
_SMALLEST = {np.dtype(np.float32): 1e-12, BFLOAT16: 1e-12, np.dtype(np.float16): 2.0**-14}
_LARGEST = {np.dtype(np.float32): 1e12, BFLOAT16: 1e12, np.dtype(np.float16): 6e4}
_TIES = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0)
_SPECIAL = (math.nan, math.inf, -math.inf)


def values(dtype, special=True):
    """Floats for `dtype`: ties, signed zeros, tiny and huge magnitudes and, when `special`, NaN and infinities."""
    tiny, huge = _SMALLEST[np.dtype(dtype)], _LARGEST[np.dtype(dtype)]
    plain = st.floats(-8, 8, width=32, allow_subnormal=False)
    flushed = plain.map(lambda v: math.copysign(0.0, v) if abs(v) < tiny else v)
    picked = st.sampled_from(_TIES + (tiny, -tiny, huge, -huge) + (_SPECIAL if special else ()))
    return st.one_of(st.sampled_from(_TIES), picked, flushed)


def shapes(min_dims=1, max_dims=4, min_side=0, max_side=5):
    """Small shapes, zero-sized ones included by default."""
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)


@st.composite
def float_arrays(draw, dtypes=DTYPES, shape=None, special=True):
    """A float array; `shape` is a shape or a strategy of shapes (default `shapes()`)."""
    dtype = draw(st.sampled_from(dtypes))
    shape = shapes() if shape is None else shape
    shape = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    return draw(hnp.arrays(np.float32, shape, elements=values(dtype, special))).astype(dtype)


@st.composite
def integer_scores(draw, shape=None, largest=4):
    """A float32 array of small non-negative integers: many ties, and every sum exact in any order."""
    shape = shapes() if shape is None else shape
    shape = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    return draw(hnp.arrays(np.int32, shape, elements=st.integers(0, largest))).astype(np.float32)


@st.composite
def layers(draw, dtypes=DTYPES, special=True, kernels=None):
    """One layer, {"kernel": (in, out) or (h, w, in, out), "bias": (out,)}, the bias sometimes left out."""
    kernel_shape = st.one_of(shapes(2, 2, 1, 5), shapes(4, 4, 1, 3)) if kernels is None else st.sampled_from(kernels)
    kernel = draw(float_arrays(dtypes, kernel_shape, special))
    if draw(st.booleans()):
        return {"kernel": kernel}
    return {"kernel": kernel, "bias": draw(float_arrays((kernel.dtype,), kernel.shape[-1:], special))}


@st.composite
def param_trees(draw, dtypes=DTYPES, special=True, kernels=None):
    """Small parameter trees: one layer, or a dict, nested dict, list or tuple of one to three layers.

    ``kernels``: the shapes to take; what runs eagerly compiles for each of them.
    """
    drawn = draw(st.lists(layers(dtypes, special, kernels), min_size=1, max_size=3))
    named = {f"Dense_{i}": layer for i, layer in enumerate(drawn)}
    containers = (drawn[0], named, {"params": named}, {"encoder": {"block": named}}, drawn, tuple(drawn))
    return draw(st.sampled_from(containers))


def sparsities():
    """float32 values in [0, 1], the ends and the halves that make counts tie included."""
    edges = st.sampled_from((0.0, 1.0, 0.5, 0.25, 0.75))
    return st.one_of(edges, st.floats(0, 1, width=32, allow_subnormal=False))


def bit_widths(fractional=False):
    """Whole widths 1..16 and, when `fractional`, float32 widths between them."""
    whole = st.integers(1, 16)
    return st.one_of(whole, st.floats(1, 16, width=32)) if fractional else whole
