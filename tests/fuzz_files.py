"""Coverage-guided fuzzing of files: ``pip install atheris``, then ``python tests/fuzz_files.py -max_total_time=600``.

Any bytes must give a FormatError or an array, a tree or a refusal of its size; anything else is a finding.
"""

import math
import sys

import atheris

with atheris.instrument_imports(include=["jaxprune.files"]):
    import jaxprune as jp
    from jaxprune.files import FormatError, arrays, coders, container, tree_json

import coded
import numpy as np


class InMemory:
    """What an open safetensors file offers, with one tensor and any header."""

    def __init__(self, header: str, data: bytes):
        self.header, self.data = header, np.frombuffer(data, np.uint8)

    def metadata(self):
        return {"jaxprune": self.header}

    def keys(self):
        return ["*"]

    def get_slice(self, name):
        return self

    def get_dtype(self):
        return "U8"

    def get_shape(self):
        return list(self.data.shape)

    def __getitem__(self, part):
        return self.data[part]


def one(data: bytes) -> None:
    """The first byte chooses what the others are: a leaf, a coder's data or a header."""
    if not data:
        return
    choice, rest = data[0], data[1:]
    try:
        if choice == 255:
            text, _, leaves = rest.partition(b"\0")
            container.parse(InMemory(text.decode("utf8", "ignore"), leaves))
        elif choice < len(coders.NAMES) and len(rest) > 2:
            shape = (rest[0], rest[1])
            assert coders.decode(choice, rest[2:], shape).shape == shape
        else:
            head = arrays.head(rest)
            if math.prod(max(length, 1) for length in head.shape) < 2**16 and len(head.shape) < 32:
                assert np.shape(arrays.decode(head)) == head.shape
    except FormatError:
        pass


def seeds() -> list[bytes]:
    """Valid data of every coder and form."""
    draw = np.random.default_rng(0)
    codes = draw.binomial(3, 0.05, (12, 10)).astype(np.int32)
    found = [bytes([i, *codes.shape]) + data for i, data in coded.each(codes)]
    leaves = [codes, codes * np.float32(0.5), draw.normal(size=(20, 9)), codes * draw.normal(size=codes.shape)]
    found += [b"\xfe" + arrays.encode(leaf, effort) for leaf in leaves for effort in ("fast", "best")]
    root = tree_json.outline({"a": [codes, (codes, None)], "q": jp.quantize(np.ones((2, 3), np.float32), 4)})
    parts, metadata = container.tensors(root, [arrays.encode(codes)] * 5)
    return [*found, b"\xff" + metadata["jaxprune"].encode() + b"\0" + parts["*"].tobytes()]


if __name__ == "__main__":
    import pathlib
    import tempfile

    corpus = pathlib.Path(tempfile.mkdtemp())
    for i, seed in enumerate(seeds()):
        (corpus / str(i)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()
