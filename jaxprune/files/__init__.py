"""Small files: coding parameters in as few bytes as they need, and reading them back, from strangers too."""

from jaxprune.files.codec import Compressed, compress
from jaxprune.files.disk import load, read, save
from jaxprune.files.errors import ArtifactError
from jaxprune.files.packing import pack, unpack
from jaxprune.quantization.arrays.bcoo import to_bcoo
from jaxprune.quantization.arrays.n_of_m import NOfMArray, from_n_of_m, to_n_of_m

__all__ = [
    "ArtifactError",
    "Compressed",
    "NOfMArray",
    "compress",
    "from_n_of_m",
    "load",
    "pack",
    "read",
    "save",
    "to_bcoo",
    "to_n_of_m",
    "unpack",
]
