"""The pack, imported beside a checkout by the checkout's Python, as its server would."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType


def pack_of(checkout: str, pack: str) -> Callable[[str], ModuleType]:
    """Import the pack for the CPU; what is returned gives its modules by their dotted names."""
    sys.path.insert(0, checkout)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import utils.extra_config  # noqa: F401 (as main.py does: later, comfy/utils.py is found first)

    name = pack.replace("/", "_").replace(".", "_")
    where = {"submodule_search_locations": [pack]}
    spec = importlib.util.spec_from_file_location(name, f"{pack}/__init__.py", **where)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return lambda module: importlib.import_module(f"{name}.{module}")
