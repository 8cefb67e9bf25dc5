"""Small files: coding parameters in as few bytes as they need, and reading them back, from strangers too."""

from jaxprune.artifact.codec import Compressed, compress
from jaxprune.artifact.container import load, read, save
from jaxprune.artifact.errors import ArtifactError
from jaxprune.artifact.n_of_m import NOfMArray, from_n_of_m, to_n_of_m
from jaxprune.artifact.packing import pack, unpack
from jaxprune.artifact.sparse import to_bcoo

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
