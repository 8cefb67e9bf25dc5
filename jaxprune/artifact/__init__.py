"""Small files: coding parameters in as few bytes as they need, and reading them back, from strangers too."""

from jaxprune.artifact.codec import Compressed, compress
from jaxprune.artifact.container import load, read, save
from jaxprune.artifact.errors import ArtifactError
from jaxprune.artifact.packing import pack, unpack
from jaxprune.artifact.sparse import to_bcoo

__all__ = ["ArtifactError", "Compressed", "compress", "load", "pack", "read", "save", "to_bcoo", "unpack"]
