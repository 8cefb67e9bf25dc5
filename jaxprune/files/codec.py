"""From parameters to bytes and back: what may be lost is decided first, by name; the bytes lose nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np
from jax.core import Tracer

from jaxprune import tree
from jaxprune.base import Masks, Params, QuantSpec, Setting, Where
from jaxprune.files import arrays, coders, container, decoding, extras, lossy, tree_json
from jaxprune.files.report import SizeReport, size_report

_PLAIN = QuantSpec()


@dataclass(frozen=True, eq=False)
class Compressed:
    """Parameters in few bytes, made by :func:`compress` or opened by :func:`jaxprune.files.read`.

    Attributes:
      root: the structure of the tree.
      stored: the bytes of each leaf.
    """

    root: tree_json.Node
    stored: tuple[container.Stored, ...]

    @cached_property
    def nbytes(self) -> int:
        """The size in bytes of the file that :func:`jaxprune.save` writes, with its headers, tables and checksums."""
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file itself."""
        parts, metadata = container.tensors(self.root, [part.data() for part in self.stored])
        return extras.safetensors().numpy.save(parts, metadata)

    def decompress(
        self, leaf: str | None = None, *, max_bytes: int | None = None, like: Params = None, progress: bool = False
    ) -> Params:
        """The parameters, bit for bit as they were coded; leaves decode in parallel.

        Args:
          leaf: the path of one leaf, or of a subtree, which alone is read and decoded. None for everything.
          max_bytes: the most bytes that the arrays may take; working memory is a small multiple of it. None for 1 GiB
            or 1,000 times the coded size, whichever is more.
          like: a tree of the structure that comes back, for nodes that a file cannot name safely (a ``NamedTuple``, a
            class of one's own); its leaves are not looked at.
          progress: draw a bar on stderr (needs ``rich``).

        Returns:
          JAX arrays where JAX arrays were given, NumPy arrays and Python numbers where those were. An array of 64 bits
          is a NumPy array as long as JAX has ``jax_enable_x64`` off, which would cut it to 32.

        Raises:
          ArtifactError: damaged or made-up bytes, or arrays of more than ``max_bytes``; it names the leaf.
          ValueError: there is no such leaf; ``like`` has another structure, or is needed and was not given.

        >>> compress({"kernel": jax.numpy.zeros(4), "step": 7}).decompress()
        {'kernel': Array([0., 0., 0., 0.], dtype=float32), 'step': 7}
        """
        root, first = (self.root, 0) if leaf is None else tree_json.find(self.root, leaf)
        number = sum(1 for _ in tree_json.leaves(root))
        wanted = decoding.units(root, self.stored[first : first + number])
        if like is not None and tree_json.outline(like) != tree_json.collapsed(root, dense_only=True):
            raise ValueError(f"like has the structure {jax.tree.structure(like)}, which is not that of the file")
        leaves = decoding.decode_all(wanted, sum(part.size for part in self.stored), max_bytes, progress)
        if like is not None:
            return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(leaves))
        return tree_json.rebuild(tree_json.collapsed(root), partial(next, iter(leaves)))

    def report(self) -> SizeReport:
        """What takes how many bytes, leaf by leaf: ``print`` it, or read its rows."""
        return size_report(self)


