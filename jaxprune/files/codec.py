"""From parameters to bytes and back: what may be lost is decided first, by name; the bytes lose nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, get_args

import jax
from jax.core import Tracer

from jaxprune import tree
from jaxprune.base import Masks, Params, QuantSpec, Setting, Where
from jaxprune.files import arrays, container, decoding, lossy, tree_json
from jaxprune.files.coders import Effort
from jaxprune.files.decoding import StoredLeaf
from jaxprune.files.report import SizeReport, size_report
from jaxprune.host import in_parallel


@dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """Parameters in few bytes, made by :func:`compress` or opened by :func:`jaxprune.files.read`.

    ``compressed["Dense_0"]`` is a leaf or a subtree alone, compressed as it is here; nothing is decoded.

    Attributes:
      root: the structure of the tree.
      stored: the bytes of each array.
      metadata: texts by name that the file holds beside, such as those of a safetensors file that it was made of.
    """

    root: tree_json.Node
    stored: tuple[container.Stored, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def leaves(self) -> list[StoredLeaf]:
        """The leaves in the order of ``jax.tree.leaves``: path, shape, dtype, nbytes, and ``read()``."""
        return decoding.leaves_of(self.root, self.stored)

    @cached_property
    def nbytes(self) -> int:
        """The size in bytes of the file that :func:`jaxprune.save` writes, with its headers, tables and checksums."""
        return sum(map(len, self.pieces()))

    def to_bytes(self) -> bytes:
        """The file itself."""
        return b"".join(self.pieces())

    def pieces(self) -> list[bytes | memoryview]:
        """The file in pieces, one after another, of which large ones are no copies."""
        return container.pieces(self.root, [part.data() for part in self.stored], self.metadata)

    def __getitem__(self, path: str) -> "Compressed":
        node, first = tree_json.find(self.root, path)
        return Compressed(node, self.stored[first : first + sum(1 for _ in tree_json.leaves(node))], self.metadata)

    def decompress(self, leaf: str | None = None, *, max_bytes: int | None = None, like: Params = None) -> Params:
        """The parameters, bit for bit as they were coded; leaves decode in parallel.

        Args:
          leaf: the path of one leaf, or of a subtree, which alone is read and decoded. None for everything.
          max_bytes: the most bytes that the arrays may take; working memory is a small multiple of it. None for 1 GiB
            or 1,000 times the coded size, whichever is more.
          like: a tree of the structure that comes back, for nodes that a file cannot name safely (a ``NamedTuple``, a
            class of one's own); its leaves are not looked at.

        Returns:
          JAX arrays where JAX arrays were given, NumPy arrays and Python numbers where those were. An array of 64 bits
          is a NumPy array as long as JAX has ``jax_enable_x64`` off, which would cut it to 32.

        Raises:
          FormatError: damaged or made-up bytes, or arrays of more than ``max_bytes``; it names the leaf.
          ValueError: there is no such leaf; ``like`` has another structure, or is needed and was not given.

        >>> compress({"kernel": jax.numpy.zeros(4), "step": 7}).decompress()
        {'kernel': Array([0., 0., 0., 0.], dtype=float32), 'step': 7}
        """
        some = self if leaf is None else self[leaf]
        if like is not None and tree_json.outline(like) != tree_json.collapsed(some.root, dense_only=True):
            raise ValueError(f"like has the structure {jax.tree.structure(like)}, which is not that of the file")
        leaves = decoding.decode_all(some.leaves, sum(part.size for part in self.stored), max_bytes)
        if like is not None:
            return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(leaves))
        return tree_json.rebuild(tree_json.collapsed(some.root), partial(next, iter(leaves)))

    def report(self, *, max_bytes: int | None = None) -> SizeReport:
        """What takes how many bytes, leaf by leaf: ``print`` it, or read its rows. ``max_bytes`` as above."""
        decoding.check_size(self.leaves, sum(part.size for part in self.stored), max_bytes)
        return size_report(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.root, [bytes(part.data()) for part in self.stored], dict(self.metadata))

    def __repr__(self) -> str:
        return f"Compressed({len(self.leaves)} leaves, {sum(part.size for part in self.stored):,} bytes)"


def _unpickled(root: tree_json.Node, payloads: list[bytes], metadata: dict[str, str]) -> Compressed:
    return Compressed(root, tuple(map(container.in_memory, payloads)), metadata)


def compress(
    params: Params,
    bits: Setting = None,
    *,
    masks: Masks | None = None,
    codebook: Setting = None,
    quantizer: str | QuantSpec | lossy.Quantizer = "uniform",
    side: str | None = None,
    effort: Effort = "fast",
    where: Where = None,
) -> Compressed:
    """Codes a tree of parameters in few bytes; each array in the smallest of several ways.

    Without ``masks``, ``bits``, ``codebook`` and ``side`` nothing is lost: every leaf comes back bit for bit, NaN and
    -0.0 too, of any dtype, and the tree with the containers that it had. These four say what may be lost, in this
    order; what is left is coded without loss. So weights that were pruned, quantized or shared before (dense arrays of
    few values, a ``QArray``, a ``CodebookArray``) become small with no option at all.

    Args:
      params: any pytree of arrays and Python numbers, or one bare array. Records (``QArray``, ``CodebookArray``) come
        back as records, a spec's ``calibration`` as None if it is a function of your own.
      bits: width of the codes of the selected leaves, a number or a tree of them; what comes back is what
        ``fake_quant`` gives. For "rd" and "trellis" one number in (0, 10]: the mean entropy of the codes that is aimed
        at, in bits a weight. None for no quantization.
      masks: bool, same paths; what they remove is stored, and comes back, as 0.0.
      codebook: number of values that the weights of a selected leaf share, a number or a tree; see
        :func:`jaxprune.codebook.encode`. Not together with ``bits``.
      quantizer: how codes of so many bits are made. "uniform", or a ``QuantSpec`` that says more of it (scales along an
        axis, say); "rd", one step for all leaves, and roundings that weigh bits against errors
        (:mod:`jaxprune.quantization.rate_distortion`); "trellis", less error still for the same bits
        (:mod:`jaxprune.quantization.trellis`; few zeros do not stay zeros in embeddings); or a function
        ``(params, bits, where)`` that puts records in place of the selected leaves.
      side: how biases, scales and all other floating leaves that are not selected are stored: None as they are,
        "float16" rounded to it, "int8" by 8-bit codes with one scale a leaf. Centroids, and scales where a leaf has
        several, are rounded to float16 in both.
        They come back in their own dtype.
      effort: "fast" takes seconds for any size. "best" also tries a coder that learns from entry to entry: pruned
        low-bit weights take up to a quarter less, and some ten seconds a million of them, both ways.
      where: the leaves that ``bits`` and ``codebook`` are about; see :func:`jaxprune.tree.select`.

    Returns:
      A :class:`Compressed`, with ``nbytes``, ``decompress()`` and ``report()``; :func:`jaxprune.save` writes it.

    Raises:
      ValueError: ``bits`` together with ``codebook``; an unknown effort; masks that do not fit; as ``quantize`` and
        ``encode``.
      TypeError: traced arrays; a leaf that is no array and no number; keys or metadata that JSON cannot hold.

    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 64)), "bias": jax.numpy.zeros(64)}
    >>> small = compress(params, 3)
    >>> small.nbytes < 64 * 64 * 3 / 8, small.decompress()["kernel"].dtype
    (True, dtype('float32'))
    """
    if effort not in get_args(Effort):
        raise ValueError(f"effort must be 'fast' or 'best', got {effort!r}")
    _check_leaves(params)
    chosen = lossy.choose(params, masks, bits, codebook, quantizer, side, where)
    root = tree_json.outline(chosen.tree, chosen.dense)
    payloads = in_parallel(partial(arrays.encode, effort=effort), chosen.leaves)
    return Compressed(root, tuple(map(container.in_memory, payloads)))


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

    def filled(node: tree_json.Node) -> tree_json.Node:
        if node.kind is None:
            return tree_json.moved(next(remaining).root, None if node is whole else node.path)
        return node._replace(children=tuple(map(filled, node.children)))

    return Compressed(filled(whole), tuple(stored for leaf in leaves for stored in leaf.stored))


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
