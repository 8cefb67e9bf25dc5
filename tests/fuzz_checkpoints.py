"""Forged checkpoints: ``python tests/fuzz_checkpoints.py [count [seed]]``, a few of which the tests make too.

Headers are put together from plausible and absurd parts, with lengths and checksums that are right, so that what comes
behind these is reached; some are damaged afterwards. Any of them must open or give a :class:`CheckpointError`.
"""

import functools
import io
import json
import resource
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import msgpack
import numpy as np

import jaxprune as jp
from jaxprune import checkpoints
from jaxprune.checkpoints import CheckpointError

LIMIT = 2**20
DTYPES = ("F32", "U8", "BF16", "F4", "float32", "int4", "f4,f4", "O", "<U3", "V0", "V2", "M8[ns]", "(", "", "x" * 99)
NUMBERS = (0, 1, 2, 3, 4, 6, 8, 12, 24, -1, 2**31, 2**62, 2**63, 2**70, 1.5, True)


def deep(levels):
    return [] if levels == 0 else [deep(levels - 1)]


class Forger:
    """Random choices from a seed."""

    def __init__(self, seed):
        self.draw = np.random.default_rng(seed)
        self.share = self.one(0.02, 0.05, 0.2)  # of what is odd

    def one(self, *choices):
        return choices[self.draw.integers(len(choices))]

    def odd(self, rarer=1):
        return self.draw.random() < self.share / rarer

    def mostly(self, usual, *others):
        """The usual value, or now and then another, or an absurd one."""
        if not self.odd():
            return usual
        numbers = [self.one(*NUMBERS) for _ in range(self.draw.integers(4))]
        return self.one(*others, None, "", "a", {}, {"a": 1}, [], deep(90), numbers, *NUMBERS, *DTYPES)

    def damaged(self, data):
        data = bytearray(data)
        while data and self.odd():
            at = self.draw.integers(max(0, len(data) - 120) if self.odd(0.5) else 0, len(data))
            data[at] = self.draw.integers(256)
        return bytes(data[: self.draw.integers(len(data) + 1)] if self.odd(3) else data)

    def safetensors(self):
        header, end = {}, 0
        for name in ("a", "b.c", self.one("", "/", "é", "__metadata__", "x" * 300)):
            dtype, shape, size = self.one(("F32", [2, 3], 24), ("U8", [0, 4], 0), ("F4", [48], 24), ("F64", [], 8))
            place = self.mostly([end, end + size], [end, 2**62], [end], [end, end + 4])
            entry = {"dtype": self.mostly(dtype), "shape": self.mostly(shape), "data_offsets": place}
            header[name], end = self.mostly(entry), end + size
        if self.draw.random() < 0.5:
            dtypes = json.dumps({"a": self.mostly("int32"), "d": "int4"})
            header["__metadata__"] = self.mostly(
                {"format": self.mostly("pt"), "jaxprune.dtypes": self.mostly(dtypes, "{")}
            )
        text = b'{"a":' + b"[" * 100_000 if self.odd(9) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(100 if self.odd(3) else end)

    def npy(self):
        descr = self.one("<f4", ">i4", "<U1", [("float8_e5m2", "u1"), ("b", "<u2"), ("c", "u1")], [("uint32", "<u4")])
        shape = self.mostly(self.one((2, 3), (6,)), (), (0, 5), (2**40, 0), (-1, 6))
        header = {"descr": self.mostly(descr), "fortran_order": self.mostly(False), "shape": shape}
        text = self.mostly(repr(header), "(" * 900, "{" * 20_000, "{'descr': __import__('os')}")
        text = str(text).encode() + b"\n"
        version = self.one((3, 0), (9, 9)) if self.odd(3) else self.one((1, 0), (2, 0))
        form, most = ("<H", 2**16 - 1) if version[0] == 1 else ("<I", 2**32 - 1)
        length = struct.pack(form, self.one(7, most) if self.odd(3) else min(len(text), most))
        return b"\x93NUMPY" + bytes(version) + length + text + bytes(12 if self.odd(3) else 24)

    def npz(self):
        made = io.BytesIO()
        method = self.one(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
        with zipfile.ZipFile(made, "w", method) as archive:
            for name in ("a", "b/c", self.one("", "/", "../x"))[: self.draw.integers(1, 4)]:
                archive.writestr(name + ".npy", self.npy())
            if self.odd(9):
                archive.writestr("bomb.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**22) + bytes(2**22))
        data = bytearray(made.getvalue())
        at = data.rindex(b"PK\x01\x02")  # the last entry of the directory
        for place, form in ((8, "<H"), (10, "<H"), (20, "<I"), (24, "<I"), (42, "<I")):
            if self.odd(4):  # flags, method, sizes, offset
                struct.pack_into(form, data, at + place, int(self.draw.integers(2 ** (16 if form == "<H" else 32))))
        return bytes(data)

    def extension(self):
        shape = self.mostly(self.one([2, 3], [6]), [], [2**40, 0])
        parts = [shape, self.mostly("float32"), bytes(12 if self.odd() else 24)]
        kind = self.one(2, 3, 5) if self.odd() else 1
        try:
            return msgpack.ExtType(kind, msgpack.packb(self.mostly(parts, parts[:2])))
        except OverflowError:
            return msgpack.ExtType(kind, b"\x93")

    def msgpack(self):
        def node(depth):
            if depth == 0 or self.draw.random() < 0.4:
                return self.one(self.extension(), self.extension(), 1, 1.5, None, "text", b"bytes", 2**63)
            cut = {"__msgpack_chunked_array__": True, "shape": {"0": 4, "1": self.mostly(3)}}
            cut["chunks"] = self.mostly({"0": self.extension(), "1": self.extension()})
            return self.one({"a": node(depth - 1), self.one("b", 3): node(depth - 1)}, [node(depth - 1)], cut)

        try:
            return msgpack.packb({"a": node(2), "b": self.mostly(node(2))})
        except OverflowError:
            return b"\x81\xa1a" + b"\x91" * 2000

    def index(self):
        places = {name: self.mostly("m.safetensors", "..", "m\0", "x" * 300, "m.index.json") for name in ("a", "b.c")}
        return json.dumps({"weight_map": self.mostly(places), "metadata": self.mostly({})}).encode()

    def small(self):
        """A small file; its checksums are recomputed by others."""
        return small_file()


@functools.cache
def small_file():
    return jp.compress(
        {"a": np.arange(40, dtype=np.float32), "b": jp.quantize(np.eye(3, dtype=np.float32), 4)}
    ).to_bytes()


def outcome(path: Path) -> str:
    """What came of a file; anything but a CheckpointError goes through."""
    try:
        leaves = checkpoints.open(path, max_bytes=LIMIT).leaves
    except CheckpointError as error:
        assert path.name in str(error) and len(str(error)) < 2000, error
        return "refused"
    damaged = 0
    for name, leaf in leaves.items():
        try:
            array = leaf.read()
        except CheckpointError as error:
            assert path.name in str(error) and (repr(name[:80])[1:-1] in str(error)), error
            damaged += 1
        else:
            assert (array.shape, array.dtype) == (leaf.shape, leaf.dtype) and array.nbytes <= LIMIT
    return "in part" if damaged else "read"


def attempts(seeds, folder: Path) -> Counter:
    """Makes and opens a file of one kind after the other."""
    found = Counter()
    for seed in seeds:
        forger = Forger(seed)
        suffix, make = [
            (".safetensors", forger.safetensors),
            (".npz", forger.npz),
            (".msgpack", forger.msgpack),
            (".index.json", forger.index),
            (".jp", forger.small),
        ][seed % 5]
        path = folder / f"m{suffix}"
        path.write_bytes(forger.damaged(make()))
        try:
            found[suffix, outcome(path)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}") from error
    return found


def main(number=50_000, first=0):
    """Prints what comes of so many files."""
    with tempfile.TemporaryDirectory() as folder:
        found = attempts(range(first, first + number), Path(folder))
    for (suffix, what), count in sorted(found.items()):
        print(f"{suffix:14}{what:10}{count:8,}")
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
