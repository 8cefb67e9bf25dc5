"""Small files: coding parameters in as few bytes as they need, and reading them back, from strangers too."""

from jaxprune.files.bytestream import FormatError
from jaxprune.files.codec import compress, join, load, read, save
from jaxprune.files.compressed import Compressed

__all__ = ["Compressed", "FormatError", "compress", "join", "load", "read", "save"]
