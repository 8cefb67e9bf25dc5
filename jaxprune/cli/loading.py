"""Functions of the user, named as ``module:function``."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def function(text: str) -> Callable[..., Any]:
    """The function; modules are looked for in the current folder too.

    Raises:
      ValueError: the text names none, with what is wrong.
    """
    module, between, name = text.partition(":")
    if not (module and between and name):
        raise ValueError(f"{text!r} names no function; write module:function, such as my_model:accuracy")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module.removesuffix(".py").replace("/", "."))
    except ImportError as error:
        raise ValueError(f"module {module!r} cannot be imported from {os.getcwd()}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            raise ValueError(f"module {module!r} has no {name!r}; it has {', '.join(public[:6]) or 'nothing'}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{text!r} is a {type(found).__name__}, not a function")
    return found
