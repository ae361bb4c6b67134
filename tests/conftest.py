"""Shared options and the golden folder. The root goes last on sys.path, so the host's `nodes` wins."""

import ctypes
import functools
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
settings.register_profile("busy machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machines")  # a test that waits for its turn is not slow
GOLDEN = ROOT / "tests" / "golden"
ONLY_SGF = "train_frames", "position_mode", "initial_latents", "policy"  # settings of Self Gradient Forcing
PICTURES = "given", "start_step"  # settings of videos that begin with an image or with footage
FAMILIES = {  # fixture -> folder in tests/golden
    "sgf_golden": "sgf",
    "picture_golden": "pictures",
    "tuning_golden": "tuning",
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other allocators have none
    # Large tensors stay with the process when they are freed: else every new one costs its page faults.
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@pytest.fixture(scope="module")
def mini_once() -> Iterator[None]:
    """All commands of a module run on one Mini, which none of them changes."""
    from longlive_core.mini.loader import load_mini  # here: tests of a host bring their own

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longlive_core.pipeline.load_mini", functools.cache(load_mini))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", type=Path, default=GOLDEN, help="a folder of goldens, of one family")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every scenario in a golden folder becomes a test of its own, in the fixture of its family."""
    given = metafunc.config.getoption("--golden-dir")
    folders = {"dit_golden": given, **{name: own_folder(given, kind) for name, kind in FAMILIES.items()}}
    for name in folders.keys() & set(metafunc.fixturenames):
        missing = pytest.param(None, marks=pytest.mark.skip(f"no scenario in {folders[name]}"), id="none")
        files = [pytest.param(file, id=file.stem) for file in scenarios_in(folders[name], name)]
        metafunc.parametrize(name, files or [missing])


def scenarios_in(folder: Path, fixture: str) -> list[Path]:
    """The files of a folder that hold a scenario of the fixture's family."""
    from safetensors import safe_open

    scenarios = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as golden:
            if fixture == family_of(golden.metadata() or {}):
                scenarios.append(file)
    return scenarios


def family_of(meta: dict[str, str]) -> str | None:
    """The fixture of a file with this metadata; None for one of no family."""
    settings = set(meta)
    if {"scenario", "variant", "spec"} <= settings:  # of tuning, only the variant that is built
        return "tuning_golden" if "clean" in meta["variant"] else None
    if {"scenario", "local_attn_size", *PICTURES} <= settings:
        return "picture_golden"
    if not {"scenario", "local_attn_size", "global_sink"} <= settings:
        return None
    return "dit_golden" if settings.isdisjoint(ONLY_SGF) else "sgf_golden"


def own_folder(given: Path, kind: str) -> Path:
    """Where a family's own goldens are, unless another folder was given."""
    return GOLDEN / kind if given == GOLDEN else given


@pytest.fixture(scope="module", autouse=True)
def old_objects_are_not_searched() -> None:
    """What is there before a module's tests, all of torch among it, is no garbage of theirs."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Path:
    return request.config.getoption("--golden-dir")


@pytest.fixture(scope="session")
def sgf_dir(golden_dir: Path) -> Path:
    return own_folder(golden_dir, "sgf")


@pytest.fixture(scope="session")
def loud_model():
    """Makes small random transformers, louder than usual, so that the past and the prompt matter."""
    import torch

    from longlive_core.config import ModelConfig
    from longlive_core.model.causal_wan import CausalWan

    def make(config: ModelConfig) -> CausalWan:
        torch.manual_seed(0)
        model = CausalWan(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
        return model

    return make
