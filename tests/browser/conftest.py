"""A ComfyUI server and headless Chromium; skipped with one loud line where either is missing."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "host" / "comfy_server.py"


def load(path: Path, name: str):
    """The helpers of the host tests: importlib mode has no packages to import them from."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


comfy_server = load(HELPERS, "longlive_comfy_server")
model_files = load(HELPERS.with_name("model_files.py"), "longlive_model_files")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
MISSING = (
    "BROWSER TESTS NOT RUN: no Chromium; apt-get install chromium, or set CHROMIUM"
    if not CHROMIUM
    else "BROWSER TESTS NOT RUN: no ComfyUI checkout; clone one to ~/comfy/ComfyUI or set COMFYUI_PATH"
)
CHECKOUTS = comfy_server.checkouts() if CHROMIUM else []
PAGE = comfy_server.newest_page() if CHECKOUTS else None
NO_PAGE = "NEWEST PAGE NOT TESTED: pip install --target ~/comfy/frontend comfyui-frontend-package"
NOWHERE = "http://127.0.0.1:9"  # no test of a page downloads anything
WAIT_MS = 120_000  # of a machine that also runs another server, its page and their models
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def playwright():
    return pytest.importorskip("playwright.sync_api", reason="BROWSER TESTS NOT RUN: pip install playwright")


def place(name: str, checkout: Path, *options: str):
    """Of two processes one runs all tests of a place."""
    return pytest.param((checkout, options), id=name, marks=pytest.mark.xdist_group(f"page {name}"))


def places() -> list:
    """(checkout, options): the newest page on the newest ComfyUI, then each ComfyUI with its own page."""
    if not CHECKOUTS:
        return [pytest.param(None, marks=pytest.mark.skip(reason=MISSING))]
    own = [place(checkout.name, checkout) for checkout in CHECKOUTS]
    if not PAGE:
        return [*own, pytest.param(None, id="newest-page", marks=pytest.mark.skip(reason=NO_PAGE))]
    return [place("newest-page", CHECKOUTS[0], "--front-end-root", PAGE), *own]


PLACES = places()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests run in every place, those marked `newest` in the first."""
    if "server" in metafunc.fixturenames:
        chosen = PLACES[:1] if metafunc.definition.get_closest_marker("newest") else PLACES
        metafunc.parametrize("server", chosen, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request, tmp_path_factory, playwright):
    checkout, options = request.param
    base = tmp_path_factory.mktemp("comfy") / "base"
    running = comfy_server.Server(checkout, base, hub=NOWHERE, options=options)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def nothing_runs_on(request):
    """What a test left running would show in the next one, in nodes of the same ids."""
    server = request.getfixturevalue("server") if "server" in request.fixturenames else None
    yield
    if server:
        server.clear()


# the workflows name files that nobody has here; the host's dialog about them would lie over the page
NO_WARNINGS = "app.ui.settings.setSettingValueAsync('Comfy.Workflow.ShowMissingModelsWarning', false)"


@pytest.fixture(scope="session")
def browser(playwright):
    """Chromium, also where there is no ComfyUI."""
    if not CHROMIUM:
        pytest.skip(MISSING)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page(server, browser):
    """The page of ComfyUI, ready, our nodes registered."""
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    page.set_default_timeout(WAIT_MS)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"http://{server.address}")
    ready = "!!(window.app?.vueAppReady && LiteGraph.registered_node_types['LongLiveStream'])"
    page.wait_for_function(ready)
    page.errors.clear()  # ComfyUI 0.3.64 has one of its own at start
    page.evaluate(NO_WARNINGS)
    yield page
    page.close()


@pytest.fixture(scope="session")
def models(server) -> Path:
    """The models folder of the server, with small models in it."""
    model_files.write_models(server.base / "models")
    return server.base / "models"


@pytest.fixture(name="comfy", scope="session")
def comfy_module():
    """The helpers of comfy_server.py."""
    return comfy_server
