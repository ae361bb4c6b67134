"""Packages that one option needs and nothing else does."""

import importlib
from types import ModuleType


def extra(module: str, option: str, install: str) -> ModuleType:
    """Import a module that an option needs; ValueError in one sentence where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{option} needs a package that is not installed ({error}); pip install {install}, or leave "
            f"{option} out"
        ) from error
