"""Small files: coding parameters in as few bytes as they need, and reading them back, from strangers too.

What may be lost is decided first, by name; the bytes lose nothing.
"""

import os
from functools import partial
from typing import Any, get_args

import jax

from jaxprune import settings, tree
from jaxprune.base import Masks, Params, Setting, Where
from jaxprune.files import arrays, container, fitting, lossy, tree_json
from jaxprune.files.bytestream import FormatError, naming
from jaxprune.files.coders import Effort
from jaxprune.files.compressed import Compressed
from jaxprune.files.tree_json import Node
from jaxprune.host import in_parallel, library, written_whole

__all__ = ["Compressed", "FormatError", "compress", "join", "load", "read", "save"]

_ARRAYS = ": give the arrays alone, such as eqx.filter(model, eqx.is_array) of an Equinox model"
_LONGEST_HEADER = 2**26  # bytes; the library that parses it takes as much again


def compress(
    params: Params,
    bits: Setting = None,
    *,
    masks: Masks | None = None,
    quantizer: lossy.Way | None = None,
    side: str | None = None,
    effort: Effort = "fast",
    max_bytes: float | None = None,
    where: Where = None,
) -> Compressed:
    """Codes a tree of parameters in few bytes; each array in the smallest of several ways.

    Without ``masks``, ``bits``, ``max_bytes`` and ``side`` nothing is lost: every leaf comes back bit for bit, NaN and
    -0.0 too, of any dtype, and the tree with the containers that it had. These say what may be lost, in this order;
    what is left is coded without loss. So weights that were pruned, quantized or shared before (dense arrays of few
    values, a ``QArray``, a ``CodebookArray``) become small with no option at all.

    Args:
      params: any pytree of arrays and Python numbers, or one bare array. Records (``QArray``, ``CodebookArray``) come
        back as records; of a spec's ``calibration`` that is a function of your own, only its name does.
      bits: width of the codes of the selected leaves, a number or a tree of them; what comes back is what
        ``fake_quant`` gives for the same spec. For "rd" and "trellis" one number in (0, 10]: the mean entropy of the
        codes that is aimed at, in bits a weight; for "codebook" the number of values that the weights of a leaf share.
        None for no quantization.
      masks: bool, same paths; what they remove is stored, and comes back, as 0.0.
      quantizer: how codes of so many bits are made. "uniform": a scale a unit, short and rounded up, or one a leaf
        where no rule knows the units (:mod:`jaxprune.layout`); or a ``QuantSpec`` that says it otherwise; "rd", one
        step for all leaves, and roundings that weigh bits against errors
        (:mod:`jaxprune.quantization.rate_distortion`); "trellis", less error still for the same bits
        (:mod:`jaxprune.quantization.trellis`; few zeros do not stay zeros in embeddings); "codebook", values that are
        shared (:func:`jaxprune.codebook.encode`); or a function ``(params, bits, where)`` that puts records in place of
        the selected leaves. None for "uniform", or "rd" with ``max_bytes``.
      side: how biases, scales and all other floating leaves that are not selected are stored: None as they are,
        "float16" rounded to it, "int8" by 8-bit codes with one scale a leaf. Centroids, and scales where a leaf has
        several, are rounded to float16 in both.
        They come back in their own dtype.
      effort: "fast" takes seconds for any size. "best" also tries a coder that learns from entry to entry: pruned
        low-bit weights take up to a quarter less, and some ten seconds a million of them, both ways.
      max_bytes: the most that the file may take, instead of ``bits``: the finest step for all leaves that allows it, of
        "rd", "trellis" or a function ``(params, step, where)``. What data say weighs with
        ``lambda params, step, where: jp.calibration.encode(params, stats, step)``. Nothing is lost if that fits. A
        width for each leaf, by what it costs the network, is found by :func:`jaxprune.search`.
      where: the leaves that ``bits`` and ``max_bytes`` are about; see :func:`jaxprune.tree.select`.

    Returns:
      A :class:`Compressed`, with ``nbytes``, ``decompress()`` and ``report()``; :func:`jaxprune.save` writes it.

    Raises:
      ValueError: ``bits`` together with ``max_bytes``; a size that is too small; an unknown effort or quantizer; masks
        that do not fit; as ``quantize`` and ``encode``.
      TypeError: traced arrays; a leaf that is no array and no number; keys or metadata that JSON cannot hold.

    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 64)), "bias": jax.numpy.zeros(64)}
    >>> small = compress(params, 3)
    >>> small.nbytes < 64 * 64 * 3.2 / 8, small.decompress()["kernel"].dtype
    (True, dtype('float32'))
    """
    if effort not in get_args(Effort):
        raise ValueError(f"effort must be 'fast' or 'best', got {effort!r}")
    _check_leaves(params)

    def coded(setting: Setting, way: lossy.Quantizer) -> Compressed:
        chosen, leaves, dense = lossy.choose(params, masks, setting, way, side, where)
        work = partial(arrays.encode, effort=effort)
        payloads = in_parallel(work, leaves, nbytes=lambda leaf: getattr(leaf, "nbytes", 8))
        return Compressed(tree_json.outline(chosen, dense), tuple(map(container.in_memory, payloads)))

    if max_bytes is None:
        return coded(bits, lossy.by_bits("uniform" if quantizer is None else quantizer))
    if bits is not None:
        raise ValueError("bits and max_bytes both say how small the file becomes: give one")
    way, whole = lossy.by_step("rd" if quantizer is None else quantizer), coded(None, lossy.uniform)
    return whole if whole.nbytes <= max_bytes else fitting.finest(partial(coded, way=way), max_bytes)


