"""Libraries that only files need, imported when they are first used."""

from typing import Any

from jaxprune.host import library


def constriction() -> Any:
    """The entropy coders."""
    return library("constriction", "jaxprune[files]")


def safetensors() -> Any:
    """The container, with its functions for NumPy."""
    return library("safetensors.numpy", "jaxprune[files]") and library("safetensors", "jaxprune[files]")
