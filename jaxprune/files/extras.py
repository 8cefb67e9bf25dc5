"""Libraries that only files need, imported when they are first used."""

import importlib
from typing import Any


def constriction() -> Any:
    """The entropy coders."""
    return _load("constriction")


def safetensors() -> Any:
    """The container, with its functions for NumPy."""
    return _load("safetensors.numpy") and _load("safetensors")


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name.split('.')[0]} is needed to write and read files: pip install 'jaxprune[files]'"
        ) from error
