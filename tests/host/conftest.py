"""One ComfyUI server after the other, a session each; skipped with one loud line where there is none."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load(path: Path, name: str):
    """A module of this folder, under a name that pytest's importlib mode does not give it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


comfy = load(Path(__file__).with_name("comfy_server.py"), "longlive_comfy_server")
NO_CHECKOUT = "HOST TESTS NOT RUN: no ComfyUI checkout; clone one to ~/comfy/ComfyUI or set COMFYUI_PATH"
CHECKOUTS = [pytest.param(path, id=path.name) for path in comfy.checkouts()]


@pytest.fixture(
    scope="session", params=CHECKOUTS or [pytest.param(None, marks=pytest.mark.skip(reason=NO_CHECKOUT))]
)
def server(request, tmp_path_factory):
    pytest.importorskip("websocket", reason="HOST TESTS NOT RUN: pip install websocket-client")
    running = comfy.Server(request.param, tmp_path_factory.mktemp("comfy") / "base")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def object_info(server):
    return server.get("/object_info")


@pytest.fixture(name="comfy", scope="session")
def comfy_module():
    """The helpers of comfy_server.py."""
    return comfy