def compress(
    params: Params,
    *,
    masks: Masks | None = None,
    bits: Setting = None,
    codebook: Setting = None,
    quantizer: str | lossy.Quantizer = "uniform",
    spec: QuantSpec = _PLAIN,
    side: str | None = None,
    where: Where = None,
    use: Sequence[str] | None = None,
    progress: bool = False,
) -> Compressed:
    """Codes a tree of parameters in as few bytes as it can; each array in the smallest of several ways.

    Without ``masks``, ``bits``, ``codebook`` and ``side`` nothing is lost: every leaf comes back bit for bit, NaN and
    -0.0 too, of any dtype, and the tree with the containers that it had. These four say what may be lost, in this
    order; what is left is coded without loss. So weights that were pruned, quantized or shared before (dense arrays of
    few values, a ``QArray``, a ``CodebookArray``) become small with no option at all.

    Args:
      params: any pytree of arrays and Python numbers, or one bare array. Records (``QArray``, ``CodebookArray``) come
        back as records, a spec's ``calibration`` as None.
      masks: bool, same paths; what they remove is stored, and comes back, as 0.0.
      bits: width of the codes of the selected leaves, a number or a tree of them; what comes back is what
        ``fake_quant`` gives. For "rd" and "trellis" one number in (0, 10]: the mean entropy of the codes that is aimed
        at, in bits a weight. None for no quantization.
      codebook: number of values that the weights of a selected leaf share, a number or a tree; see
        :func:`jaxprune.codebook.encode`. Not together with ``bits``.
      quantizer: "uniform"; "rd", one step for all leaves, and roundings that weigh bits against errors
        (:mod:`jaxprune.rate_distortion`); "trellis", less error still for the same bits (:mod:`jaxprune.trellis`; few
        zeros do not stay zeros in embeddings); or a function ``(params, bits, where)`` that puts records in place of
        the selected leaves.
      spec: the uniform quantizer's spec.
      side: how biases, scales and all other floating leaves that are not selected are stored: None as they are,
        "float16" rounded to it, "int8" by 8-bit codes with one scale a leaf. Centroids, and scales where a leaf has
        several, are rounded to float16 in both.
        They come back in their own dtype.
      where: the leaves that ``bits`` and ``codebook`` are about; see :func:`jaxprune.tree.select`.
      use: names of the coders that are tried, of ``jaxprune.files.coders.NAMES``. None for all that may pay. For
        trees of up to 2**20 weights "mixing" is among them, which is the smallest for pruned low-bit weights and takes
        10 seconds a million of them both ways; for larger ones "lanes" and "class_lanes", which decode several times
        as fast as others. Where a leaf with these has at most 0.4% and 80 bytes more than it might, no others are
        tried.
      progress: draw a bar on stderr (needs ``rich``).

    Returns:
      A :class:`Compressed`, with ``nbytes``, ``decompress()`` and ``report()``; :func:`jaxprune.save` writes it.

    Raises:
      ValueError: ``bits`` together with ``codebook``; an unknown coder; masks that do not fit; as ``quantize`` and
        ``encode``.
      TypeError: traced arrays; a leaf that is no array and no number; keys or metadata that JSON cannot hold.

    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 64)), "bias": jax.numpy.zeros(64)}
    >>> small = compress(params, bits=3)
    >>> small.nbytes < 64 * 64 * 3 / 8, small.decompress()["kernel"].dtype
    (True, dtype('float32'))
    """
    names = coders.default(_weights(params)) if use is None else tuple(use)
    unknown = [name for name in names if name not in coders.NAMES]
    if unknown or not names:
        raise ValueError(f"use names {unknown}; the coders are {coders.NAMES}")
    _check_leaves(params)
    chosen = lossy.choose(params, masks, bits, codebook, quantizer, spec, side, where)
    root = tree_json.outline(chosen.tree, chosen.dense)
    payloads = decoding.in_parallel(partial(arrays.encode, wanted=names), chosen.leaves, "leaves", progress)
    return Compressed(root, tuple(container.in_memory(data) for data in payloads))


def _weights(params: Params) -> int:
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params))


def _check_leaves(params: Params) -> None:
    """Raises on leaves that have no bytes here."""
    leaves, paths = jax.tree.leaves(params), [node.path for node in tree_json.leaves(tree_json.outline(params))]
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, Tracer):
            raise TypeError(f"leaf {tree.show(path)} is traced: compress works on the host, outside of jit")
        if not arrays.holds(leaf):
            raise TypeError(f"leaf {tree.show(path)} is {leaf!r} ({type(leaf).__name__}), which has no bytes to store")
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(f"leaf {tree.show(path)} has parts on other hosts: gather it first")
