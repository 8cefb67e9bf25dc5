"""Small files: coding parameters in as few bytes as they need, and reading them back, from strangers too."""

from jaxprune.files.codec import Compressed, compress
from jaxprune.files.disk import load, read, save
from jaxprune.files.errors import ArtifactError

__all__ = [
    "ArtifactError",
    "Compressed",
    "compress",
    "load",
    "read",
    "save",
]
