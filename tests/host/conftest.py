"""One ComfyUI server after the other, a session each; skipped with one loud line where there is none."""

import importlib.util
import sys
import threading
from contextlib import contextmanager
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
model_files = load(Path(__file__).with_name("model_files.py"), "longlive_model_files")
downloads = load(Path(__file__).parents[1] / "test_download.py", "longlive_test_download")
NO_CHECKOUT = "HOST TESTS NOT RUN: no ComfyUI checkout; clone one to ~/comfy/ComfyUI or set COMFYUI_PATH"
SMALL_VAE_SINCE = (0, 27)  # older hosts build only the true size
SMALL_VAE, TRUE_VAE = 16, 96
CHECKOUTS = [  # of two processes one runs all tests of a server
    pytest.param(path, id=path.name, marks=pytest.mark.xdist_group(f"host {path.name}"))
    for path in comfy.checkouts()
] or [pytest.param(None, marks=pytest.mark.skip(reason=NO_CHECKOUT))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests run on every ComfyUI, those marked `newest` on the first."""
    if "checkout" in metafunc.fixturenames:
        places = CHECKOUTS[:1] if metafunc.definition.get_closest_marker("newest") else CHECKOUTS
        metafunc.parametrize("checkout", places, indirect=True, scope="session")


@pytest.fixture(scope="session")
def checkout(request) -> Path:
    """The folder of each ComfyUI in turn."""
    return request.param


@pytest.fixture(scope="session")
def server(checkout, tmp_path_factory):
    pytest.importorskip("websocket", reason="HOST TESTS NOT RUN: pip install websocket-client")
    with hub_of_its_own() as hub:
        running = comfy.Server(checkout, tmp_path_factory.mktemp("comfy") / "base", hub.endpoint)
        running.hub = hub
        yield running
        running.stop()


@contextmanager
def hub_of_its_own():
    """A stand-in for the hub of models, so that no test asks the real one."""
    hub = downloads.Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture(scope="session")
def object_info(server):
    return server.get("/object_info")


@pytest.fixture(scope="session")
def small_models(tmp_path_factory) -> Path:
    """A models folder with small models in it, of no server."""
    folder = tmp_path_factory.mktemp("models")
    model_files.write_models(folder)
    return folder


@pytest.fixture(name="comfy", scope="session")
def comfy_module():
    """The helpers of comfy_server.py."""
    return comfy


@pytest.fixture(scope="session")
def models(server) -> Path:
    """The models folder of the server, with small models in it."""
    folder = server.base / "models"
    model_files.write_models(folder)
    is_any_width = tuple(map(int, server.version.split(".")[:2])) >= SMALL_VAE_SINCE
    make = {"name": "wan_2.1_vae.safetensors", "dim": SMALL_VAE if is_any_width else TRUE_VAE}
    assert server.run({"1": {"class_type": "TestMakeVae", "inputs": make}}).has_succeeded
    return folder
