"""A run that meets an out-of-memory error goes on with the same video, or ends with what it has."""

import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longlive_core import PromptSchedule
from longlive_core.bench.random_model import random_pipeline
from longlive_core.config import (
    ModelConfig,
    Preset,
    TinyAutoencoderConfig,
    WanAutoencoderConfig,
    WindowConfig,
)
from longlive_core.pipeline import LOOKED_BACK, Decoding, Pipeline, Request
from longlive_core.rollout.retry import SecondTry, is_out_of_memory
from longlive_core.rollout.rollout import Block, Hook
from longlive_core.text.cache import CachedEncoder, encode_all
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.streaming import StreamingDecoder
from longlive_core.vae.tiled import TiledDecoder
from longlive_core.vae.tiny import TinyAutoencoder

CPU = torch.device("cpu")
TINY = TinyAutoencoderConfig(widths=(16, 8, 8, 8), memory_blocks=(2, 1, 1))
WAN = WanAutoencoderConfig(width=4)
SMALL = Preset(
    "small",
    ModelConfig(dim=48, ffn_dim=96, num_heads=2, num_layers=2, text_dim=8, text_tokens=4, freq_dim=16),
    autoencoder=TINY,
)
PROMPTS = "0 a fox\n1.5 a bear\n3 [cut] a wolf\n4 a hare"
SECONDS = 6.0  # eight blocks: the window of four fills up, and a cut, and fills again
WINDOWS = {
    "absolute": WindowConfig(),
    "endless": WindowConfig(endless=True),
    "fp8": WindowConfig(endless=True, has_small_cache=True),
}


class Fault(TorchDispatchMode):
    """Memory does not suffice at the operators `first` .. `first + times - 1` of all that may be retried."""

    def __init__(self, first: int = -1, times: int = 1):
        super().__init__()
        self.count, self._wrong = 0, range(first, first + times)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        if self.count - 1 in self._wrong:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return function(*args, **(kwargs or {}))


class Notes(Hook):
    def __init__(self):
        self.said: list[str] = []

    def on_note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def faulty(monkeypatch):
    """A function that lets everything under a SecondTry meet a Fault from now on."""
    call = SecondTry.__call__

    def use(fault: Fault) -> Fault:
        def watched(self, block, work, *inputs):
            def within(*inputs):
                with fault:
                    return work(*inputs)

            return call(self, block, within, *inputs)

        monkeypatch.setattr(SecondTry, "__call__", watched)
        return fault

    return use


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return random_pipeline(CPU, torch.float32, preset=SMALL)


def made(pipeline: Pipeline, window: WindowConfig, hook: Hook, chunks: list | None = None) -> list:
    """Latents and frames of every block; `chunks` keeps those before an error."""
    chunks = [] if chunks is None else chunks
    plan = pipeline.plan(Request(PromptSchedule.parse(PROMPTS), SECONDS, 0, 64, 32, window))
    for chunk in pipeline.run(plan, hook):
        chunks.append((chunk.block.latents, chunk.frames))
    return chunks


def assert_same(some: list, others: list) -> None:
    for one, other in zip(some, others, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("window", WINDOWS)
def test_a_block_that_runs_out_of_memory_once_is_the_same_block(pipeline, window, faulty) -> None:
    """Out of memory anywhere: prompts, a recache, a step, the sink's place, a commit, the decoder."""
    fault = faulty(Fault())
    right = made(pipeline, WINDOWS[window], Hook())
    for part in range(8):
        notes = Notes()
        faulty(Fault(int((part + 0.5) * fault.count / 8)))
        assert_same(made(pipeline, WINDOWS[window], notes), right)
        (note,) = notes.said
        assert note.startswith("block ") and "out of memory" in note


def test_a_block_that_runs_out_of_memory_twice_costs_no_earlier_one(pipeline, faulty) -> None:
    fault = faulty(Fault())
    right = made(pipeline, WindowConfig(), Hook())
    for part in (0.4, 0.95):
        notes, kept = Notes(), []
        faulty(Fault(int(part * fault.count), times=2))
        with pytest.raises(torch.OutOfMemoryError, match=r"block \d: out of memory, twice"):
            made(pipeline, WindowConfig(), notes, kept)
        assert len(notes.said) == 1 and 0 < len(kept) < len(right)
        assert_same(kept, right[: len(kept)])


class Weak:
    """A decoder that runs out of memory at its last convolutions, in one of its calls."""

    def __init__(self, decoder, failing: int):
        self._decoder, self._calls, self._failing = decoder, 0, failing

    def decode(self, latents: Tensor, past=None):
        self._calls += 1
        if self._calls == self._failing:
            self._decoder.decode(latents, past)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._decoder.decode(latents, past)


@pytest.mark.parametrize("kind", ["tiny", "wan", "tiled"])
def test_the_past_that_a_failed_decoding_used_up_is_made_again(kind) -> None:
    """Bit for bit, from the blocks that a decoder looks back at; long after the beginning and a cut."""
    torch.manual_seed(0)
    decoder = (TinyAutoencoder(TINY) if kind == "tiny" else WanAutoencoder(WAN)).eval()
    if kind == "tiled":
        decoder = TiledDecoder(decoder, 32, 16)
    channels, count = 16, LOOKED_BACK // 3 + 5
    blocks = [Block(i, torch.randn(1, channels, 3, 4, 6), i in (0, 2)) for i in range(count)]
    stream, notes = StreamingDecoder(decoder), []
    right = [stream.push(block.latents, block.opens_scene) for block in blocks]
    for failing in (2, 3, 4, count):
        weak = Weak(decoder, failing)
        tried, decoding = SecondTry(CPU, notes.append), Decoding(lambda w=weak: (StreamingDecoder(w), None))
        for block, frames in zip(blocks, right, strict=True):
            assert torch.equal(tried(block.index, decoding.push, block), frames), (failing, block.index)
    assert len(notes) == 4


def test_the_text_encoder_is_gone_before_the_video_begins(pipeline, tmp_path) -> None:
    """Loaded for the prompts of all of the video, which are cached; its memory is the device's again."""
    made_here = []

    class Encoder:
        def __call__(self, prompt: str) -> Tensor:
            return pipeline.encode_text(prompt)

    def load() -> Encoder:
        encoder = Encoder()
        made_here.append(weakref.ref(encoder))
        return encoder

    class Watching(Hook):
        def on_open(self, scene) -> None:
            assert len(made_here) == 1 and made_here[0]() is None

    cached = CachedEncoder(load, "one", tmp_path)
    ahead = replace(pipeline, encode_text=cached, encode_ahead=partial(encode_all, cached))
    assert_same(made(ahead, WindowConfig(), Watching()), made(pipeline, WindowConfig(), Hook()))


def test_only_what_says_so_is_out_of_memory() -> None:
    for text in ("CUDA out of memory.", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"):
        assert is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"))
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(OSError("out of memory"))
    calls = []

    def fails() -> None:
        calls.append(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        SecondTry(CPU, print)(0, fails)
    assert len(calls) == 1


def test_the_error_says_how_much_was_free(monkeypatch) -> None:
    """Free, and held by this process: not the size of the GPU."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 140 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 7 * 2**30)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match=r"block 4: .*8\.00 GiB of the GPU were free") as caught:
        SecondTry(torch.device("cuda"), lambda _: None)(4, fails)
    assert "140" not in str(caught.value) and caught.value.__context__ is None
