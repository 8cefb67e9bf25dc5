"""Forged files with checksums that are right, and checkpoints: ``python tests/fuzz_files.py [count [seed]]``.

They reach the decoders. Whatever is in a file, what comes of it is a FormatError, the wish for a tree to compare with,
or arrays within the limit; anything else is a finding, and its file is kept.
"""

import copy
import json
import pathlib
import sys
import tempfile
import time
import zlib
from collections import Counter
from typing import NamedTuple

import coded
import fuzz_checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

import jaxprune as jp
from jaxprune.files import FormatError, arrays, coders, read
from jaxprune.files.bytestream import unsigned

DEEP = "many lists in one another"
LIMIT = 2**16  # bytes that arrays may take
DTYPES = len(arrays.DTYPES)


class Pair(NamedTuple):
    """A class that no file can name."""

    first: np.ndarray
    second: int


def forged(tree, leaves, own=()):
    """A file with any tree and any leaves, but for the ``own`` ones, names by position, together; right checksums."""
    text = tree if isinstance(tree, str) else json.dumps(tree)
    seed = zlib.crc32(text.encode())
    summed = [
        data + zlib.crc32(data, zlib.crc32(str(i).encode(), seed)).to_bytes(4, "little")
        for i, data in enumerate(leaves)
    ]
    together = [data for i, data in enumerate(summed) if i not in own]
    tensors = {name: summed[i] for i, name in dict(own).items()}
    if together:
        tensors["*"] = b"".join([unsigned(len(data)) for data in together] + together)
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in tensors.items()}
    return safetensors.numpy.save(arrays, {"jaxprune": text})


def leaf(shape, dtype=11, form=1, body=b"", origin=1):
    """The bytes of a leaf."""
    return bytes([form, origin, dtype, len(shape)]) + b"".join(map(unsigned, shape)) + body


def seeds():
    """Trees as in the header and their leaves: all kinds of node, origin, form and coder."""
    draw = np.random.default_rng(0)
    codes = draw.binomial(3, 0.05, (12, 10)).astype(np.int32)
    wide = np.rint(draw.normal(size=(70, 60)) * np.arange(60)).astype(np.int32)
    weights = draw.normal(size=(20, 8)).astype(np.float32)
    sparse = weights * (draw.random((20, 8)) < 0.3)
    leaves = [weights, sparse, codes, codes * np.float32(0.3), codes.astype(np.int8), weights.astype(np.float64)]
    leaves += [jnp.asarray(weights, jnp.bfloat16), sparse.astype(np.float16), np.zeros((0, 3)), jax.random.key(3)]
    leaves += [7, 0.5, codes.astype(bool), codes * 1j, np.float32(2), codes.astype(np.uint32)]
    trees = [
        {"plain": leaves[:6], "more": (*leaves[6:], None), "a/b": {"": weights}},
        {"q": jp.quantize(weights, 4), "blocks": jp.quantize(weights, 3, spec=jp.QuantSpec(axis=-1, block_size=4))},
        {"book": jp.codebook.encode(weights, 3), "trellis": jp.quantization.trellis.quantize(weights, 0.1)},
        {"nm": jp.quantization.to_n_of_m(weights, jp.masks.n_of_m(weights, 2, 4))},
        {"nnx": nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0))), "by number": {5: np.arange(3)}, "pair": Pair(codes, 3)},
    ]
    found = []
    for made in (jp.compress(tree, effort=effort) for tree in trees for effort in ("fast", "best")):
        whole = made.to_bytes()
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
        found.append((header["__metadata__"]["jaxprune"], [bytes(part.data()) for part in made.stored]))
    found.append((json.dumps({"version": 3, "tree": {"w": 0}, "kinds": []}), found[0][1][:1]))
    for some in (codes, wide):
        for number, data in coded.each(some):
            if some is wide and number == coders.MIXING:  # which takes long
                continue
            body = bytes([number]) + unsigned(len(data)) + data
            found.append(('{"version": 3, "tree": {"w": 0}}', [leaf(some.shape, 3, body=body)]))
    return found


def mutate(data, draw):
    """Bytes flipped, replaced, cut out, doubled or put in."""
    data = bytearray(data)
    for _ in range(draw.integers(1, 4)):
        at, kind = int(draw.integers(len(data) + 1)), draw.integers(5)
        if kind == 0:
            data[at : at + 1] = bytes([draw.integers(256)])
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << int(draw.integers(8))
        elif kind == 2:
            del data[at : at + int(draw.integers(1, 9))]
        elif kind == 3:
            data[at:at] = draw.bytes(int(draw.integers(1, 9)))
        else:
            data[at:at] = unsigned(int(draw.integers(2**62)))
    return bytes(data)


