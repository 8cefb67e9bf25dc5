"""Small files: coding parameters in as few bytes as they need, and reading them back, from strangers too."""

from jaxprune.artifact.codec import Compressed, compress
from jaxprune.artifact.container import load, read, save
from jaxprune.artifact.errors import ArtifactError

__all__ = ["ArtifactError", "Compressed", "compress", "load", "read", "save"]
