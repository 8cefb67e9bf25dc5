"""What is wrong with a file that cannot be read."""

__all__ = ["ArtifactError"]


class ArtifactError(ValueError):
    """A file, or the bytes of one leaf in it, that this library did not write, or that was damaged since.

    Raised before anything of the leaf is given out; the message names the leaf and the fault.
    """
