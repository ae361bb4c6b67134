"""What the ring cache promises: no copies of K and V, no device syncs, fixed addresses, flat memory."""

import gc
import tracemalloc
import weakref
from collections import Counter
from functools import partial
from itertools import islice

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longlive_core import PromptSchedule, load_pipeline
from longlive_core.config import ModelConfig, SigmaConfig, WindowConfig
from longlive_core.model.causal_wan import CausalWan
from longlive_core.pipeline import Request
from longlive_core.resume import Ending
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Hook, Switch, rollout
from longlive_core.rollout.scene import Scene

CONFIG = ModelConfig(
    dim=48, ffn_dim=96, num_heads=2, num_layers=2, text_dim=8, text_tokens=4, freq_dim=16, latent_channels=4
)
SHAPE = (1, 4, 3, 8, 12)


@pytest.fixture(scope="module")
def model() -> CausalWan:
    torch.manual_seed(0)
    return CausalWan(CONFIG).eval()


def blocks_of(model, window, count, hook=None):
    text = torch.randn(1, CONFIG.text_tokens, CONFIG.text_dim)
    sigmas = shifted_sigmas(SigmaConfig())
    noise = SeededNoise(0, SHAPE)
    return rollout(
        model, lambda block: None if block else Switch(text), noise, sigmas, window, range(count), hook=hook
    )


class Addresses(Hook):
    def __init__(self):
        self.seen = set()

    def on_commit(self, block, cache):
        self.seen.add(
            tuple(p.data_ptr() for layer in cache.layers for p in (layer.keys.data, layer.values.data))
        )


class Operations(TorchDispatchMode):
    """Counts the operators that run, and the copies of anything as large as one block's keys."""

    COPIES = ("clone", "cat", "roll", "_to_copy", "index_select", "gather")

    def __init__(self, block_keys: int):
        super().__init__()
        self.block_keys = block_keys
        self.calls, self.copies = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.calls[name] += 1
        if name in self.COPIES and out.numel() >= self.block_keys:
            self.copies[name] += 1
        return out


@pytest.mark.parametrize("endless", [False, True])
def test_one_steady_block_copies_no_keys_and_never_syncs(model, endless) -> None:
    scene = Scene(model, torch.empty(SHAPE), WindowConfig(endless=endless), 0)
    noisy, clean = torch.randn(SHAPE), torch.randn(SHAPE)
    with torch.no_grad():
        text = model.encode_text(torch.randn(1, 4, 8))
        for first in range(0, 18, 3):
            scene.open(first, 3)
            scene.fill_cache(clean, text)
        scene.open(18, 3)
        block_keys = scene.cache.layers[0].keys.data.numel() * 3 // 12
        with Operations(block_keys) as operations:
            for sigma in (1.0, 0.9375, 0.8333, 0.625):
                scene.flow(noisy, sigma, text)
            scene.fill_cache(clean, text)
    assert not operations.copies, operations.copies
    for sync in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"):
        assert not operations.calls[sync], operations.calls
    assert not operations.calls["copy_"]
    assert operations.calls["index_copy_"] == 2 * CONFIG.num_layers * 5, (
        "K and V of two layers, written once a pass"
    )


@pytest.mark.parametrize("endless", [False, True])
def test_buffers_keep_their_addresses(model, endless) -> None:
    addresses = Addresses()
    for _ in blocks_of(model, WindowConfig(endless=endless), 30, addresses):
        pass
    assert len(addresses.seen) == 1


@pytest.mark.parametrize("endless", [False, True])
def test_memory_is_the_same_after_20_and_after_200_blocks(model, endless) -> None:
    """Tensors alive and Python memory, both; what the consumer drops is gone."""
    made = blocks_of(model, WindowConfig(endless=endless), 200)
    tracemalloc.start()
    for _ in islice(made, 20):
        pass
    early = alive_tensor_bytes(), tracemalloc.get_traced_memory()[0]
    for _ in islice(made, 179):
        pass
    late = alive_tensor_bytes(), tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert late[0] == early[0]
    assert late[1] - early[1] < 50_000


class Kept(Hook):
    """Knows a buffer of the cache without keeping it."""

    def on_open(self, scene: Scene) -> None:
        self.keys = weakref.ref(scene.cache.layers[0].keys.data)


@pytest.mark.parametrize("is_traced", [False, True])
def test_a_finished_video_leaves_no_cache_behind(is_traced, monkeypatch) -> None:
    """Gone with the last block, not when Python next looks for cycles: two caches may be more than fits."""
    if is_traced:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    mini, kept = load_pipeline("mini", speed="compiled" if is_traced else "plain"), Kept()
    plan = mini.plan(Request(PromptSchedule.single("a red circle"), 4.0))
    gc.collect()
    gc.disable()
    try:
        for _ in mini.run(plan, kept, ending=Ending()):
            assert kept.keys() is not None
        assert kept.keys() is None
    finally:
        gc.enable()


def alive_tensor_bytes() -> int:
    gc.collect()
    storages = {
        o.untyped_storage().data_ptr(): o.untyped_storage().nbytes()
        for o in gc.get_objects()
        if type(o) in (torch.Tensor, torch.nn.Parameter)
    }
    return sum(storages.values())