def beheaded(data, draw):
    """The leaf with another form, origin, dtype or shape."""
    reader = arrays.head(data).body
    shape = arrays.head(data).shape
    new = [(*shape[:-1], shape[-1] + 1) if shape else (1,), shape[::-1], (*shape, 1), (0, *shape), (2**31, 2**30)]
    start = [int(part) for part in data[:3]]
    kind = draw.integers(4)
    if kind < 3:
        start[kind] = int(draw.integers((6, 4, DTYPES)[kind]))
    else:
        shape = new[draw.integers(len(new))]
    return bytes([*start, len(shape)]) + b"".join(map(unsigned, shape)) + bytes(reader.rest())


def hostile(draw, other):
    """What JSON may hold where something else is expected."""
    things = [0, 1, -1, 2, 2**31, 2**63, 10**400, 0.5, float("nan"), True, None, "", "x" * 300, "a/b", "*", "float32"]
    things += ["int4", "object", [], {}, [0], [1, 0], [[0]], {"": 0}, {"a": {"a": 1}}, [0] * 500, DEEP, other]
    return things[draw.integers(len(things))]


def spots(item):
    """Each place in nested JSON, as what holds it and its key."""
    for key in item if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ():
        yield item, key
        yield from spots(item[key])


def twisted(text, draw):
    """The header with something else somewhere in it."""
    tree = json.loads(text)
    for _ in range(draw.integers(1, 3)):
        places = list(spots(tree))
        (holder, key), (where, what) = (places[i] for i in draw.integers(len(places), size=2))
        if draw.integers(4):
            holder[key] = hostile(draw, copy.deepcopy(where[what]))
        elif isinstance(holder, dict):
            holder[["keys", "type", "dense", "spec", "q", "0"][draw.integers(6)]] = holder.pop(key)
        else:
            del holder[key]
    depth = int(draw.choice([3, 70, 900]))
    return json.dumps(tree).replace(json.dumps(DEEP), "[0, " * depth + "0" + "]" * depth)


def forge(draw, found):
    """One of the seeds changed."""
    text, leaves = found[draw.integers(len(found))]
    leaves, kind = list(leaves), draw.integers(8)
    at = int(draw.integers(len(leaves)))
    if kind < 4:
        leaves[at] = mutate(leaves[at], draw)
    elif kind == 4:
        leaves[at] = beheaded(leaves[at], draw)
    elif kind == 5:
        donor = found[draw.integers(len(found))][1]
        leaves[at] = donor[draw.integers(len(donor))]
    if kind > 5:
        text = twisted(text, draw)
    own = {}
    if draw.integers(4) == 0 and '"w": 0' in text:
        text, own = text.replace('"w": 0', '"w": 1'), {0: "w"}
    return forged(text, leaves, own)


def outcome(path):
    """What comes of a file; raises what nobody should see."""
    try:
        opened = read(path)
        shapes = [leaf.shape for leaf in opened.leaves]
        assert (
            len(str(opened.report(max_bytes=LIMIT))) > 100
            and len(shapes) == len(repr(opened.leaves).split("StoredLeaf")) - 1
        )
        tree = opened.decompress(max_bytes=LIMIT)
    except FormatError:
        return "refused"
    except ValueError as error:
        assert "give a tree of the same structure as like=" in str(error), error
        return "unnamed"
    assert sum(np.size(part) for part in jax.tree.leaves(tree)) <= 8 * LIMIT
    return "read"


def run(count, seed, folder, said=None):
    """The outcomes of so many forged files, counted."""
    draw, found, outcomes = np.random.default_rng(seed), seeds(), Counter()
    path = pathlib.Path(folder) / "forged.jp"
    for i in range(count):
        path.write_bytes(forge(draw, found))
        start = time.perf_counter()
        outcomes[outcome(path)] += 1
        if said:
            said(i, time.perf_counter() - start, outcomes)
    return outcomes


def main(number=50_000, first=0):
    """Prints what comes of so many files."""
    where, slowest = tempfile.mkdtemp(prefix="forged-"), [0.0]
    print(f"{number} files in {where}, where one that is a finding stays")

    def say(i, seconds, outcomes):
        slowest[0] = max(slowest[0], seconds)
        if (i + 1) % 1000 == 0 or i + 1 == number:
            print(i + 1, dict(outcomes), f"{slowest[0]:.1f} s at most", flush=True)

    run(number, first, where, say)
    fuzz_checkpoints.main(number, first)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
