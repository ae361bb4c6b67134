"""Libraries that only UMT5 needs. They are imported late: transformers takes seconds, and Mini needs none."""

import importlib
from types import ModuleType


def library(name: str) -> ModuleType:
    """The module of that name; ValueError says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"reading prompts with UMT5 needs {name}, which is missing ({error}); "
            f"install it with: pip install {name}"
        ) from error