def join(parts: Params) -> Compressed:
    """One tree of what was compressed leaf by leaf, so that dense arrays need not be in memory together.

    Args:
      parts: a tree, of the kinds of node that a file can name, with a :class:`Compressed` as each leaf.

    >>> small = join({"a": compress(jax.numpy.ones(3)), "b": [compress(5), compress({"c": 7})["c"]]})
    >>> small.decompress()
    {'a': Array([1., 1., 1.], dtype=float32), 'b': [5, 7]}
    """
    leaves, whole = jax.tree.leaves(parts), tree_json.outline(parts)
    remaining = iter(leaves)

    def moved(node: Node, path: str | None) -> Node:
        below = map(moved, node.children, tree_json.paths(node, len(node.children), path))
        return node._replace(path=path or "", children=tuple(below))

    def filled(node: Node) -> Node:
        if node.kind is None:
            return moved(next(remaining).root, None if node is whole else node.path)
        return node._replace(children=tuple(map(filled, node.children)))

    return Compressed(filled(whole), tuple(stored for leaf in leaves for stored in leaf.stored))


def save(path: str | os.PathLike[str], params: Params | Compressed, **options: Any) -> int:
    """Writes compressed parameters to a file and returns its size in bytes.

    The file is a safetensors container, described in ``docs/format.md``. It is written beside ``path``, flushed to the
    disk and then renamed: whatever goes wrong, ``path`` holds the old file or the new one.

    Args:
      path: where; the folder must exist.
      params: what :func:`compress` returned, or a tree, which is compressed with ``options`` first.
      **options: of :func:`compress`; none, for no loss.

    Raises:
      TypeError: options for what is compressed already. As :func:`compress`; OSError.

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save(folder + "/weights.jp", {"kernel": np.ones((20, 30), np.float32)})
    ...     load(folder + "/weights.jp")["kernel"].sum(), size < 2400
    (np.float32(600.0), True)
    """
    if isinstance(params, Compressed) and options:
        raise TypeError(f"the parameters are compressed already; {sorted(options)} would have no effect")
    pieces = (params if isinstance(params, Compressed) else compress(params, **options)).pieces()
    with written_whole(path) as beside, open(beside, "wb") as file:
        file.writelines(pieces)
    return sum(map(len, pieces))


def load(
    path: str | os.PathLike[str], *, leaf: str | None = None, max_bytes: int | None = None, like: Params = None
) -> Params:
    """Reads parameters from a file that :func:`save` wrote. Safe for files from strangers: nothing in them is run.

    Args:
      path: the file.
      leaf, max_bytes, like: as in :meth:`Compressed.decompress`; of one leaf, only its bytes are read.

    Raises:
      FormatError: the file is damaged, cut short, made up, of another version, or too large when decoded.
      ValueError: no such leaf; ``like`` does not fit or is needed. OSError: no such file.

    >>> import jax.numpy as jnp, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(folder + "/weights.jp", {"Dense_0": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}, bits=2)
    ...     load(folder + "/weights.jp", leaf="Dense_0/kernel")
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    return read(path).decompress(leaf, max_bytes=max_bytes, like=like)


def read(path: str | os.PathLike[str]) -> Compressed:
    """Opens a file without decoding it: the header is checked, leaves are read when they are decoded.

    Args:
      path: the file, which must stay as it is as long as the result is used.

    Raises:
      FormatError, OSError: as :func:`load`.

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(folder + "/weights.jp", {"kernel": np.zeros((4, 5), np.int8)})
    ...     [leaf.path for leaf in read(folder + "/weights.jp").report().leaves]
    ['kernel']
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(_LONGEST_HEADER, os.path.getsize(name)):
        raise FormatError(
            f"{name}: a header of {length} bytes: truncated, or none of jaxprune; jaxprune.read_checkpoint reads others"
        )
    safetensors = library("safetensors", "jaxprune[files]")
    with naming(name):
        try:
            opened = safetensors.safe_open(name, "np")
        except safetensors.SafetensorError as error:
            raise FormatError(f"no safetensors file, or a damaged one: {error}") from error
        root, stored, metadata = container.parse(opened)
    return Compressed(root, tuple(stored), metadata)


def _check_leaves(params: Params) -> None:
    """Raises on leaves that have no bytes here."""
    for i, leaf in enumerate(jax.tree.leaves(params)):
        if not settings.any_traced(leaf) and arrays.holds(leaf) and getattr(leaf, "is_fully_addressable", True):
            continue
        path = tree.show(list(tree_json.leaves(tree_json.outline(params)))[i].path)
        if settings.any_traced(leaf):
            raise TypeError(f"leaf {path} is traced: compress works on the host, outside of jit")
        if not arrays.holds(leaf):
            raise TypeError(f"leaf {path} is {leaf!r} ({type(leaf).__name__}), which has no bytes to store{_ARRAYS}")
        raise ValueError(f"leaf {path} has parts on other hosts: gather it first")
